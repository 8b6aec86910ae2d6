"""Training features that are off by default: each does what it says, and nothing else."""

import functools
import shutil
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c2f_jax.errors import UserError
from c2f_jax.layers.drop_path import DropPath, drop_path, dropping, rising
from c2f_jax.layers.norm import BatchNorm, frozen_statistics
from c2f_jax.models import backbones
from c2f_jax.models.backbones import BACKBONES, layer_numbers
from c2f_jax.models.convnext import ConvNeXt
from c2f_jax.models.efficientnet_lite import EfficientNetLite
from c2f_jax.models.resnet import BasicBlock, ResNet
from c2f_jax.models.vit import VisionTransformer
from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import latest_step, read
from c2f_jax.runs.evaluation import evaluate_checkpoint
from c2f_jax.runs.loop import train_and_evaluate
from c2f_jax.runs.methods import make_task
from c2f_jax.training import augment, steps
from c2f_jax.training.losses import cross_entropy
from c2f_jax.training.optimizer import make_optimizer
from tests.models.test_exact import QUICKLY
from tests.tiny import tiny_config

KEYS = augment.example_keys(0, jnp.int32(3), jnp.arange(4))


# --- Targets. ---


def test_smoothed_and_mixed_targets_are_soft_labels():
    rng = np.random.default_rng(0)
    logits, share = jnp.float32(rng.normal(size=(4, 5))), jnp.array([0.5, 0.7, 1.0, 0.9])
    label, other = jnp.array([0, 1, 2, 3]), jnp.array([3, 1, 0, 4])
    first, second = (optax.smooth_labels(jax.nn.one_hot(labels, 5), 0.1) for labels in (label, other))
    mixed = share[:, None] * first + (1 - share[:, None]) * second
    batch = {"label": label, "other": other, "share": share}
    wanted = jnp.mean(optax.softmax_cross_entropy(logits, mixed))
    assert float(cross_entropy(logits, batch, smoothing=0.1)) == pytest.approx(float(wanted), rel=1e-6)
    plain = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))
    assert float(cross_entropy(logits, {"label": label})) == float(plain)
    assert abs(float(plain) - float(wanted)) > 1e-3


# --- Images. ---


def images(count=4, side=32):
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8))


BOXES = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.25, 0.25, 0.75, 0.75], [0.5, 1.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0]])


def test_mixup_averages_with_the_other_end_of_the_batch():
    raw, labels = images(), jnp.arange(4)
    mixed = augment.mix_examples(KEYS, raw, labels, BOXES, mixup=0.4, cutmix=0.0)
    share = np.asarray(mixed["share"])
    np.testing.assert_array_equal(mixed["other"], [3, 2, 1, 0])
    assert len(set(share)) == 4 and (share >= 0.5).all() and (share <= 1.0).all()
    wide = np.float32(raw)
    wanted = share[:, None, None, None] * wide + (1 - share[:, None, None, None]) * wide[::-1]
    np.testing.assert_allclose(mixed["image"], wanted, rtol=0, atol=1e-3)
    again = augment.mix_examples(KEYS[:2], raw[jnp.array([0, 3])], labels[:2], BOXES[:2], mixup=0.4, cutmix=0.0)
    np.testing.assert_array_equal(again["share"], share[:2])  # of the example's key alone


def test_cutmix_pastes_a_rectangle_of_its_share_into_the_coarse_view():
    keys = augment.example_keys(0, jnp.int32(1), jnp.arange(64))
    raw = jnp.stack([jnp.full((96, 96, 3), 10.0 * (i % 2)) for i in range(64)])  # each other example is of another grey
    boxes = jnp.tile(BOXES, (16, 1))
    mixed = augment.mix_examples(keys, raw, jnp.arange(64), boxes, mixup=0.0, cutmix=1.0)
    pasted = np.asarray(mixed["image"] != raw)[..., 0]
    for i, box in enumerate(np.asarray(boxes)):
        low, high = np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])
        window = tuple(slice(round(96 * a), round(96 * b)) for a, b in zip(low, high, strict=True))
        assert pasted[i].sum() == pasted[i][window].sum()
        assert pasted[i][window].mean() == pytest.approx(1 - float(mixed["share"][i]), abs=0.06)
        rows, columns = (np.flatnonzero(pasted[i].any(axis=axis)) for axis in (1, 0))
        assert pasted[i].sum() == len(rows) * len(columns)
    assert np.asarray(mixed["share"]).std() > 0.1


def test_both_ways_are_taken_about_equally_often():
    keys = augment.example_keys(0, jnp.int32(1), jnp.arange(200))
    raw = jnp.zeros((200, 8, 8, 3)).at[::2].set(100.0)
    mixed = augment.mix_examples(keys, raw, jnp.arange(200), jnp.tile(BOXES[:1], (200, 1)), mixup=1.0, cutmix=1.0)
    averaged = np.asarray(((mixed["image"] > 1) & (mixed["image"] < 99)).all(axis=(1, 2, 3)))
    assert 70 < averaged.sum() < 130


