"""Rows of boards and birds: which squares hold what is annotated, and what a report says of lines."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import taught
from c2f_jax.evaluation.discriminants import POWER
from c2f_jax.runs.evidence import GRID
from c2f_jax.training.teaching import PART


def run_of(examples, *, side, keep_aspect):
    config = ConfigDict({"region": {"side": side}, "augment": {"keep_aspect": keep_aspect}})
    return SimpleNamespace(config=config, splits=SimpleNamespace(train=examples, class_names=("a", "b")))


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_an_annotated_place_is_told_by_the_squares_that_hold_it(keep_aspect):
    image, side = np.zeros((40, 80, 3), np.uint8), 0.5
    places = [(0.3, 0.7), (0.02, 0.98), (0.5, 0.5)]
    examples = [{"image": image, "box": np.array([y - 0.01, x - 0.01, y + 0.01, x + 0.01])} for y, x in places]
    table = taught.annotated(run_of(examples, side=side, keep_aspect=keep_aspect), taught.defect)
    # Sides of the table's squares in fractions of the photo, which is twice as wide as high.
    h, w = PART * side, PART * side * (0.5 if keep_aspect else 1.0)
    for number, (y, x) in enumerate(places):
        for row in range(GRID):
            for column in range(GRID):
                top, left = row / (GRID - 1) * (1 - h), column / (GRID - 1) * (1 - w)
                holds = top < y < top + h and left < x < left + w
                assert table[number, row, column] == (0.0 if holds else np.float32(POWER * np.log(0.5)))
        assert (table[number] == 0).any()


def test_the_head_is_the_mean_of_its_visible_parts():
    parts, seen = np.random.default_rng(0).random((2, 15, 2)), np.zeros((2, 15), bool)
    seen[0, [1, 4, 7]] = True  # beak, crown; the left leg is none of the head's
    seen[1, 7] = True
    place, known = taught.head({"parts": parts, "part_visible": seen})
    np.testing.assert_allclose(place[0], (parts[0, 1] + parts[0, 4]) / 2)
    assert known.tolist() == [True, False] and np.isfinite(place).all()


def line(name, right, **other):
    bits = taught._hex(np.array(right, bool))
    views = dict.fromkeys(("coarse", "fine", "fused", "inside"), bits) | {"known": taught._hex(np.ones(4, bool))}
    regions = {"own": views, "annotated": views}
    fixed = {
        "subject": "birds",
        "seed": 0,
        "groups": [0, 1, 2, 3],
        "new": None,
        "seconds": 60.0,
        "training": {"a": 0.5},
    }
    return {**fixed, "name": name, "overrides": {}, "regions": regions, **other}


def test_a_report_says_what_the_lines_hold(capsys):
    once = line("one_look", [1, 0, 0, 0], overrides={"method": "attention"})
    taught.report([once, line("taught", [1, 1, 1, 0])])
    said = capsys.readouterr().out.splitlines()
    assert "| taught | 0 | 50.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 1 |" in said
    assert "| one_look | 0 | 50.0 | 25.0 | – | – | – | – | 1 |" in said
    assert said.index(said[-1]) and said[-1].startswith("birds, seed 0: taught, less one_look: 50.0 (0.0 to ")
