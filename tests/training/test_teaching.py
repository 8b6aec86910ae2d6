"""The table in a view's cells, against SciPy; the loss and its gradient; what it teaches."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator
from scipy.special import softmax

from c2f_jax.kernels import compose
from c2f_jax.runs.build import build
from c2f_jax.training import steps
from c2f_jax.training.teaching import comparison_loss, cover, drawn_places, evidence_at, teaching_loss
from c2f_jax.training.train_state import switch_stage
from tests.tiny import tiny_config

SIDE, GRID = 0.4, 6
WINDOW = jnp.array([[0.0, 0.2, 1.0, 0.8], [0.25, 0.0, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0]])
# The first upside down, the second mirrored, the third both.
VIEW = jnp.array([[0.9, 0.0, 0.1, 0.8], [0.0, 1.0, 0.9, 0.1], [1.0, 1.0, 0.0, 0.0]])


def squares():
    """[3, G, G, 4] in the photos, from their definition."""
    boxes = np.empty((3, GRID, GRID, 4))
    for i, (y0, x0, y1, x1) in enumerate(np.asarray(WINDOW, np.float64)):
        h, w = SIDE * (y1 - y0), SIDE * (x1 - x0)
        for row in range(GRID):
            for column in range(GRID):
                y, x = row / (GRID - 1) * (1 - h), column / (GRID - 1) * (1 - w)
                boxes[i, row, column] = y, x, y + h, x + w
    return boxes


@pytest.mark.parametrize("cell_offset", [0.0, 0.25])
def test_means_over_the_squares(cell_offset):
    """Of maps that are coordinates: cells of 1/40, so a mean is the square's middle to that."""
    edges = (np.arange(41) - cell_offset) / 40
    middles = jnp.asarray((edges[1:] + edges[:-1]) / 2)
    rows, columns = cover(WINDOW, cells=40, side=SIDE, grid=GRID, cell_offset=cell_offset)
    assert rows.shape == columns.shape == (3, GRID, 40)
    np.testing.assert_allclose(rows.sum(-1), 1.0, rtol=1e-5)
    boxes = squares()
    for weights, axis in ((rows, 0), (columns, 1)):
        middle = 0.5 * (boxes[..., axis] + boxes[..., axis + 2]).mean(axis=2 - axis)
        np.testing.assert_allclose(weights @ middles, middle, atol=0.5 * (0.5 + cell_offset) / 40)
        np.testing.assert_allclose((weights > 0).sum(-1) / 40, boxes[:, 0, 0, axis + 2, None] + 0 * middle, atol=0.051)


@pytest.mark.parametrize("cell_offset", [-0.25, 0.0, 0.25])
def test_squares_beyond_all_cells_take_the_nearest(cell_offset):
    """At the rim of a photo thirty times as long as high, whose cells lie off what they show."""
    window = jnp.array([[0.0, 0.5, 1.0, 0.5 + 1 / 30]])
    rows, columns = cover(window, cells=26, side=0.2, grid=12, cell_offset=cell_offset)
    for weights in (rows, columns):
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose([columns[0, 0, 0], columns[0, -1, -1]], 1.0, rtol=1e-5)


@pytest.mark.parametrize("cell_offset", [0.0, 0.25])
def test_evidence_is_interpolated_at_the_cells_middles(cell_offset):
    table = np.random.default_rng(0).normal(size=(3, GRID, GRID))
    cells = (5, 7)
    got = evidence_at(jnp.asarray(table), WINDOW, VIEW, cells=cells, side=SIDE, cell_offset=cell_offset)
    boxes, photos = squares(), np.asarray(compose(WINDOW, VIEW))
    for i in range(3):
        centres = (boxes[i, ..., :2] + boxes[i, ..., 2:]) / 2
        look_up = RegularGridInterpolator((centres[:, 0, 0], centres[0, :, 1]), table[i])
        (y0, x0, y1, x1), (h, w) = photos[i], cells
        for row in range(h):
            for column in range(w):
                y = y0 + (y1 - y0) * (row + 0.5 - cell_offset) / h
                x = x0 + (x1 - x0) * (column + 0.5 - cell_offset) / w
                y, x = np.clip([y, x], centres[0, 0], centres[-1, -1])
                np.testing.assert_allclose(got[i, row, column], look_up([y, x])[0], atol=1e-4)


def test_a_square_as_large_as_the_photo_has_one_place():
    table = jnp.arange(36.0).reshape(1, 6, 6)
    got = evidence_at(table, WINDOW[2:], VIEW[2:], cells=(4, 4), side=1.0)
    assert jnp.all(jnp.isfinite(got))


def test_the_losss_gradient_is_q_minus_the_posterior():
    logits, evidence = (jax.random.normal(jax.random.key(i), (2, 3, 4)) for i in range(2))
    gradient = jax.grad(teaching_loss)(logits, evidence)
    q, t = (softmax(np.asarray(x).reshape(2, -1), axis=-1).reshape(2, 3, 4) for x in (logits, logits + evidence))
    np.testing.assert_allclose(gradient, (q - t) / 2, atol=1e-6)
    likelihood = np.sum(q * np.exp(evidence - evidence.max((1, 2), keepdims=True)), axis=(1, 2))
    np.testing.assert_allclose(teaching_loss(logits, evidence), -np.log(likelihood).mean(), rtol=1e-5)
    best = 50.0 * (evidence == evidence.max((1, 2), keepdims=True))
    np.testing.assert_allclose(teaching_loss(best, evidence), 0.0, atol=1e-6)