def test_random_erasing_fills_one_rectangle():
    keys = augment.example_keys(0, jnp.int32(2), jnp.arange(64))
    views = jnp.tile(jnp.float32(images(1, 48)) + 0.5, (64, 1, 1, 1))
    erased = augment.random_erase(keys, views, probability=1.0, fill=(1.0, 2.0, 3.0))
    changed = np.asarray(erased != views).any(axis=-1)
    shares = changed.mean(axis=(1, 2))
    assert 0.01 < shares.min() < 0.08 and 0.25 < shares.max() < 0.4
    for one, pixels in zip(changed, np.asarray(erased), strict=True):
        assert one.sum() == one.any(axis=0).sum() * one.any(axis=1).sum()
        np.testing.assert_array_equal(pixels[one], np.tile([1.0, 2.0, 3.0], (one.sum(), 1)))
    none = augment.random_erase(keys, views, probability=0.0, fill=(1.0, 2.0, 3.0))
    np.testing.assert_array_equal(none, views)
    some = np.asarray(augment.random_erase(keys, views, probability=0.5, fill=(1.0, 2.0, 3.0)) != views)
    assert 15 < some.any(axis=(1, 2, 3)).sum() < 49


# --- Stochastic depth. ---


class Branches(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + DropPath(0.5, name="one")(x) + 10 * DropPath(0.5, name="two")(x)


def test_branches_are_left_out_for_examples_and_keep_their_mean():
    keys = augment.example_keys(0, jnp.int32(0), jnp.arange(2000))
    out = np.asarray(drop_path(keys, jnp.ones((2000, 2)), 0.2))
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.8)} and out.mean() == pytest.approx(1.0, abs=0.05)
    assert rising(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3]) and rising(0.3, 1) == [0.0]


def test_each_branch_and_each_look_draws_for_itself_and_only_in_training():
    keys, x, network = augment.example_keys(0, jnp.int32(0), jnp.arange(64)), jnp.ones((64, 1)), Branches()
    np.testing.assert_array_equal(network.apply({}, x), 12 * x)
    with dropping(keys):
        looks = [np.asarray(network.apply({}, x))[:, 0] for _ in range(2)]
    with dropping(keys[::-1]):
        turned = np.asarray(network.apply({}, x[::-1]))[::-1, 0]
    assert set(looks[0]) == {1.0, 3.0, 21.0, 23.0} and not np.array_equal(*looks)
    np.testing.assert_array_equal(turned, looks[0])  # of the example's key, wherever it stands in the batch
    np.testing.assert_array_equal(network.apply({}, x), 12 * x)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "convnext_tiny", "vit_small_patch16", "resnet50"])
def test_who_has_it(name):
    if name == "resnet50":
        with pytest.raises(ValueError, match="resnet50 has no stochastic depth"):
            BACKBONES[name](drop_path=0.1)
        return
    assert BACKBONES[name](drop_path=0.1).drop_path == 0.1


# --- Norms that are frozen. ---


def test_frozen_norms_use_and_keep_their_running_statistics():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BatchNorm(use_running_average=False, name="a")(x) + BatchNorm(use_running_average=False, name="b")(x)

    x = jnp.float32(np.random.default_rng(0).normal(3.0, 2.0, (8, 4, 4, 2)))
    variables = Two().init(jax.random.key(0), x)
    with frozen_statistics("^a$"):
        out, updated = Two().apply(variables, x, mutable=["batch_stats"])
    stats, before = updated["batch_stats"], variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, stats["a"], before["a"])
    assert not np.allclose(stats["b"]["mean"], before["b"]["mean"])
    normalised = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(out, x / np.sqrt(1 + 1e-5) + normalised, rtol=0, atol=1e-4)
    with frozen_statistics(""):
        _, updated = Two().apply(variables, x, mutable=["batch_stats"])
    assert not np.allclose(updated["batch_stats"]["a"]["mean"], before["a"]["mean"])


# --- In the step. ---

SMALL = functools.partial(
    ResNet,
    BasicBlock,
    **{"block_counts": (1, 1), "widths": (8, 16), "group_strides": (2, 2), "stem_width": 8, "stem_kernel": 3},
    stem_pool=False,
)


