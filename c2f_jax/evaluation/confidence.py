"""How sure a network is, image by image: what a threshold for "none of these" is fitted on and judged by."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.evaluation.classification import rank
from c2f_jax.models.two_looks import Look, log_probabilities

SHARE = 0.95  # of the validation images, that a fitted threshold keeps
SLACK = 1e-6  # below it: probabilities are rounded otherwise in batches of other sizes


def confidences(looks: dict[str, Look], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Of each image of a batch, by both looks together or the only one.

    Returns:
        `confidence`: the probability of the likeliest class; `right`: whether that is the true one; `mask`. All [B].
    """
    scores = log_probabilities(looks)
    values = scores["fused" if "fused" in scores else "coarse"]
    return {
        "confidence": jnp.exp(jnp.max(values, axis=-1)).astype(jnp.float32),
        "right": rank(values, batch["label"]) < 1,
        "mask": batch["mask"],
    }


def joined(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(confidence, right) of all images, of the batches' `confidences` on the host or a device."""
    if not rows:
        return np.zeros(0, np.float32), np.zeros(0, bool)
    whole = {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    real = whole["mask"] > 0
    return whole["confidence"][real], whole["right"][real]


def fit_threshold(confidence: np.ndarray, share: float = SHARE) -> float:
    """The highest threshold that keeps `share` of these images or more: those at least so sure.

    Args:
        confidence: of one image or more [N].
        share: above 0, up to 1.
    """
    dropped = math.floor((1.0 - share) * len(confidence) + 1e-9)
    return max(0.0, float(np.sort(confidence)[dropped]) - SLACK)


def kept(confidence: np.ndarray, right: np.ndarray, threshold: float) -> dict[str, float]:
    """`images`, `share_kept`, `accuracy` and `accuracy_kept`; fractions, those of no image left out."""
    sure = confidence >= threshold
    figures: dict[str, float] = {"images": len(confidence)}
    if len(confidence):
        figures |= {"share_kept": float(np.mean(sure)), "accuracy": float(np.mean(right))}
    if sure.any():
        figures["accuracy_kept"] = float(np.mean(right[sure]))
    return figures
