"""Metrics as (sum, count) pairs: added over batches, divided once at the end, so padding and remainders are exact."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Sums = Mapping[str, tuple[jax.Array, jax.Array]]


class Gaps(NamedTuple):
    """A pair of vectors over bins whose figure is sum |totals| / sum counts: gaps cancel within a bin, not between."""

    totals: jax.Array
    counts: jax.Array


def masked(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """values and weights of equal shape -> (weighted sum, sum of weights); 0-weight entries may hold anything."""
    return jnp.sum(jnp.where(weights > 0, values * weights, 0.0)), jnp.sum(weights)


def merge(a: Sums | None, b: Sums) -> Sums:
    """Adds two sets of pairs; None is the empty one."""
    return b if a is None else jax.tree.map(jnp.add, a, b)


def finalise(sums: Sums) -> dict[str, float]:
    """sum / count of each pair. A pair of vectors (one entry per class) gives the mean over entries with a count.

    A pair that nothing was counted for gives no figure: its name is left out.
    """
    result = {}
    for name, pair in jax.device_get(dict(sums)).items():
        total, count = (np.atleast_1d(np.asarray(value, np.float64)) for value in pair)
        seen = count > 0
        if isinstance(pair, Gaps) and seen.any():
            result[name] = float(np.sum(np.abs(total)) / np.sum(count))
        elif seen.any():
            result[name] = float(np.mean(total[seen] / count[seen]))
    return result
