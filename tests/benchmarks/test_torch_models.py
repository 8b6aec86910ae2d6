"""What `benchmarks/step.py` times in PyTorch computes what ours computes: from the same parameters, the same numbers.

In float64, where another operation somewhere cannot pass for rounding. Ours is compiled without optimisation, which
changes no operation and spares most of the time.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from c2f_jax.models import efficientnet_lite
from c2f_jax.runs import methods
from c2f_jax.training import steps
from c2f_jax.training.train_state import create_train_state
from configs import cub50_lite0
from tests.models.make_resnet50_golden import draw_weights

torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra `bench` has it")
from benchmarks import step, torch_models  # noqa: E402 - needs PyTorch

pytestmark = pytest.mark.slow

NUM_CLASSES, VIEW_SIZE = 7, 64
RAW_SIZE = {"baseline": VIEW_SIZE, "coarse2fine": 2 * VIEW_SIZE}  # as in the benchmark: two taps, and antialiased
LABELS = np.array([3, 3, 1, 5], np.int32)  # one of them twice: its centre moves twice
# Squares with sides from 0.5 to 1 of the image, two of them mirrored.
BOXES = np.array([[0.21, 0.13, 0.71, 0.63], [0.1, 0.93, 0.9, 0.13], [0.0, 0.0, 1.0, 1.0], [0.31, 0.95, 0.92, 0.34]])
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@pytest.fixture(autouse=True)
def settings_of_pytorch(monkeypatch):
    monkeypatch.setattr(torch_models, "random_boxes", lambda *settings: torch.from_numpy(BOXES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another in loops, which a busy machine has no time for
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


def layer_names(backbone):
    """Our names of the backbone's convolutions and norms, in the order that PyTorch's modules have."""
    if backbone == "resnet50":
        yield from ("conv1", "bn1")
        for group, count in enumerate((3, 4, 6, 3), start=1):
            for index in range(count):
                last = ("downsample_conv", "downsample_bn") if index == 0 else ()
                for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", *last):
                    yield f"layer{group}_{index}/{name}"
        return
    yield from ("conv_stem", "bn1")
    for stage, (expansion, _, count, _, _) in enumerate(efficientnet_lite.LITE0_STAGES):
        wide = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        for index in range(count):
            for name in wide if expansion > 1 else ("conv_dw", "bn1", "conv_pw", "bn2"):
                yield f"blocks_{stage}_{index}/{name}"
    yield from ("conv_head", "bn2")


def tensors_by_name(model, backbone):
    """All parameters and running statistics: {"layer, as we name it.leaf, as PyTorch names it": tensor}."""
    layers = [layer for layer in model.backbone.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
    named = dict(zip((f"backbone/{name}" for name in layer_names(backbone)), layers, strict=True))
    named["head"] = model.head
    if isinstance(model, torch_models.Attentive):
        named["attention/conv"], named["attention/bn"] = model.attention
        named |= {f"inverse_mapping/{name}": getattr(model, name) for name in ("project", "mix", "score")}
    tensors = {
        f"{name}.{leaf}": tensor
        for name, layer in named.items()
        for leaf, tensor in layer.state_dict(keep_vars=True).items()
        if leaf != "num_batches_tracked"  # of no use where the momentum is fixed
    }
    return tensors | ({"inverse_mapping.kappa": model.kappa} if hasattr(model, "kappa") else {})


def as_ours(arrays, like):
    """Arrays by `tensors_by_name`'s names as a tree of the structure and shapes of `like`."""
    flat = {}
    for path, leaf in traverse_util.flatten_dict(like).items():
        array = np.asarray(arrays[f"{'/'.join(path[:-1])}.{LEAVES.get(path[-1], path[-1])}"], np.float64)
        flat[path] = np.transpose(array, (2, 3, 1, 0) if array.ndim == 4 else None)
        assert flat[path].shape == leaf.shape, path
    return traverse_util.unflatten_dict(flat)


