"""What a network says of every image of a part, on the host: what fusion, thresholds and intervals are made from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.models.two_looks import Look, log_probabilities


class Scores(NamedTuple):
    """Of N images, in the order of their source.

    Attributes:
        values: log probabilities [N, C], float32, by view: "coarse" and, with two looks, "fine" and "fused".
        labels: int [N].
    """

    values: dict[str, np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def batch_scores(looks: dict[str, Look], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What `joined` takes, of one batch with `label` and `mask` [B]: those, and log probabilities [B, C] by view."""
    values = {view: scores.astype(jnp.float32) for view, scores in log_probabilities(looks).items()}
    return {**values, "label": batch["label"], "mask": batch["mask"]}


def joined(rows: Sequence[Mapping[str, Any]]) -> Scores:
    """All images of the batches' `batch_scores`, without filling."""
    whole = {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in (rows[0] if rows else ())}
    if not whole:
        return Scores({}, np.zeros(0, np.int32))
    real = whole.pop("mask") > 0
    labels = whole.pop("label")[real]
    return Scores({view: values[real] for view, values in whole.items()}, labels)
