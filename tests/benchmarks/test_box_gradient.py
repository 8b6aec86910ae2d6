"""How far the box's gradient sees: by hand, and on a tiny run, where a short enough step must go as promised."""

from dataclasses import fields

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import box_gradient
from benchmarks.ablation_row import looks_of, measure
from c2f_jax.kernels import compose
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import read_latest
from tests.tiny import tiny_config


def test_boxes_are_moved_by_pixels_of_their_view():
    # A view of 10 px: a pixel is a tenth of the box's sides. The second box is mirrored.
    boxes = np.array([[0.2, 0.4, 0.6, 0.8], [0.2, 0.8, 0.6, 0.4]], np.float32)
    moved = {name: box_gradient.moved(boxes, way, 2.0, 10) for name, way in box_gradient.WAYS.items()}
    np.testing.assert_allclose(moved["y"], [[0.28, 0.4, 0.68, 0.8], [0.28, 0.8, 0.68, 0.4]], atol=1e-6)
    np.testing.assert_allclose(moved["x"], [[0.2, 0.48, 0.6, 0.88], [0.2, 0.72, 0.6, 0.32]], atol=1e-6)
    np.testing.assert_allclose(moved["wider"], [[0.16, 0.36, 0.64, 0.84], [0.16, 0.84, 0.64, 0.36]], atol=1e-6)


def test_promises_and_findings_by_hand():
    slopes, found = np.array([1.0, -1.0, 3.0, 1.0]), np.array([2.0, -2.0, 6.0, -2.0])
    got = box_gradient.horizon(slopes, found, 2.0)
    assert got["same_sign"] == 0.75
    assert got["promised"] == pytest.approx(np.sqrt((4 + 4 + 36 + 4) / 4))
    assert got["found"] == pytest.approx(np.sqrt((4 + 4 + 36 + 4) / 4))
    assert (got["mean"], got["deviation"]) == (1.0, pytest.approx(np.sqrt(8 / 3)))
    assert got["correlation"] == pytest.approx(np.corrcoef(slopes, found)[0, 1])
    assert box_gradient.horizon(slopes, 2 * slopes, 2.0)["correlation"] == pytest.approx(1.0)


class InWindows(Run):
    """The same raw images, but as windows of larger photos: what is seen and measured in them is the same."""

    def evaluation_batches(self, source):
        for batch in super().evaluation_batches(source):
            window = jnp.tile(jnp.array([0.0, 0.2, 1.0, 0.8]), (len(batch["box"]), 1))
            yield {**batch, "window": window, "box": compose(window, batch["box"])}


@pytest.mark.slow
def test_a_short_step_goes_as_promised(finished, monkeypatch):
    monkeypatch.setattr(box_gradient, "PIXELS", (0.01,))
    monkeypatch.setattr(box_gradient, "SHARES", (0.0002, 1.0))
    workdir, results = finished
    run = build(tiny_config())
    windows = InWindows(**{field.name: getattr(run, field.name) for field in fields(run)})
    *short, all_the_way = box_gradient.measure(windows, workdir, "test", 21)
    assert [line["way"] for line in short] == [*box_gradient.WAYS, "object"]
    for line in short:
        assert line["correlation"] > 0.95 and line["promised"] == pytest.approx(line["found"], rel=0.2), line

    # At the end of the way the loss is that of a second look at the annotated boxes.
    _, read = read_latest(workdir, run.abstract_model)
    looks = looks_of(run.task, read["params"])
    there = measure(
        run.evaluation_batches(run.splits.test), lambda batch: looks(read["batch_stats"], batch, ["object"])
    )
    change = there["object"].metrics["fine/loss"] - results["fine/loss"]
    assert abs(change) > 1e-3 and all_the_way["change"] == pytest.approx(change, abs=1e-4)
