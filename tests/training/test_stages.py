"""A stage is data; one state goes through all of them."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c2f_jax.runs.build import build
from c2f_jax.runs.methods import make_task
from c2f_jax.training import losses
from c2f_jax.training.augment import example_keys
from c2f_jax.training.optimizer import make_optimizer, make_schedule
from c2f_jax.training.stages import Stage, stage_at, stage_of_checkpoint
from c2f_jax.training.steps import predict
from tests.tiny import tiny_config


def stage(name, start, steps):
    return Stage(name, start, steps, loss=lambda: None, tx=optax.identity(), schedule=lambda step: 0.0)


STAGES = (stage("coarse", 0, 3), stage("fine", 3, 2))


@pytest.mark.parametrize(
    ("step", "owner", "saved_by"),
    [(0, "coarse", "coarse"), (2, "coarse", "coarse"), (3, "fine", "coarse"), (4, "fine", "fine")],
)
def test_owner_of_a_step_and_of_its_checkpoint(step, owner, saved_by):
    assert stage_at(STAGES, step).name == owner
    assert stage_of_checkpoint(STAGES, step).name == saved_by


def test_steps_beyond_the_end():
    assert stage_of_checkpoint(STAGES, 5).name == "fine"
    with pytest.raises(ValueError, match="no stage owns step 5; they own steps 0 to 4"):
        stage_at(STAGES, 5)


def test_cosine_schedule_by_hand():
    schedule = make_schedule("cosine", learning_rate=0.2, steps=10, warmup_steps=2)
    expected = [0.0, 0.1, 0.2, 0.2 * 0.5 * (1 + np.cos(np.pi * 4 / 8)), 0.0]
    np.testing.assert_allclose([schedule(i) for i in (0, 1, 2, 6, 10)], expected, atol=1e-7)


def test_exponential_schedule_is_the_ancestors():
    schedule = make_schedule("exponential", learning_rate=1e-3, steps=100, decay_rate=0.9, decay_steps=10)
    np.testing.assert_allclose([schedule(i) for i in (0, 9, 10, 25)], [1e-3, 1e-3, 9e-4, 8.1e-4], rtol=1e-6)


def test_sgd_by_hand():
    """Two steps of torch's SGD with Nesterov momentum and weight decay, written out."""
    params = {"backbone": {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([0.5])}, "head": {"w": jnp.array([[3.0]])}}
    grads = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), params)
    tx = make_optimizer(
        "sgd",
        optax.constant_schedule(0.1),
        momentum=0.9,
        weight_decay=0.01,
        clip_norm=0.0,
        factors={"backbone": 1.0, "head": 10.0, "region": 0.1},
    )
    state, got = tx.init(params), params
    expected = {"w": np.array([[1.0, -2.0]]), "b": np.array([0.5]), "h": np.array([[3.0]])}
    buffers = {name: np.zeros_like(value) for name, value in expected.items()}
    for _ in range(2):
        updates, state = tx.update(grads, state, got)
        got = optax.apply_updates(got, updates)
        for name, rate, decay in (("w", 0.1, 0.01), ("b", 0.1, 0.0), ("h", 1.0, 0.01)):
            gradient = 0.1 + decay * expected[name]
            buffers[name] = 0.9 * buffers[name] + gradient
            expected[name] = expected[name] - rate * (gradient + 0.9 * buffers[name])
    np.testing.assert_allclose(got["backbone"]["w"], expected["w"], rtol=1e-5)
    np.testing.assert_allclose(got["backbone"]["b"], expected["b"], rtol=1e-5)
    np.testing.assert_allclose(got["head"]["w"], expected["h"], rtol=1e-5)


def test_clipping_bounds_the_step():
    params = {"head": {"w": jnp.zeros((2, 2))}}
    tx = make_optimizer(
        "sgd",
        optax.constant_schedule(1.0),
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=5.0,
        factors={"head": 1.0},
    )
    updates, _ = tx.update({"head": {"w": jnp.full((2, 2), 100.0)}}, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 5.0, rtol=1e-5)


