"""What is read off the outcomes of images, against the definitions worked out by hand and other implementations."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from c2f_jax.evaluation.classification import classification_sums
from c2f_jax.evaluation.intervals import Judged, judge
from c2f_jax.evaluation.metrics import finalise
from c2f_jax.evaluation.outcomes import Outcomes, by_class, confused, difference, joined, reliability, right


def random_values(seed, count=200, classes=5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)).astype(np.float32) * 2
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), rng.integers(classes, size=count)


def given(is_right):
    """Images of which so many are right."""
    is_right = np.asarray(is_right)
    count = len(is_right)
    labels = np.zeros(count, int)
    return Judged(labels, np.where(is_right, 0, 1), np.ones(count), np.where(is_right, 0, 1), np.zeros(count))


def test_bins_and_classes_are_those_of_the_metrics():
    values, labels = random_values(1)
    view = judge(values, labels)
    expected = finalise(classification_sums(jnp.asarray(values), jnp.asarray(labels), jnp.ones(len(labels))))
    gaps = [one.images * abs(one.accuracy - one.confidence) for one in reliability(view) if one is not None]
    assert sum(gaps) / len(labels) == pytest.approx(expected["calibration_error"], abs=1e-6)
    counts = by_class(Outcomes(labels, {"coarse": view}, None), 7)
    assert counts.images[5:].tolist() == [0, 0] and counts.images.sum() == len(labels)
    per_class = counts.right["coarse"][:5] / counts.images[:5]
    assert per_class.mean() == pytest.approx(expected["mean_per_class_accuracy"])


def test_confused_pairs():
    labels, told = np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 0, 0, 1, 2])
    view = Judged(labels, told, np.ones(6), (labels != told).astype(int), np.ones(6))
    assert confused(view) == [(0, 1, 2), (1, 0, 1), (2, 1, 1)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_intervals_of_differences_are_scipys(share):
    first, other = np.random.default_rng(0).random(300) < share, np.random.default_rng(2).random(300) < 0.5
    gains = other.astype(float) - first
    found = stats.bootstrap(
        (gains,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    gain, *ends = difference(given(first), given(other))
    assert gain == pytest.approx(gains.mean())
    np.testing.assert_allclose(ends, found, atol=0.015)


def test_a_difference_is_drawn_by_whole_groups():
    """Of 40 boards with 1 to 9 images each, all of a board alike: the means of boards drawn by hand."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 10, size=40)
    groups = np.repeat([f"board {i}" for i in range(40)], sizes)
    first, other = (np.repeat(rng.random(40) < share, sizes) for share in (0.4, 0.6))
    gains = other.astype(float) - first
    drawn = []
    for _ in range(4000):
        kept = np.concatenate([np.flatnonzero(groups == f"board {i}") for i in rng.integers(40, size=40)])
        drawn.append(gains[kept].mean())
    shuffled = rng.permutation(len(groups))
    gain, *ends = difference(given(first[shuffled]), given(other[shuffled]), list(groups[shuffled]))
    assert gain == pytest.approx(gains.mean())
    np.testing.assert_allclose(ends, np.quantile(drawn, (0.025, 0.975)), atol=0.015)
    _, *narrow = difference(given(first), given(other))
    assert ends[1] - ends[0] > 1.5 * (narrow[1] - narrow[0])
    assert difference(given(first), given(other), ["one"] * len(first))[1:] == pytest.approx([gain, gain])


def test_a_difference_of_equals_and_of_none():
    assert difference(given([True, False]), given([True, False])) == (0.0, 0.0, 0.0)
    for first, other in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="one image or more"):
            difference(given(first), given(other))


def test_parts_are_joined_in_order():
    parts = []
    for seed in range(3):
        values, labels = random_values(seed, count=seed + 1)
        parts.append(Outcomes(labels, {"coarse": judge(values, labels)}, np.full(seed + 1, seed / 10)))
    whole = joined(parts)
    assert len(whole.labels) == 6 and whole.overlap.tolist() == [0.0, 0.1, 0.1, 0.2, 0.2, 0.2]
    np.testing.assert_array_equal(right(whole.views["coarse"])[1:3], right(parts[1].views["coarse"]))
    assert joined([parts[0], parts[1]._replace(overlap=None)]).overlap is None