def test_places_are_drawn_by_the_sharpened_distribution():
    logits = jnp.log(jnp.array([[[0.1, 0.2], [0.3, 0.4]]]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = partial(drawn_places, count=2, cell_offset=0.0, sharpness=2.0)
    cells, places = drawn(keys, jnp.broadcast_to(logits, (len(keys), 2, 2)))
    assert jnp.all((places >= 0) & (places < 1))
    np.testing.assert_array_equal(cells, (np.floor(np.asarray(places) * 2) @ [2, 1]).astype(int))
    both = np.bincount(np.asarray(cells) @ [4, 1], minlength=16).reshape(4, 4) / len(keys)
    shares = np.array([1, 4, 9, 16]) / 30
    np.testing.assert_allclose(both, np.outer(shares, shares), atol=0.015)  # one draw says nothing of the other
    within = np.asarray(places) * 2 % 1
    np.testing.assert_allclose([within.mean(), within.std()], [0.5, 12**-0.5], atol=0.01)


def test_comparing_drawn_places():
    """By the chosen logits 1/K - t, and nothing by what the looks told; a place drawn twice has both its shares."""
    logits, told = jax.random.normal(jax.random.key(0), (2, 3, 4)), -jnp.array([[0.1, 2.0, 2.0], [1.0, 0.5, 3.0]])
    cells = jnp.array([[0, 5, 11], [7, 7, 2]])
    loss = partial(comparison_loss, sharpness=3.0)
    value, (gradient, by_told) = jax.value_and_grad(loss, argnums=(0, 2))(logits, cells, told)
    np.testing.assert_allclose(value, -np.log(np.exp(told).mean(1)).mean() / 3, rtol=1e-6)
    want = np.zeros((2, 12))
    np.add.at(want, (np.arange(2)[:, None], cells), (1 / 3 - softmax(np.asarray(told), axis=1)) / 2)
    np.testing.assert_allclose(gradient, want.reshape(2, 3, 4), atol=1e-6)
    assert not np.any(by_told)


def test_comparing_finds_the_place_that_tells():
    """From places that are all alike to the one where a look is sure of the label: 0.9, and 0.2 elsewhere."""

    @jax.jit
    def step(key, logits):
        cells, _ = drawn_places(jax.random.split(key, 64), logits, count=4, cell_offset=0.0, sharpness=3.0)
        told = jnp.log(jnp.where(cells == 6, 0.9, 0.2))
        return logits - 64 * 0.05 * jax.grad(comparison_loss)(logits, cells, told, sharpness=3.0)

    logits = jnp.zeros((64, 4, 4))
    for number in range(200):
        logits = step(jax.random.key(number), logits)
    found = softmax(3.0 * np.asarray(logits).reshape(64, 16), axis=-1)
    assert np.mean(found.argmax(-1) == 6) > 0.9 and found[:, 6].mean() > 0.8


def with_a_score(state):
    """The state with a score head that is not at its zero start, where only its last layer has a gradient."""
    score = state.params["inverse_mapping"]["score"]
    moved = {**score, "kernel": jax.random.normal(jax.random.key(2), score["kernel"].shape)}
    return state.replace(
        params={**state.params, "inverse_mapping": {**state.params["inverse_mapping"], "score": moved}}
    )


def largest_of(change):
    return {name: max(jax.tree.leaves(part)) for name, part in change.items()}


@pytest.mark.parametrize("box_gradient", ["mapping", "all"])
def test_what_second_looks_teach(box_gradient):
    """The region's own gradient by what they tell; of the classifier, and of running statistics, nothing."""
    run = build(tiny_config(region__side=0.42, region__teach=1.0, region__box_gradient=box_gradient))
    stage, state = run.stages[1], with_a_score(switch_stage(run.create_state(), run.stages[1]))
    batch = jax.tree.map(jnp.asarray, dict(next(run.training_batches(stage.start))))
    tasks = (run.task, replace(run.task, teach=0.0))
    compute = [jax.jit(partial(steps._loss_and_gradients, task=task, stage=stage, seed=0)) for task in tasks]
    (taught, metrics, stats, _), (untaught, _, same_stats, _) = (one(state, batch) for one in compute)
    assert metrics["teaching_loss"] > 0
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), stats, same_stats)
    largest = largest_of(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), taught, untaught))
    assert largest["inverse_mapping"] > 1e-4 and largest["head"] < 1e-6
    for below in ("attention", "backbone"):
        assert (largest[below] > 1e-5) is (box_gradient == "all"), largest


@pytest.mark.parametrize("box_gradient", ["mapping", "all"])
def test_what_a_table_teaches(box_gradient):
    """The region's own gradient by the table: of the score head, and under "all" of what it looks at."""
    config = tiny_config(region__side=0.42, region__teach=1.0, region__box_gradient=box_gradient)
    run = build(config)
    stage, state = run.stages[0], with_a_score(run.create_state())
    table = np.random.default_rng(0).normal(size=(len(run.labels), GRID, GRID))
    batch = jax.tree.map(jnp.asarray, dict(next(run.training_batches(stage.start, table))))
    assert batch["evidence"].shape == (8, GRID, GRID)
    compute = jax.jit(partial(steps._loss_and_gradients, task=run.task, stage=stage, seed=0))
    taught, metrics, *_ = compute(state, batch)
    other, *_ = compute(state, {**batch, "evidence": batch["evidence"][::-1]})
    assert metrics["teaching_loss"] > 0
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), taught, other)
    largest = largest_of(change)
    assert largest["inverse_mapping"] > 1e-4 and largest["head"] == 0
    for below in ("attention", "backbone"):
        assert (largest[below] > 0) is (box_gradient == "all"), largest
