"""The sheet of attention maps: its mosaic by hand, its maps against the evaluation's own."""

import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import attention_maps
from c2f_jax.runs.build import build
from tests.tiny import tiny_config


def test_a_mosaic_is_read_row_by_row():
    maps = np.stack([np.full((2, 1), float(i)) for i in range(3)], axis=-1)
    gap = np.nan
    expected = [[0, gap, 1], [0, gap, 1], [gap, gap, gap], [2, gap, gap], [2, gap, gap]]
    np.testing.assert_array_equal(attention_maps.mosaic(maps), expected)


def test_the_commonest_peak():
    maps = np.zeros((4, 2, 2, 2))
    maps[:, 0, 1, 0] = 1.0
    maps[2, 1, 0] = 3.0  # of four images one peaks elsewhere
    assert attention_maps.same_peak(maps) == 0.75


def overlap(maps):
    """Mean cosine of two maps of an image [B, H, W, M], over all pairs that are not 0."""
    flat = maps.reshape(len(maps), -1, maps.shape[-1])
    lengths = np.linalg.norm(flat, axis=1)
    pairs = [(i, j, k) for i in range(len(maps)) for j in range(maps.shape[-1]) for k in range(j)]
    return np.mean([flat[i, :, j] @ flat[i, :, k] / p for i, j, k in pairs if (p := lengths[i, j] * lengths[i, k])])


@pytest.mark.slow
def test_maps_before_and_after_a_run(finished, tmp_path, monkeypatch):
    workdir, results = finished
    run = build(tiny_config(train__eval_batch_size=24))  # all 21 test images in one batch
    before, after, boxes = attention_maps.maps_of(run, workdir)
    assert before.shape == after.shape == (21, *after.shape[1:3], 4) and boxes.shape == (21, 4)
    assert overlap(after) == pytest.approx(results["attention/overlap"], abs=1e-5)
    assert abs(overlap(before) - results["attention/overlap"]) > 1e-3
    # The coarse view in tests is the whole image here: boxes are the annotation's.
    np.testing.assert_allclose(boxes[5], run.splits.test[5]["box"], atol=1e-6)

    output = tmp_path / "maps.png"
    monkeypatch.setattr(sys, "argv", ["attention_maps", str(output), str(workdir), "--images", "2"])
    attention_maps.main()
    with Image.open(output) as sheet:
        assert min(sheet.size) > 100
