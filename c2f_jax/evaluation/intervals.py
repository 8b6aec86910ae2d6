"""How much other images of the same kind would move the figures: bootstrap intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from c2f_jax.evaluation.classification import CALIBRATION_BINS

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap(
    values: Mapping[str, np.ndarray], labels: np.ndarray, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """Percentile intervals of the classification figures of each view, from the same resamples for all of them.

    Whole groups are drawn where there are any: images of one board, animal or walk tell less than so many of their own.
    A figure that all images agree on has no width here, however few they are.

    Args:
        values: log probabilities [N, C] by view.
        labels: int [N].
        groups: of each image, or None where nothing is known of any.

    Returns:
        `level`, `resamples`, `by` ("image" or "group"), how many of these `units` there are, and `of`: by figure, e.g.
        "fused/top_1_accuracy", (low, high).

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentiles).
    """
    unit = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = int(unit.max()) + 1 if len(unit) else 0
    images = {view: _Images(scores, labels) for view, scores in values.items()}
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES if units else 0):
        weights = np.bincount(rng.integers(units, size=units), minlength=units)[unit].astype(np.float64)
        for view, image in images.items():
            for name, figure in image.figures(weights).items():
                drawn.setdefault(f"{view}/{name}", []).append(figure)
    tails = 50.0 * (1.0 - LEVEL), 100.0 - 50.0 * (1.0 - LEVEL)
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "by": "image" if groups is None else "group",
        "units": units,
        "of": {name: [float(end) for end in np.percentile(figures, tails)] for name, figures in drawn.items()},
    }


class _Images:
    """What the figures are made of, image by image."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray):
        count = len(labels)
        true = scores[np.arange(count), labels]
        others = np.sum(scores >= true[:, None], axis=-1) - 1  # as of `classification.rank`
        self._labels, self._right, self._among_five = labels, (others < 1).astype(float), (others < 5).astype(float)
        self._loss = -true.astype(np.float64)
        confidence = np.exp(scores.max(axis=-1))
        self._bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
        self._gaps = self._right - confidence

    def figures(self, weights: np.ndarray) -> dict[str, float]:
        """`classification_sums`' figures where image i is there weights[i] times, not all of them 0."""
        total = weights.sum()
        of_class = np.bincount(self._labels, weights)
        there = of_class > 0
        right_of_class = np.bincount(self._labels, weights * self._right)
        gaps = np.bincount(self._bins, weights * self._gaps)
        return {
            "top_1_accuracy": float(weights @ self._right / total),
            "top_5_accuracy": float(weights @ self._among_five / total),
            "mean_per_class_accuracy": float(np.mean(right_of_class[there] / of_class[there])),
            "loss": float(weights @ self._loss / total),
            "calibration_error": float(np.sum(np.abs(gaps)) / total),
        }