def test_frozen_parts_stay_layers_decay_and_averages_follow(monkeypatch):
    monkeypatch.setitem(backbones._CONSTRUCTORS, "resnet10_small", (SMALL, {8: {}}))
    common = {"method": "baseline", "optimizer__name": "sgd", "optimizer__warmup_epochs": 0.0}
    common |= {"optimizer__clip_norm": 0.0, "optimizer__momentum": 0.0, "optimizer__learning_rate": 0.1}
    run = build(
        tiny_config(
            **common,
            **{"optimizer__freeze": "^backbone/(conv1|bn1|layer1_0/bn)", "optimizer__layer_decay": 0.5},
            **{"optimizer__weight_decay": 0.1, "train__ema_decay": 0.15},
        )
    )
    state, batch = run.create_state(), jax.tree.map(jnp.asarray, dict(next(run.training_batches(0))))
    step = partial(steps.train_step, task=run.task, stage=run.stages[0], seed=0, ema_decay=0.15)
    program = jax.jit(step).lower(state, batch).compile(QUICKLY)
    states, metrics = [state], {}
    for _ in range(2):
        state, metrics = program(states[-1], batch)
        states.append(state)
    first, last = states[0], states[-1]

    def moved(*path):
        a, b = (functools.reduce(lambda tree, key: tree[key], path, tree) for tree in (first.params, last.params))
        return [bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]

    assert not any(moved("backbone", "conv1") + moved("backbone", "bn1") + moved("backbone", "layer1_0", "bn2"))
    assert all(moved("backbone", "layer1_0", "conv1") + moved("backbone", "layer2_0", "bn1") + moved("head"))
    for still, name in ((True, "bn1"), (True, "layer1_0"), (False, "layer2_0")):
        before, after = (s.batch_stats["coarse"]["backbone"][name] for s in (first, last))
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before, after)
        named = {k: v for k, v in same.items() if still is False or "downsample" not in k}
        assert all(jax.tree.leaves(named)) == still, name
    assert "nan" not in str(metrics) and len(jax.tree.leaves(last.opt_state)) < len(jax.tree.leaves(last.params))

    # By hand: kept = min(0.15, 1/10), then min(0.15, 2/11).
    tree = states[0].params["head"]["kernel"]
    for kept, after in zip((0.1, 0.15), states[1:], strict=True):
        tree = kept * tree + (1 - kept) * after.params["head"]["kernel"]
    np.testing.assert_allclose(last.average["params"]["head"]["kernel"], tree, rtol=0, atol=1e-6)
    mean = states[0].batch_stats["coarse"]["backbone"]["layer2_0"]["bn1"]["mean"]
    for kept, after in zip((0.1, 0.15), states[1:], strict=True):
        mean = kept * mean + (1 - kept) * after.batch_stats["coarse"]["backbone"]["layer2_0"]["bn1"]["mean"]
    found = last.average["batch_stats"]["coarse"]["backbone"]["layer2_0"]["bn1"]["mean"]
    np.testing.assert_allclose(found, mean, rtol=0, atol=1e-6)
    assert last.answers == (last.average["params"], last.average["batch_stats"])


def test_a_step_drops_channels_where_the_config_says_so(monkeypatch):
    """What the head learns of one example: nothing of the channels that it went without."""
    monkeypatch.setitem(backbones._CONSTRUCTORS, "resnet10_small", (SMALL, {8: {}}))
    run = build(tiny_config(method="baseline", model__channel_drop=0.75))
    state, batch = (
        run.create_state(),
        jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), dict(next(run.training_batches(0)))),
    )
    learn = partial(steps._loss_and_gradients, task=run.task, stage=run.stages[0], seed=0)
    kernel = jax.jit(learn).lower(state, batch).compile(QUICKLY)(state, batch)[0]["head"]["kernel"]
    assert kernel.shape[0] == 16 and np.sum(~np.asarray(kernel).any(axis=-1)) == 12
    other = make_task(tiny_config(model__channel_drop=0.75), num_classes=3, axis_name=None)
    assert other.network.channel_drop == 0.75


def test_layer_decay_by_hand():
    names = ("conv1", "layer1_0", "layer1_1", "layer2_0")
    params = {"backbone": {name: {"kernel": jnp.ones((1, 1))} for name in names}, "head": {"kernel": jnp.ones((1, 1))}}
    factors = {"backbone": 1.0, "head": 10.0, "region": 1.0}
    settings = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "factors": factors}
    tx = make_optimizer("sgd", optax.constant_schedule(0.1), **settings, layer_decay=0.5)
    updates, _ = tx.update(params, tx.init(params), params)
    found = [-float(updates["backbone"][name]["kernel"][0, 0]) for name in names]
    assert found == pytest.approx([0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2])
    assert float(updates["head"]["kernel"][0, 0]) == pytest.approx(-1.0)


def test_layers_are_counted_as_they_follow():
    tops = ["blocks_2", "blocks_10", "norm", "patch_embed_proj", "pos_embed", "norm_pre"]
    assert layer_numbers([(top, "x") for top in tops]) == [1, 2, 3, 0, 0, 0]
    paths = [("stages_1", "downsample_1"), ("stages_0", "blocks_1"), ("stages_1", "blocks_0"), ("stem_0", "bias")]
    assert layer_numbers(paths) == [2, 1, 2, 0]
    tops = ["conv_head", "blocks_1_0", "blocks_0_0", "bn2", "bn1", "conv_stem"]
    assert layer_numbers([(top, "x") for top in tops]) == [3, 2, 1, 3, 0, 0]


