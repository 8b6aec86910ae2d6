"""One device or four, jit or pmap: the same numbers."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from c2f_jax.kernels import by_gather, crop_and_resize
from c2f_jax.models import backbones
from c2f_jax.models.attention_network import AttentionNetwork
from c2f_jax.models.resnet import BasicBlock, ResNet
from c2f_jax.runs import parallel
from c2f_jax.runs.build import build
from c2f_jax.runs.methods import make_task
from c2f_jax.training.stages import stage_at
from c2f_jax.training.steps import train_step
from c2f_jax.training.train_state import switch_stage
from tests.tiny import tiny_config

STEPS = 10  # of each stage
# With larger steps the tiny network is chaotic: a difference in the last bit grows tenfold a step.
SGD = {"optimizer__name": "sgd", "optimizer__learning_rate": 1e-4}


def run_steps(config, backend):
    """Ten steps of each stage -> (losses, final params)."""
    run = build(config)
    task = make_task(config, num_classes=len(run.splits.class_names), axis_name=backend.axis_name)
    state, losses, batches = backend.put_state(run.create_state()), [], run.training_batches(0)
    assert [stage.steps for stage in run.stages] == [STEPS] * len(run.stages)
    for stage in run.stages:
        state = backend.put_state(switch_stage(backend.get_state(state), stage))
        step = backend.compile(
            partial(train_step, task=task, stage=stage, seed=config.seed, axis_name=backend.axis_name)
        )
        for number in range(stage.start, stage.end):
            assert stage_at(run.stages, number) is stage
            state, metrics = step(state, backend.put_batch(next(batches)))
            losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(backend.get_state(state))


def backends():
    """One device; four by jit; four by pmap."""
    everything = parallel.make_mesh()
    return [
        parallel.JitBackend(parallel.make_mesh(jax.devices()[:1])),
        parallel.JitBackend(everything),
        parallel.PmapBackend(everything),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coarse2fine", "wsdan"])
def test_devices_agree_in_float64(method):
    assert jax.device_count() == 4
    with jax.enable_x64(True):
        config = tiny_config(method=method, model__dtype="float64", model__channel_drop=0.1, **SGD)
        (losses, one), *others = [run_steps(config, backend) for backend in backends()]
        assert losses.dtype == np.float64 and np.all(np.isfinite(losses))
        for other_losses, other in others:
            np.testing.assert_allclose(other_losses, losses, rtol=0, atol=1e-9)
            for name in ("params", "batch_stats", "centers"):
                jax.tree.map(
                    partial(np.testing.assert_allclose, rtol=0, atol=1e-9), getattr(other, name), getattr(one, name)
                )


@pytest.mark.slow
def test_devices_agree_in_float32():
    """By jit alone: that pmap computes the same is seen above, and compiling it once more takes a minute."""
    config = tiny_config(**SGD)
    (losses, _), (other_losses, _) = [run_steps(config, backend) for backend in backends()[:2]]
    np.testing.assert_allclose(other_losses, losses, rtol=0, atol=1e-4)


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(parallel.UserError, match=r"train.batch_size=6 .* 4 devices; try --config.train.batch_size=4"):
        parallel.check_batch_size("train.batch_size", 6)


def test_large_crops_are_not_gathered(monkeypatch):
    """On CPU their derivatives are taken in turn, on each device through its own images."""
    monkeypatch.setattr(by_gather, "CACHE", 0)
    backend = parallel.JitBackend(parallel.make_mesh())
    batch = backend.put_batch({"image": np.ones((8, 6, 5, 2), np.float32), "box": np.ones((8, 3, 4), np.float32)})

    def step(shift, batch):
        gradient = jax.grad(lambda s: crop_and_resize(batch["image"], batch["box"] + s, 4).sum())(shift)
        return shift - gradient, {}

    program = (
        jax.jit(backend.compile(step)).lower(backend.put_state(np.zeros(4, np.float32)), batch).compile().as_text()
    )
    assert "while(" in program and "all-reduce(" in program
    assert "all-gather(" not in program


@pytest.mark.slow
def test_the_head_divided_over_devices_gives_the_same_numbers(monkeypatch):
    """Weights, centres and momenta, two by two devices; three steps in float64, of a backbone that compiles quickly."""
    small = partial(
        ResNet,
        BasicBlock,
        **{"block_counts": (1,), "widths": (32,), "group_strides": (4,), "stem_width": 8, "stem_kernel": 3},
        stem_pool=False,
    )
    monkeypatch.setitem(backbones._CONSTRUCTORS, "resnet10_small", (small, {8: {}}))
    with jax.enable_x64(True):
        run = build(tiny_config(method="attention", model__dtype="float64", **SGD))
        (stage,), batches = run.stages, [batch for _, batch in zip(range(3), run.training_batches(0), strict=False)]
        states, metrics = [], []
        for model in (1, 2):
            backend = parallel.JitBackend(parallel.make_mesh(model=model))
            step = backend.compile(partial(train_step, task=run.task, stage=stage, seed=0))
            state = backend.put_state(jax.device_get(run.create_state()))
            for batch in batches:
                state, figures = step(state, backend.put_batch(batch))
            states.append(state)
            metrics.append(jax.device_get(figures))
        close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
        jax.tree.map(close, metrics[1], metrics[0])
        jax.tree.map(close, *(jax.tree.map(parallel.whole, state) for state in reversed(states)))
    assert metrics[0]["center_loss"] > 0
    named = jax.tree_util.tree_leaves_with_path(states[1])
    kernels = [leaf for path, leaf in named if jax.tree_util.keystr(path).endswith("['head']['kernel']")]
    assert len(kernels) == 2  # and its momentum
    for leaf, axis in [*((leaf, 0) for leaf in kernels), (states[1].centers, 1)]:
        held = leaf.addressable_data(0).shape
        assert held[axis] * 2 == leaf.shape[axis] and held[1 - axis] == leaf.shape[1 - axis]


def test_no_device_holds_all_of_the_heads_weights_or_of_their_gradient():
    mesh = parallel.make_mesh(model=4)
    backbone = ResNet(BasicBlock, (1,), widths=(8,), group_strides=(4,), stem_width=8, stem_kernel=3, stem_pool=False)
    network = AttentionNetwork(backbone, num_classes=56, num_maps=9)  # 72 features

    def gradient(variables, view):
        def loss(params):
            return jax.nn.logsumexp(network.apply({**variables, "params": params}, view, train=False)[0], axis=-1).sum()

        return jax.grad(loss)(variables["params"])

    view = jax.ShapeDtypeStruct((8, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), view)
    shapes = parallel.on_mesh({name: shapes[name] for name in ("params", "batch_stats")}, mesh)
    view = parallel.on_mesh(view, mesh).update(sharding=NamedSharding(mesh, PartitionSpec(("data", "model"))))
    places = parallel.shardings(shapes["params"], mesh)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = jax.jit(gradient, out_shardings=places).lower(shapes, view).compile().as_text()
    assert "f32[18,56]" in program and "f32[72,56]" not in program and "f32[56,72]" not in program


def test_a_model_axis_that_does_not_fit_is_refused():
    for size, backend, message in (
        (3, "jit", "parallel.model=3 does not divide the 4 devices of this process"),
        (2, "pmap", "parallel.model=2 is for parallel.backend=jit"),
    ):
        with pytest.raises(parallel.UserError, match=message):
            parallel.check_model_axis(size, backend=backend)
    head = {"head": {"kernel": np.zeros((6, 3))}}
    with pytest.raises(parallel.UserError, match="parallel.model=4 does not divide the 6 features of each class"):
        parallel.shardings(head, parallel.make_mesh(model=4))
