"""How sure a network is, image by image: what a threshold for "none of these" is fitted on and judged by."""

import math

import numpy as np

SHARE = 0.95  # of the validation images, that a fitted threshold keeps
SLACK = 1e-6  # below it: probabilities are rounded otherwise in batches of other sizes


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
