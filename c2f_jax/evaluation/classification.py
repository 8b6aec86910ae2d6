"""Classification metrics of one batch, as (sum, count) pairs."""

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.evaluation.metrics import Gaps, Sums, masked

CALIBRATION_BINS = 15
UNKNOWN = np.iinfo(np.int32).max  # the rank of the true class among values that hold a NaN


def rank(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """How many other classes are at least as likely as the true one: 0 is right. [B, C], int [B] -> int [B].

    A tie counts against the true class, so that constant outputs are not right by accident. So does a NaN, of whatever
    class, which compares with nothing: the rank is then `UNKNOWN`, which no number of guesses reaches.
    """
    true = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)
    others = jnp.sum(log_probabilities >= true, axis=-1) - 1
    return jnp.where(jnp.any(jnp.isnan(log_probabilities), axis=-1), UNKNOWN, others)


def classification_sums(log_probabilities: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
    """Top-1, top-5, mean per-class accuracy, loss and calibration.

    Args:
        log_probabilities: [B, C].
        labels: int [B].
        mask: [B], 1 for examples, 0 for filling.

    Returns:
        Pairs under `top_1_accuracy`, `top_5_accuracy`, `mean_per_class_accuracy` (vectors [C]), `loss` (the negative
        log probability of the true class) and `calibration_error`. With fewer than five classes top-5 counts them all.
        Where a log probability is NaN nothing is right, and the loss is not a number either.
    """
    others = rank(log_probabilities, labels)
    true = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    right = (others < 1).astype(mask.dtype)
    classes = jax.nn.one_hot(labels, log_probabilities.shape[-1], dtype=mask.dtype) * mask[:, None]
    return {
        "top_1_accuracy": masked(right, mask),
        "top_5_accuracy": masked((others < 5).astype(mask.dtype), mask),
        "mean_per_class_accuracy": (jnp.sum(classes * right[:, None], axis=0), jnp.sum(classes, axis=0)),
        "loss": masked(-true, mask),
        "calibration_error": calibration_gaps(jnp.exp(jnp.max(log_probabilities, axis=-1)), right, mask),
    }


def calibration_gaps(confidence: jax.Array, right: jax.Array, mask: jax.Array) -> Gaps:
    """Expected calibration error: |accuracy - confidence| by bin of confidence, weighted by the bins' examples.

    Args:
        confidence: probability of the likeliest class [B].
        right: 1 where that class is the true one [B].
        mask: [B], 1 for examples, 0 for filling.

    Returns:
        A pair of vectors over `CALIBRATION_BINS` bins of equal width, each without its lower edge and with its upper.

    References:
        Guo et al. 2017, arXiv:1706.04599, equation 3, with its 15 bins.
    """
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1, 0, CALIBRATION_BINS - 1)
    members = jax.nn.one_hot(bins, CALIBRATION_BINS, dtype=mask.dtype) * mask[:, None]
    gaps = jnp.where(mask > 0, right - confidence, 0.0)
    return Gaps(jnp.sum(members * gaps[:, None], axis=0), jnp.sum(members, axis=0))
