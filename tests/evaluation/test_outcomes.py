"""What is read off the outcomes of images, against the definitions worked out by hand and other implementations."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from c2f_jax.evaluation.classification import classification_sums, rank
from c2f_jax.evaluation.metrics import finalise
from c2f_jax.evaluation.outcomes import (
    Outcomes,
    Said,
    by_class,
    confused,
    gate_curve,
    interval,
    joined,
    reliability,
    said,
)


def random_values(seed, count=200, classes=5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)).astype(np.float32) * 2
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), rng.integers(classes, size=count)


def test_figures_are_those_of_the_metrics():
    values, labels = random_values(0)
    values[3], values[4, 2] = -np.log(5), np.nan  # a tie, and a number that is none
    view = said(values, labels)
    np.testing.assert_array_equal(view.right, np.asarray(rank(values, labels)) < 1)
    assert not view.right[3] and not view.right[4]
    values, labels = random_values(1)
    view = said(values, labels)
    expected = finalise(classification_sums(jnp.asarray(values), jnp.asarray(labels), jnp.ones(len(labels))))
    assert view.right.mean() == pytest.approx(expected["top_1_accuracy"])
    assert -np.log(view.true).mean() == pytest.approx(expected["loss"], rel=1e-5)
    gaps = [one.images * abs(one.accuracy - one.confidence) for one in reliability(view) if one is not None]
    assert sum(gaps) / len(labels) == pytest.approx(expected["calibration_error"], abs=1e-6)
    counts = by_class(Outcomes(labels, {"coarse": view}, None), 7)
    assert counts.images[5:].tolist() == [0, 0] and counts.images.sum() == len(labels)
    per_class = counts.right["coarse"][:5] / counts.images[:5]
    assert per_class.mean() == pytest.approx(expected["mean_per_class_accuracy"])


def test_confused_pairs():
    labels = np.array([0, 0, 0, 1, 2, 2])
    told = np.array([1, 1, 0, 0, 1, 2])
    view = Said(told, np.ones(6), np.ones(6), told == labels)
    assert confused(labels, view) == [(0, 1, 2), (1, 0, 1), (2, 1, 1)]


def test_the_gate():
    """The least sure image first; both ends are the two views themselves."""
    first = Said(np.zeros(4, int), np.array([0.9, 0.2, 0.5, 0.7]), np.ones(4), np.array([True, False, False, True]))
    answer = first._replace(right=np.array([False, True, True, True]))
    shares, accuracy = gate_curve(first, answer)
    np.testing.assert_allclose(shares, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(accuracy, [0.5, 0.75, 1.0, 1.0, 0.75])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_intervals_are_scipys(share):
    right = np.random.default_rng(0).random(300) < share
    found = stats.bootstrap(
        (right.astype(float),), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    )
    np.testing.assert_allclose(interval(right), found.confidence_interval, atol=0.008)
    paired = right.astype(int) - (np.random.default_rng(2).random(300) < 0.5)
    found = stats.bootstrap(
        (paired.astype(float),), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    )
    np.testing.assert_allclose(interval(paired), found.confidence_interval, atol=0.015)


def test_the_interval_of_equal_answers_and_of_none():
    assert interval(np.ones(9, bool)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="one image or more"):
        interval(np.zeros(0))


def test_parts_are_joined_in_order():
    parts = []
    for seed in range(3):
        values, labels = random_values(seed, count=seed + 1)
        parts.append(Outcomes(labels, {"coarse": said(values, labels)}, np.full(seed + 1, seed / 10)))
    whole = joined(parts)
    assert len(whole.labels) == 6 and whole.overlap.tolist() == [0.0, 0.1, 0.1, 0.2, 0.2, 0.2]
    np.testing.assert_array_equal(whole.views["coarse"].true[1:3], parts[1].views["coarse"].true)
    assert joined([parts[0], parts[1]._replace(overlap=None)]).overlap is None