@pytest.mark.parametrize(
    "network",
    [ConvNeXt((1, 1), (8, 16)), VisionTransformer(24, 2, 2, 8), SMALL(), EfficientNetLite()],
    ids=["convnext", "vit", "resnet", "lite"],
)
def test_blocks_computed_again_give_the_same_gradient_and_keep_less_for_it(network):
    """What is kept is counted before compilation: XLA's CPU back end computes nothing twice, whatever it is asked."""
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 32, 32, 3)))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), x, train=False))

    def loss(params, stats, remat):
        with dropping(KEYS[:2]):
            out, _ = network.clone(remat=remat).apply(
                {"params": params, **stats}, x, train=True, mutable=["batch_stats"]
            )
        return jnp.sum(jnp.sin(out))

    def kept(remat):
        params, stats = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        backward = jax.eval_shape(lambda p, s: jax.vjp(lambda p: loss(p, s, remat), p)[1], params, stats)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables["params"]))
    assert kept(True) - parameters < 0.7 * (kept(False) - parameters)
    if isinstance(network, EfficientNetLite):
        return  # takes long to compile
    values = network.init(jax.random.key(0), x, train=False)
    stats = {k: v for k, v in values.items() if k != "params"}
    gradients = [
        jax.jit(jax.grad(lambda p, remat=remat: loss(p, stats, remat)))
        .lower(values["params"])
        .compile(QUICKLY)(values["params"])
        for remat in (False, True)
    ]
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale), *gradients)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer__freeze": "backbone/("}, r"optimizer.freeze='backbone/\(' is not a regular expression"),
        ({"optimizer__freeze": "layer9"}, "is found in none of the .* parameters' paths, such as .*backbone"),
        ({"optimizer__freeze": ""}, None),
        ({"optimizer__freeze": "."}, "is found in all of the"),
        ({"model__backbone": "vit_small_patch16", "region__view_size": 50}, "only, .* --config.region.view_size=0, or"),
        ({"model__drop_path": 0.1}, "resnet10_small has no stochastic depth; give --config.model.drop_path=0.0"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    if message is None:
        build(tiny_config(**settings))
        return
    with pytest.raises(UserError, match=message) as error:
        build(tiny_config(**settings))
    assert str(error.value).isprintable()


# --- All of them, in a run. ---


@pytest.mark.slow
def test_a_run_with_all_of_them_goes_on_bit_for_bit(tmp_path, monkeypatch):
    tiny = functools.partial(VisionTransformer, width=24, depth=2, heads=2, patch=8)
    monkeypatch.setitem(backbones._CONSTRUCTORS, "vit_small_patch16", (tiny, {8: {}}))
    config = tiny_config(
        **{"model__backbone": "vit_small_patch16", "model__drop_path": 0.3, "model__remat": True},
        **{"augment__erase": 0.5, "augment__mixup": 0.2, "augment__cutmix": 1.0, "loss__label_smoothing": 0.1},
        **{"augment__flip_vertical": True, "model__channel_drop": 0.2},
        **{"optimizer__freeze": "patch_embed", "optimizer__layer_decay": 0.8, "train__ema_decay": 0.9},
        **{"stages__coarse_epochs": 0.0, "stages__fine_epochs": 0.6, "optimizer__warmup_epochs": 0.1},
    )
    whole = train_and_evaluate(config, tmp_path / "whole")
    run = build(config)
    final = latest_step(tmp_path / "whole")

    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / str(final))
    (tmp_path / "again" / "results.json").unlink()
    assert latest_step(tmp_path / "again") < final
    again = train_and_evaluate(config, tmp_path / "again")
    states = [jax.device_get(read(tmp_path / name, final, run.abstract_state(final))) for name in ("whole", "again")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert {k: v for k, v in whole.items() if "/" in k} == {k: v for k, v in again.items() if "/" in k}

    # The averages have columns of their own, and answer.
    state = states[0]
    assert whole["trained_fused/loss"] != whole["fused/loss"]
    found = evaluate_checkpoint(config, tmp_path / "whole")
    assert found["fused/loss"] == pytest.approx(whole["fused/loss"], rel=1e-6)
    assert found["calibrated/loss"] == pytest.approx(whole["calibrated/loss"], rel=1e-6)
    kernel = state.params["backbone"]["patch_embed_proj"]["kernel"]
    np.testing.assert_array_equal(kernel, run.create_state().params["backbone"]["patch_embed_proj"]["kernel"])
