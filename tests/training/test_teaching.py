"""The table in a view's cells, against SciPy; the loss and its gradient; what it teaches."""

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
from c2f_jax.training.teaching import cover, drawn_place, evidence_at, teaching_loss
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
    place = drawn_place(keys, jnp.broadcast_to(logits, (len(keys), 2, 2)), cell_offset=0.0, sharpness=2.0)
    assert jnp.all((place >= 0) & (place < 1))
    cell = np.floor(np.asarray(place) * 2) @ [2, 1]
    shares = np.bincount(cell.astype(int), minlength=4) / len(keys)
    np.testing.assert_allclose(shares, np.array([1, 4, 9, 16]) / 30, atol=0.015)
    within = np.asarray(place) * 2 % 1
    np.testing.assert_allclose([within.mean(), within.std()], [0.5, 12**-0.5], atol=0.01)


@pytest.mark.parametrize("box_gradient", ["mapping", "all"])
def test_what_a_table_teaches(box_gradient):
    """The region's own gradient by the table: of the score head, and under "all" of what it looks at."""
    config = tiny_config(region__side=0.42, region__teach=1.0, region__box_gradient=box_gradient)
    run = build(config)
    stage, state = run.stages[0], run.create_state()
    table = np.random.default_rng(0).normal(size=(len(run.labels), GRID, GRID))
    batch = jax.tree.map(jnp.asarray, dict(next(run.training_batches(stage.start, table))))
    assert batch["evidence"].shape == (8, GRID, GRID)
    score = state.params["inverse_mapping"]["score"]
    moved = {**score, "kernel": jax.random.normal(jax.random.key(2), score["kernel"].shape)}
    state = state.replace(
        params={**state.params, "inverse_mapping": {**state.params["inverse_mapping"], "score": moved}}
    )
    compute = jax.jit(partial(steps._loss_and_gradients, task=run.task, stage=stage, seed=0))
    taught, metrics, *_ = compute(state, batch)
    other, *_ = compute(state, {**batch, "evidence": batch["evidence"][::-1]})
    assert metrics["teaching_loss"] > 0
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), taught, other)
    largest = {name: max(jax.tree.leaves(part)) for name, part in change.items()}
    assert largest["inverse_mapping"] > 1e-4 and largest["head"] == 0
    for below in ("attention", "backbone"):
        assert (largest[below] > 0) is (box_gradient == "all"), largest
