"""Metrics as (sum, count) pairs: added over batches, divided once at the end, so padding and remainders are exact."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

Sums = Mapping[str, tuple[jax.Array, jax.Array]]


def masked(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """values and weights of equal shape -> (weighted sum, sum of weights); 0-weight entries may hold anything."""
    return jnp.sum(jnp.where(weights > 0, values * weights, 0.0)), jnp.sum(weights)


def merge(a: Sums | None, b: Sums) -> Sums:
    """Adds two sets of pairs; None is the empty one."""
    return b if a is None else jax.tree.map(jnp.add, a, b)


def finalise(sums: Sums) -> dict[str, float]:
    """sum / count of each pair. A pair of vectors (one entry per class) gives the mean over entries with a count."""
    result = {}
    for name, (total, count) in jax.device_get(dict(sums)).items():
        total, count = np.atleast_1d(np.asarray(total, np.float64)), np.atleast_1d(np.asarray(count, np.float64))
        seen = count > 0
        result[name] = float(np.mean(total[seen] / count[seen])) if seen.any() else float("nan")
    return result
