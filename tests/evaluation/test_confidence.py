"""A threshold that keeps a stated share: against counting."""

import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.evaluation.confidence import confidences, fit_threshold, joined, kept
from c2f_jax.models.two_looks import Look


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


def look(logits):
    return Look(None, None, jnp.asarray(logits, jnp.float32), {}, None)


def test_of_both_looks_together_and_without_filling():
    coarse, fine = np.log([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]]), np.log([[0.2, 0.8], [0.1, 0.9], [0.9, 0.1]])
    batch = {"label": jnp.array([0, 0, 0]), "mask": jnp.array([1.0, 1.0, 0.0])}
    both = confidences({"coarse": look(coarse), "fine": look(fine)}, batch)
    confidence, right = joined([both, both])
    np.testing.assert_allclose(confidence, [0.55, 0.7, 0.55, 0.7], atol=1e-6)
    assert right.tolist() == [True, False, True, False]
    confidence, right = joined([confidences({"coarse": look(coarse)}, batch)])
    np.testing.assert_allclose(confidence, [0.9, 0.5], atol=1e-6)
    assert right.tolist() == [True, False]  # a tie counts against the true class
    assert [len(part) for part in joined([])] == [0, 0]
