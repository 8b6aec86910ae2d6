"""Bootstrap intervals and tables of classes: against what they are meant to be, drawn and counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.evaluation.classes import PER_CLASS, confusion, confusion_rows, per_class_rows, wilson
from c2f_jax.evaluation.fusion import figures
from c2f_jax.evaluation.intervals import bootstrap, figures_of, judge, together


def drawn(count, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[labels]
    return np.array(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)), labels


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_figures_of_weighted_images_are_those_of_images_written_out(classes):
    values, labels = drawn(60, classes)
    values[:7] = np.log(1 / classes)  # ties
    weights = np.random.default_rng(1).integers(4, size=60)
    expected = figures(np.repeat(values, weights, axis=0), np.repeat(labels, weights))
    parts = together([judge(values[:20], labels[:20]), judge(values[20:], labels[20:])])
    assert figures_of(parts, weights.astype(float)) == pytest.approx(expected, abs=1e-5)
    assert figures_of(parts) == pytest.approx(figures(values, labels), abs=1e-5)


def test_an_interval_of_a_share_is_as_wide_as_theory_has_it():
    values, labels = drawn(2000)
    accuracy = figures(values, labels)["top_1_accuracy"]
    found = bootstrap({"coarse": judge(values, labels)})
    low, high = found["of"]["coarse/top_1_accuracy"]
    deviation = np.sqrt(accuracy * (1 - accuracy) / 2000)
    assert (low, high) == pytest.approx(
        (accuracy - 1.96 * deviation, accuracy + 1.96 * deviation), abs=0.15 * deviation
    )
    assert found["by"] == "image" and found["units"] == 2000 and found["level"] == 0.95
    assert set(found["of"]) == {
        f"coarse/{name}"
        for name in ("top_1_accuracy", "top_5_accuracy", "mean_per_class_accuracy", "loss", "calibration_error")
    }
    assert bootstrap({"coarse": judge(values, labels)}) == found


def test_groups_are_drawn_whole():
    """Images in equal tens tell no more than so many tenths of them: the interval is as wide as of one of each."""
    values, labels = drawn(100)
    tenfold = judge(np.repeat(values, 10, axis=0), np.repeat(labels, 10))
    groups = [f"board {i}" for i in range(100) for _ in range(10)]
    many = bootstrap({"coarse": tenfold}, groups)
    alone = bootstrap({"coarse": judge(values, labels)})
    blind = bootstrap({"coarse": tenfold})

    def width(found):
        low, high = found["of"]["coarse/top_1_accuracy"]
        return high - low

    assert many["by"] == "group" and many["units"] == 100
    assert width(many) == pytest.approx(width(alone), rel=0.1) and width(blind) < 0.5 * width(many)


def test_nothing_to_draw_from():
    assert bootstrap({})["of"] == {}
    values, labels = drawn(1)
    low, high = bootstrap({"coarse": judge(values, labels)})["of"]["coarse/loss"]
    assert low == high == pytest.approx(-values[0, labels[0]])


def test_confusion_by_hand():
    answers, labels = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 0, 1, 2, 0, 2])
    rows = [row.tolist() for row in confusion(answers, labels, 4)]
    assert rows == [[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    names = ["a", "b", "c", "d"]
    header, first, *_ = confusion_rows(answers, labels, names)
    assert header == ["class", *names] and first == ["a", "1", "1", "1", "0"]
    header, *rows = per_class_rows(answers, labels, names)
    assert tuple(header) == PER_CLASS
    by_class = [dict(zip(header, row, strict=True)) for row in rows]
    assert by_class[0] | {"accuracy_low": "", "accuracy_high": ""} == {
        **{"class": "a", "images": "3", "right": "1", "accuracy": "0.3333", "accuracy_low": "", "accuracy_high": ""},
        **{"predicted": "1", "precision": "1.0000", "most_often_taken_for": "b", "times": "1"},
    }
    assert by_class[1]["precision"] == "0.5000" and by_class[1]["most_often_taken_for"] == ""
    assert set(by_class[3].values()) == {"d", "0", ""}  # neither there nor guessed


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (5, 5), (7, 30), (3000, 10000)])
def test_wilson_holds_the_shares_that_a_test_would_not_reject(right, count):
    low, high = wilson(right, count)
    assert 0.0 <= low <= right / count <= high <= 1.0
    for end in (low, high):
        if 0.0 < end < 1.0:
            assert abs(right / count - end) == pytest.approx(1.96 * np.sqrt(end * (1 - end) / count), rel=1e-4)
