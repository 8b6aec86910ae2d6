"""A threshold that keeps a stated share: against counting."""

import numpy as np
import pytest

from c2f_jax.evaluation.confidence import fit_threshold, kept


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 100, 999])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 1.0])
def test_the_highest_threshold_that_keeps_the_share(count, share):
    confidence = np.random.default_rng(count).random(count).astype(np.float32)
    threshold = fit_threshold(confidence, share)
    assert np.mean(confidence >= threshold) >= share - 1e-9
    higher = np.sort(confidence)[confidence.size - int(np.sum(confidence >= threshold))] + 1e-7
    assert np.mean(confidence >= higher) < share


def test_the_surest_are_kept_where_all_are_sure():
    """Rounding otherwise in another batch, 1 - 6e-8 in place of 1, makes nobody unknown."""
    assert fit_threshold(np.ones(50, np.float32)) < 1 - 6e-8
    assert fit_threshold(np.zeros(3, np.float32)) == 0.0


def test_figures_of_those_that_are_kept():
    confidence, right = np.array([0.9, 0.2, 0.6, 0.5]), np.array([True, False, False, True])
    expected = {"images": 4, "share_kept": 0.75, "accuracy": 0.5, "accuracy_kept": 2 / 3}
    assert kept(confidence, right, 0.5) == pytest.approx(expected)
    assert kept(confidence, right, 0.95) == {"images": 4, "share_kept": 0.0, "accuracy": 0.5}
    assert kept(confidence[:0], right[:0], 0.5) == {"images": 0}