class Pair:
    """The same network by both, with the same weights, drawn by their names."""

    def __init__(self, backbone, method, **changes):
        """changes: of the config's fields, "__" in place of the dot."""
        config = cub50_lite0.get_config()
        config.method, config.model.backbone, config.model.view_size = method, backbone, VIEW_SIZE
        config.model.dtype = "float64"
        config.model.output_stride = 0 if method == "baseline" else 16
        config.region.box_gradient, config.region.floor, config.loss.drop_view = "all", 0.0, False
        config.region.cell_offset = 0.0
        config.stages.coarse_epochs = 1.0
        config.region.box_gradient_scale = 0.3  # the box pulls at the attention harder than the class
        config.optimizer.head_factor = config.optimizer.region_factor = 1.0
        config.optimizer.clip_norm = math.inf  # PyTorch adds 1e-6 to the norm that it clips by
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
        task = methods.make_task(config, num_classes=NUM_CLASSES, axis_name=None)
        self.task = dataclasses.replace(task, random_boxes=lambda keys, place: jnp.asarray(BOXES))
        self.stage = methods.make_stages(config, train_size=10**9)[-1]  # its learning rate stays at the peak
        self.raw = np.random.default_rng(0).integers(0, 256, (len(LABELS), *2 * [RAW_SIZE[method]], 3), np.uint8)

        self.model = step.torch_model(config, NUM_CLASSES)
        optimizer = torch_models.sgd(self.model.parameters())
        loss = step.torch_loss(config, self.model)
        self._step = torch_models.training_step(self.model, optimizer, loss, clip_norm=math.inf)
        self.tensors = tensors_by_name(self.model, backbone)
        weights = draw_weights({name: tensor.shape for name, tensor in self.tensors.items()})
        for name, tensor in self.tensors.items():
            tensor.data.copy_(torch.from_numpy(np.asarray(weights[name])))

        state = jax.eval_shape(
            lambda: create_train_state(jax.random.key(0), self.task, self.stage, num_classes=NUM_CLASSES)
        )
        params, stats = as_ours(weights, state.params), as_ours(weights, state.batch_stats["coarse"])
        assert len(self.tensors) == len(jax.tree.leaves((params, stats)))  # all of both are there
        self.state = state.replace(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats={"coarse": stats, "fine": stats},
            centers=None if state.centers is None else jnp.zeros(state.centers.shape),
            opt_state=self.stage.tx.init(params),
        )

    def ours(self, function):
        """A step of `c2f_jax.training.steps`, compiled: state -> its results."""
        row = np.arange(len(LABELS), dtype=np.int32)
        batch = {"image": self.raw, "place": np.zeros((len(LABELS), 2)), "label": LABELS, "row": row}
        compiled = jit(partial(function, task=self.task, stage=self.stage, seed=0))
        return lambda state: compiled(state, batch)

    def theirs(self):
        """Takes PyTorch's training step -> its loss."""
        raw = torch.from_numpy(self.raw).permute(0, 3, 1, 2)
        return self._step(raw, torch.from_numpy(LABELS.astype(np.int64))).item()

    def theirs_as_ours(self, of=lambda tensor: tensor.detach()):
        """PyTorch's parameters, or another tensor `of` each, as a tree like `state.params`."""
        params = {name: of(tensor).numpy() for name, tensor in self.tensors.items() if tensor.requires_grad}
        return as_ours(params, self.state.params)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet50"])
