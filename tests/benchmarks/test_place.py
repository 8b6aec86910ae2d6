"""What features know of a place: cells, probe and agreement by hand, and a tiny run against its own evaluation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import place
from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.training.steps import predict
from tests.kernels import oracles
from tests.tiny import tiny_config


def test_cells_of_a_box_and_its_box_again():
    boxes = jnp.array([[0.25, 0.0, 0.75, 0.5], [0.13, 0.13, 0.38, 0.99]])
    cells = place.cells_of(boxes, 4, 4)
    np.testing.assert_array_equal(cells[0], [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    # Middles lie at 0.125, 0.375, 0.625 and 0.875.
    np.testing.assert_array_equal(cells[1], [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    again = place.box_of_cells(cells, min_side=0.01, max_side=1.0, temperature=1e-3)
    np.testing.assert_allclose(again, [[0.25, 0.0, 0.75, 0.5], [0.25, 0.25, 0.5, 1.0]], atol=3e-3)


def test_the_probe_is_a_ridge_regression():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.0, 0.5, (12, 4)) + [0, 0, 0.5, 0.5]
    features = rng.normal(size=(12, 5, 5, 3)) + 2.0
    mask = np.array([1.0] * 10 + [0.0] * 2)
    batches = [
        {"features": features[part], "object": boxes[part], "mask": mask[part]} for part in (slice(7), slice(7, 12))
    ]
    as_float32 = partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
    got = place.fit_probe(batches, as_float32)

    inputs = features[:10].reshape(-1, 3)
    target = np.asarray(place.cells_of(jnp.asarray(boxes[:10]), 5, 5)).reshape(-1)
    # The penalty as further examples, the constant free: an ordinary least-squares problem.
    centred = inputs - inputs.mean(axis=0)
    penalty = np.sqrt(len(inputs) * place.RIDGE * np.mean(np.var(inputs, axis=0))) * np.eye(3)
    weights, *_ = np.linalg.lstsq(
        np.concatenate([centred, penalty]), np.concatenate([target - target.mean(), np.zeros(3)])
    )
    np.testing.assert_allclose(got, [*weights, target.mean() - inputs.mean(axis=0) @ weights], rtol=1e-4)


def test_agreement_by_hand():
    annotated = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1]], np.float32)
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 0.7], [0, 0, 1, 0.6]], np.float32)
    got = place.agreement(boxes, annotated)
    assert got["iou"] == pytest.approx((1.0 + 0.4 + 0.6) / 3) and got["over_half"] == pytest.approx(2 / 3)
    assert got["area"] == pytest.approx((0.25 + 0.1 + 0.6) / 3)
    sizes = np.log([0.25, 0.1, 0.6]), np.log([0.25, 0.25, 1.0])
    assert got["size"] == pytest.approx(np.corrcoef(*sizes)[0, 1])
    along = np.corrcoef([0.5, 1.5, 1.0], [0.5, 1.5, 1.0])[0, 1], np.corrcoef([0.5, 1.2, 0.6], [0.5, 1.5, 1.0])[0, 1]
    assert got["centre"] == pytest.approx(np.mean(along))
    constant = place.agreement(np.broadcast_to(annotated[:1], (3, 4)), annotated)
    assert constant["size"] is None and constant["centre"] is None


def test_boxes_above_a_background():
    """Against the kernels' oracles; the image that fills the batch up is left out."""
    rng = np.random.default_rng(0)
    mean = rng.exponential(size=(3, 5, 4)).astype(np.float32)
    boxes = np.tile(np.array([0.0, 0.0, 0.5, 0.5], np.float32), (3, 1))
    batch = {"features": np.zeros((3, 5, 4, 2), np.float32), "mean": mean, "attention": boxes, "object": boxes}
    limits = {"min_side": 0.3, "max_side": 1.0}
    got = place.boxes_of([{**batch, "mask": np.array([1.0, 1.0, 0.0])}], lambda batch: batch, np.zeros(3), **limits)
    for name, low, kappa in (
        ("floor 0", {}, 1.4),
        ("floor 0.3", {"floor": 0.3}, 2.6),
        ("background 1", {"background": 1.0}, 2.6),
    ):
        q = [oracles.region_distribution(one, np.zeros((5, 4)), **low) for one in mean[:2]]
        expected = [oracles.soft_box(one, kappa, **limits, temperature=0.05) for one in q]
        np.testing.assert_allclose(got[f"{name} {kappa}"], expected, atol=1e-5)
    np.testing.assert_allclose(got["level"], [one.min() / one.max() for one in mean[:2]], rtol=1e-6)


def test_the_box_of_a_run_with_a_side_is_where_it_looks_again():
    run = build(tiny_config(region__side=0.4, augment__test_side=0.8))
    state = run.create_state()
    batch = next(iter(run.evaluation_batches(run.splits.test)))
    looked = predict(run.task, state.params, state.batch_stats, batch)["fine"]
    got = place.see(run.task, state.params, state.batch_stats, batch)["attention"]
    np.testing.assert_allclose(0.1 + 0.8 * got, looked.box, atol=1e-6)  # in the view, and in the photo


@pytest.mark.slow
def test_a_tiny_run(finished):
    workdir, results = finished
    run = build(tiny_config())
    _, read = read_latest(workdir, run.abstract_model)
    model = read["params"], read["batch_stats"]
    found = dict(place.measure(run, partial(jax.jit(partial(place.see, run.task)), *model)))
    # The coarse view in tests is the whole image here, so the box is the one that the run measured.
    assert found["attention"]["iou"] == pytest.approx(results["box/mean_iou"], abs=1e-5)
    assert found["cells"]["iou"] > max(found[kind]["iou"] for kind in ("central", "attention", "probe"))
    assert found["central"]["size"] is None
