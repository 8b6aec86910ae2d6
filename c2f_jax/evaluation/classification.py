"""Classification metrics of one batch, as (sum, count) pairs."""

import jax
import jax.numpy as jnp

from c2f_jax.training.metrics import Sums, masked


def classification_sums(log_probabilities: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
    """Top-1, top-5, mean per-class accuracy and loss.

    Args:
        log_probabilities: [B, C].
        labels: int [B].
        mask: [B], 1 for examples, 0 for filling.

    Returns:
        Pairs under `top_1_accuracy`, `top_5_accuracy`, `mean_per_class_accuracy` (vectors [C]) and `loss` (the
        negative log probability of the true class). With fewer than five classes top-5 counts them all.
    """
    true = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    # The rank of the true class; a tie counts against it, so that constant outputs are not right by accident.
    others = jnp.sum((log_probabilities >= true[:, None]).astype(mask.dtype), axis=-1) - 1.0
    right = (others < 1).astype(mask.dtype)
    classes = jax.nn.one_hot(labels, log_probabilities.shape[-1], dtype=mask.dtype) * mask[:, None]
    return {
        "top_1_accuracy": masked(right, mask),
        "top_5_accuracy": masked((others < 5).astype(mask.dtype), mask),
        "mean_per_class_accuracy": (jnp.sum(classes * right[:, None], axis=0), jnp.sum(classes, axis=0)),
        "loss": masked(-true, mask),
    }
