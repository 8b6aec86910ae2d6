"""Published weights find their places, all of them; a file that does not fit is refused in one line."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from c2f_jax.errors import UserError
from c2f_jax.models.backbones import BACKBONES
from c2f_jax.models.pretrained import load_pretrained, read_weights
from tests.models.make_resnet50_golden import GOLDEN, SIZES, corners, draw_image, draw_weights


def abstract_variables(name):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    backbone = BACKBONES[name](dtype=jnp.float32, axis_name=None)
    return jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), image)


def small_state_dict():
    """What PyTorch would save of resnet10_small with a classifier."""
    rng, state = np.random.default_rng(0), {}

    def conv(name, features, in_features, size):
        state[f"{name}.weight"] = rng.normal(size=(features, in_features, size, size))

    def norm(name, features):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{leaf}"] = rng.normal(size=features)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", 16, 3, 3)
    norm("bn1", 16)
    in_features = 16
    for group, width in enumerate((32, 64, 128), start=1):
        block = f"layer{group}.0"
        conv(f"{block}.conv1", width, in_features, 3)
        norm(f"{block}.bn1", width)
        conv(f"{block}.conv2", width, width, 3)
        norm(f"{block}.bn2", width)
        conv(f"{block}.downsample.0", width, in_features, 1)
        norm(f"{block}.downsample.1", width)
        in_features = width
    state["fc.weight"], state["fc.bias"] = rng.normal(size=(1000, 128)), rng.normal(size=1000)
    return {name: np.float32(v) if v.ndim else v for name, v in state.items()}


def saved(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


def test_every_value_finds_its_place(tmp_path):
    state, wanted = small_state_dict(), abstract_variables("resnet10_small")
    loaded = load_pretrained(saved(tmp_path, state), "resnet10_small", wanted)
    assert jax.tree.structure(loaded) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a.shape} {b}"), loaded, wanted)
    params, stats = loaded["params"], loaded["batch_stats"]
    for group in (1, 2, 3):
        theirs, block = f"layer{group}.0", f"layer{group}_0"
        for name, module in (("conv2", "conv2"), ("downsample.0", "downsample_conv")):
            kernel = np.transpose(params[block][module]["kernel"], (3, 2, 0, 1))
            np.testing.assert_array_equal(kernel, state[f"{theirs}.{name}.weight"])
        for name, module in (("bn2", "bn2"), ("downsample.1", "downsample_bn")):
            np.testing.assert_array_equal(params[block][module]["scale"], state[f"{theirs}.{name}.weight"])
            np.testing.assert_array_equal(params[block][module]["bias"], state[f"{theirs}.{name}.bias"])
            np.testing.assert_array_equal(stats[block][module]["mean"], state[f"{theirs}.{name}.running_mean"])
            np.testing.assert_array_equal(stats[block][module]["var"], state[f"{theirs}.{name}.running_var"])
    # Each used once and changed in nothing: the sums of all values agree.
    used = [v for name, v in state.items() if not name.startswith("fc.") and v.ndim]
    assert len(jax.tree.leaves(loaded)) == len(used)
    total = sum(np.float64(leaf).sum() for leaf in jax.tree.leaves(loaded))
    assert total == pytest.approx(sum(np.float64(v).sum() for v in used), abs=1e-6)


def test_variables_keep_their_dtype(tmp_path):
    half = {name: v.astype(np.float16) if v.ndim else v for name, v in small_state_dict().items()}
    loaded = load_pretrained(saved(tmp_path, half), "resnet10_small", abstract_variables("resnet10_small"))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(loaded["params"]["bn1"]["bias"], half["bn1.bias"])


def test_one_line_names_all_that_does_not_fit(tmp_path):
    state = small_state_dict()
    del state["bn1.running_mean"], state["layer3.0.downsample.0.weight"]
    state["conv1.weight"] = np.zeros((16, 3, 7, 7), np.float32)
    state |= {f"layer4.{i}.conv1.weight": np.zeros(1, np.float32) for i in range(10)}
    source = saved(tmp_path, state)
    with pytest.raises(UserError) as error:
        load_pretrained(source, "resnet10_small", abstract_variables("resnet10_small"))
    message = str(error.value)
    assert message.startswith(f"the weights {source} are not those of resnet10_small; keys without a place: layer4.0.")
    assert "layer4.7.conv1.weight and 2 more;" in message and "layer4.8" not in message
    assert "variables without a key: batch_stats/bn1/mean, params/layer3_0/downsample_conv/kernel;" in message
    assert message.endswith("shapes that differ: conv1.weight (16, 3, 7, 7) for params/conv1/kernel (3, 3, 3, 16)")
    assert "\n" not in message and "fc." not in message and "num_batches" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file of weights"), (b"PK\3\4 a torch file", "cannot be read as safetensors")],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(str(path))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the Hugging Face hub, and no network: as HF_HUB_OFFLINE=1, which is read on import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_hub_without_network_says_what_to_do(hub_cache):
    with pytest.raises(UserError, match="cannot fetch hf://timm/resnet50.*by hand and give --config") as error:
        read_weights("hf://timm/resnet50.a1_in1k")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["hf://resnet50", "hf://timm/resnet50/model.safetensors", "hf://timm/resnet50@"])
def test_hub_names_are_checked(source):
    with pytest.raises(UserError, match="hf://owner/name or hf://owner/name@revision"):
        read_weights(source)


@pytest.mark.parametrize("source", ["hf://timm/tiny", "hf://timm/tiny@v1"])
def test_hub_cache_is_read_without_network(hub_cache, source):
    snapshot = hub_cache / "models--timm--tiny" / "snapshots" / ("0" * 40)
    refs = hub_cache / "models--timm--tiny" / "refs"
    snapshot.mkdir(parents=True)
    refs.mkdir()
    (refs / ("v1" if "@" in source else "main")).write_text("0" * 40)
    save_file({"bias": np.arange(3.0)}, snapshot / "model.safetensors")
    np.testing.assert_array_equal(read_weights(source)["bias"], [0, 1, 2])


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """(a function from images to feature maps, the weights) of ResNet-50 with torchvision's drawn weights."""
    weights = draw_weights(json.loads(np.load(GOLDEN)["shapes"].tobytes()))
    source = saved(tmp_path_factory.mktemp("resnet50"), weights)
    variables = load_pretrained(source, "resnet50", abstract_variables("resnet50"))
    backbone = BACKBONES["resnet50"](dtype=jnp.float32, axis_name=None)
    apply = jax.jit(lambda variables, x: backbone.apply(variables, x, train=False))
    return functools.partial(apply, variables), weights


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def logits_of(feature_maps, weights):
    return np.mean(feature_maps, axis=(1, 2)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("size", SIZES)
def test_resnet50_equals_torchvision_s(resnet50, size):
    apply, weights = resnet50
    golden = np.load(GOLDEN)
    feature_maps = apply(draw_image(size))
    assert_close(corners(feature_maps)[:, ::8], golden[f"corners_{size}"])
    assert_close(logits_of(feature_maps, weights)[0], golden[f"logits_{size}"])


@pytest.mark.parametrize("size", SIZES)
def test_resnet50_equals_torchvision_s_live(resnet50, size):
    pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from tests.models.make_resnet50_golden import evaluate, torchvision_resnet50

    apply, weights = resnet50
    feature_maps, logits = evaluate(torchvision_resnet50()[0], draw_image(size))
    ours = apply(draw_image(size))
    assert_close(ours, feature_maps)
    assert_close(logits_of(ours, weights), logits)
