"""Every architecture, small: numbers stay numbers, all parameters learn, testing heeds running statistics alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from c2f_jax.models.convnext import ConvNeXt
from c2f_jax.models.efficientnet_lite import EfficientNetLite
from c2f_jax.models.inception import InceptionV3
from c2f_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.models.make_backbone_goldens import CASES
from tests.models.test_exact import QUICKLY, abstract_variables

# Other forms differ from these in numbers alone.
NETWORKS = {
    "efficientnet_lite0": (EfficientNetLite(output_stride=16), 32),
    "resnet": (ResNet(BasicBlock, (1, 1), (8, 16), (1, 2)), 32),
    "resnext": (ResNet(Bottleneck, (1, 1), (16, 32), (1, 2), groups=32, width_per_group=4), 32),
    "inception_v3": (InceptionV3(), 75),
    "convnext": (ConvNeXt((1, 1), (8, 16)), 32),
    "convnextv2": (ConvNeXt((1, 1), (8, 16), version=2, output_stride=16), 32),
    **{name: (CASES[name].ours, 2 * CASES[name].ours.patch) for name in ("vit", "dinov2_reg4", "dinov3", "clip")},
}
SLOW = ("efficientnet_lite0", "inception_v3")
# A block of EfficientNet ends without activation: what its last bias adds, the batch norm after the next 1x1
# convolution takes off.
IDLE = r"blocks_0_0/bn2/bias|blocks_\d_\d/bn3/bias"


def drawn(tree, seed=0):
    """Values of the size that trained ones have."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise, name = rng.normal(size=leaf.shape), path[-1].key
        if name == "kernel":
            return np.float32(noise * np.sqrt(2 / np.prod(leaf.shape[:-1])))
        scale = 1.0 if name in ("cls_token", "reg_token", "pos_embed") else 0.1
        return np.float32(scale * noise + (name in ("scale", "var", "gamma", "weight")))

    return jax.tree_util.tree_map_with_path(draw, tree)


def objective(backbone, params, stats, images):
    """A sum in which each number of the maps has its own weight, and the running statistics after it."""
    maps, updated = backbone.apply({"params": params, **stats}, images, train=True, mutable=["batch_stats"])
    return (maps * jnp.sin(1 + jnp.arange(maps.size)).reshape(maps.shape)).sum().astype(jnp.float32), updated


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS])
def network(request):
    """(backbone, parameters, the other collections, two images)."""
    backbone, size = NETWORKS[request.param]
    variables = drawn(abstract_variables(backbone, (size, size)))
    images = np.random.default_rng(1).standard_normal((2, size, size, 3), np.float32)
    return backbone, variables.pop("params"), variables, images


def test_learns_tests_and_lowers(network):
    backbone, params, stats, images = network
    half = backbone.clone(dtype=jnp.bfloat16)

    def everything(params, stats, images):
        slopes, updated = jax.grad(functools.partial(objective, backbone), has_aux=True)(params, stats, images)
        maps = [one.apply({"params": params, **stats}, images, train=False) for one in (backbone, half)]
        return slopes, updated, maps

    program = jax.jit(everything).lower(params, stats, images).compile(QUICKLY)
    slopes, updated, (maps, coarse) = program(params, stats, images)

    for path, leaf in traverse_util.flatten_dict(slopes, sep="/").items():
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-6 or re.fullmatch(IDLE, path), path
    assert coarse.dtype == jnp.bfloat16 and maps.dtype == jnp.float32
    coarse = np.float32(coarse)
    assert np.isfinite(maps).all() and np.isfinite(coarse).all()
    assert np.linalg.norm(coarse - maps) < 0.05 * np.linalg.norm(maps)

    # Training moves each running statistic; testing does not look beyond one image.
    for path, leaf in traverse_util.flatten_dict(stats, sep="/").items():
        assert not np.allclose(leaf, traverse_util.flatten_dict(updated, sep="/")[path], atol=1e-6), path
    _, _, (other, _) = program(params, stats, np.stack([images[0], 2 * images[1]]))
    np.testing.assert_allclose(other[0], maps[0], rtol=0, atol=1e-5 * np.abs(maps).max())
    assert not np.allclose(other[1], maps[1], atol=1e-3)

    # The step of training, for other platforms.
    step = jax.jit(jax.grad(functools.partial(objective, half), has_aux=True))
    for platform in ("cuda", "tpu"):
        assert "stablehlo" in step.trace(params, stats, images).lower(lowering_platforms=(platform,)).as_text()


def test_attention_keeps_no_weights_for_the_gradient():
    backbone, tokens = CASES["dinov3"].ours, 5 + 3 * 5  # no other size is 20
    variables = abstract_variables(backbone, (48, 80))
    look = functools.partial(backbone.apply, train=True)
    image = jax.ShapeDtypeStruct((2, 48, 80, 3), jnp.float32)
    kept = jax.tree.leaves(jax.eval_shape(lambda v, x: jax.vjp(lambda v: look(v, x), v)[1], variables, image))
    assert sum(leaf.shape[:2] == (2, tokens) for leaf in kept) > 10
    assert not [leaf.shape for leaf in kept if leaf.shape.count(tokens) > 1]


@pytest.mark.parametrize("name", ["convnextv2", "dinov3", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_says_the_same_as_onnx(name):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from c2f_jax.inference.onnx_graph import convert

    backbone, size = NETWORKS[name]
    variables = drawn(abstract_variables(backbone, (size, size)))
    images = np.random.default_rng(1).standard_normal((2, size, size, 3), np.float32)

    def maps(images):
        return {"maps": backbone.apply(variables, images, train=False)}

    model = convert(maps, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), input_name="image")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": images})
    wanted = np.asarray(jax.jit(maps)(images)["maps"])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