def test_backbones(backbone):
    """Features and logits by running statistics; then loss and gradient of a training step."""
    pair = Pair(backbone, "baseline")
    view = (pair.raw - 127.0) / 128.0
    variables = {"params": pair.state.params, "batch_stats": pair.state.batch_stats["coarse"]}
    logits, out = jit(partial(pair.task.network.apply, train=False))(variables, view)
    pair.model.eval()
    with torch.inference_mode():
        image = torch.from_numpy(view).permute(0, 3, 1, 2)
        features = pair.model.backbone(image).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(out["feature_maps"], features, rtol=0, atol=1e-10 * features.max())
        np.testing.assert_allclose(logits, pair.model(image).numpy(), rtol=0, atol=1e-10 * np.abs(logits).max())
    pair.model.train()

    gradients, metrics, _, _ = pair.ours(steps._loss_and_gradients)(pair.state)
    assert float(metrics["loss"]) == pytest.approx(pair.theirs(), rel=1e-10)
    expected = pair.theirs_as_ours(lambda parameter: parameter.grad)
    norm = float(optax.tree.norm(expected))
    assert float(optax.tree.norm(gradients)) == pytest.approx(norm, rel=1e-8)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, gradients, expected))) < 1e-8 * norm


@pytest.fixture
def few_blocks(monkeypatch):
    """For the sake of compilation: all of them are compared above."""
    stages = ((1, 16, 1, 1, 3), (6, 24, 1, 2, 5), (6, 40, 2, 2, 3))
    monkeypatch.setattr(efficientnet_lite, "LITE0_STAGES", stages)
    monkeypatch.setattr(torch_models, "LITE0_STAGES", stages)


def test_two_looks(few_blocks):
    """Losses of three steps, and the parameters after them: the gradient through the box, optimiser and centres."""
    pair = Pair("efficientnet_lite0", "coarse2fine")
    ours = pair.ours(steps.train_step)
    for _ in range(3):
        pair.state, metrics = ours(pair.state)
        # Each step makes rounding some hundred times larger: the images are noise, and so is the gradient by their box.
        assert float(metrics["loss"]) == pytest.approx(pair.theirs(), rel=1e-7)
    expected = pair.theirs_as_ours()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-7), pair.state.params, expected)


def test_two_looks_as_for_cub(few_blocks, monkeypatch):
    """With a drop view, colour changes, a background above the mean and a detached box; all draws are the same."""
    monkeypatch.setattr(
        jax.random,
        "uniform",
        lambda key, shape=(), minval=0.0, maxval=1.0: jnp.full(shape, minval + 0.3 * (maxval - minval)),
    )
    monkeypatch.setattr(jax.random, "categorical", lambda key, logits: jnp.argmax(logits))
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.full(shape, 0.3))
    monkeypatch.setattr(torch, "rand_like", lambda values: torch.full_like(values, 0.5))
    of_cub = {"region__background": 1.0, "region__kappa": 2.9, "region__box_gradient": "none", "loss__drop_view": True}
    of_cub |= {"augment__brightness": 0.125, "augment__saturation": (0.5, 1.5), "model__feature_scale": 100.0}
    pair = Pair("efficientnet_lite0", "coarse2fine", **of_cub)
    pair.state, metrics = pair.ours(steps.train_step)(pair.state)
    assert float(metrics["loss"]) == pytest.approx(pair.theirs(), rel=1e-10)
    ours, theirs = pair.state.params, pair.theirs_as_ours()
    # What has no gradient decays in ours and is left alone by PyTorch; as much work.
    del ours["inverse_mapping"], theirs["inverse_mapping"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-9), ours, theirs)


def test_rows_by_products_are_rows_by_bags():
    """What an accelerator computes and what a CPU does; mirrored boxes too."""
    images = torch.from_numpy(np.random.default_rng(0).random((4, 40, 5, 3)))
    low, high = torch.tensor([0.0, 0.1, 0.9, 0.3]), torch.tensor([1.0, 0.7, 0.2, 0.5])
    bags, products = (by(images, low, high, 16) for by in (torch_models._rows_by_bags, torch_models._rows_by_products))
    np.testing.assert_allclose(products, bags, rtol=0, atol=1e-12)
    assert np.max(np.abs(products.numpy() - torch_models._rows_by_bags(images, low, high - 0.01, 16).numpy())) > 1e-3