def test_random_boxes_take_the_learned_ones_place(monkeypatch):
    """The stages of coarse2fine; fine views are squares inside the coarse ones, other ones at each step."""
    run = build(tiny_config(method="random_box", region__min_side=0.4, region__max_side=0.6))
    learned = build(tiny_config())
    assert [(s.name, s.start, s.steps) for s in run.stages] == [(s.name, s.start, s.steps) for s in learned.stages]

    regions = []

    def record(*args, region, **settings):
        regions.append(region({}, jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), (64, 1))))
        raise StopIteration

    monkeypatch.setattr(losses, "two_looks", record)
    batch = {"image": jnp.zeros((64, 8, 8, 3), jnp.uint8), "place": jnp.full((64, 2), 0.5)}
    for step in (0, 0, 1):
        keys = example_keys(0, jnp.array(step), jnp.arange(64))
        with pytest.raises(StopIteration):
            run.stages[-1].loss(run.task, {}, {}, SimpleNamespace(batch_stats={}), batch, keys)
    first, again, other = (np.asarray(boxes) for boxes in regions)
    sides = first[:, 2:] - first[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], atol=1e-6)
    assert 0.4 <= sides.min() < 0.45 and 0.55 < sides.max() <= 0.6 + 1e-6
    assert first.min() >= 0.0 and first.max() <= 1.0 and np.ptp(first[:, 0]) > 0.3
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


@pytest.mark.parametrize("view", [[0.1, 0.2, 0.9, 1.0], [0.1, 1.0, 0.9, 0.2]])
def test_random_squares_are_as_large_as_the_learned_ones(view):
    """Anywhere in the view, which may be mirrored."""
    keys, views = example_keys(0, jnp.array(0), jnp.arange(200)), jnp.tile(jnp.array(view), (200, 1))
    squares = losses.random_square(keys, {}, views, side=0.3)
    np.testing.assert_allclose(squares[:, 2] - squares[:, 0], 0.3, atol=1e-6)
    np.testing.assert_allclose(squares[:, 3] - squares[:, 1], np.sign(view[3] - view[1]) * 0.3, atol=1e-6)
    low, high = (np.asarray(take(squares[:, :2], squares[:, 2:])) for take in (jnp.minimum, jnp.maximum))
    assert (low >= [0.1 - 1e-6, 0.2 - 1e-6]).all() and (high <= [0.9 + 1e-6, 1.0 + 1e-6]).all()
    assert np.ptp(low, axis=0).min() > 0.45  # of the half that there is
    assert build(tiny_config(method="random_box", region__side=0.3)).stages[-1].loss.keywords["region"].keywords == {
        "side": 0.3
    }


def test_coarse_boxes_lie_in_the_raw_image_and_are_told_in_the_photo():
    """In tests the middle of the raw image, which is the middle half of a photo twice as wide as it is high."""
    task = make_task(tiny_config(augment__test_side=0.5), num_classes=3, axis_name=None)
    window = jnp.tile(jnp.array([0.0, 0.25, 1.0, 0.75]), (4, 1))
    batch = {"image": jnp.zeros((4, 64, 64, 3), jnp.uint8), "window": window}
    state = jax.eval_shape(lambda: task.network.init(jax.random.key(0), jnp.zeros((4, 32, 32, 3)), train=False))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    stats = {"coarse": zeros["batch_stats"], "fine": zeros["batch_stats"]}
    central = np.asarray(predict(task, zeros["params"], stats, batch)["coarse"].box)
    np.testing.assert_allclose(central, [[0.25, 0.375, 0.75, 0.625]] * 4)


def test_the_drop_view_is_a_third_of_the_loss(monkeypatch):
    """Beside the same two looks; where nothing is dropped it is the coarse view again."""
    batch, values = None, {}
    for name, drop_view in (("two", False), ("three", True), ("nothing dropped", True)):
        run = build(tiny_config(loss__drop_view=drop_view))
        if batch is None:
            batch = jax.tree.map(jnp.asarray, dict(next(run.training_batches(0))))
        if name == "nothing dropped":
            monkeypatch.setattr(losses, "drop_mask", lambda maps, thresholds: jnp.ones_like(maps, bool))
        state, keys = run.create_state(), example_keys(0, jnp.array(0), batch["row"])
        _, aux = jax.jit(partial(run.stages[-1].loss, run.task))(state.params, {}, state, batch, keys)
        values[name] = {key: float(value) for key, value in aux.metrics.items()}
    two, three, same = values["two"], values["three"], values["nothing dropped"]
    assert "drop/loss" not in two
    for view in ("coarse", "fine"):
        assert three[f"{view}/loss"] == pytest.approx(two[f"{view}/loss"], rel=1e-5)
    views = np.mean([three[f"{view}/loss"] for view in ("coarse", "fine", "drop")])
    assert three["loss"] == pytest.approx(views + three["center_loss"], rel=1e-5)
    assert abs(three["drop/loss"] / three["coarse/loss"] - 1) > 1e-4
    assert same["drop/loss"] == pytest.approx(same["coarse/loss"], rel=1e-5)
