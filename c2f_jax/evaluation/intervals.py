"""How much other images of the same kind would move the figures: bootstrap intervals."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from c2f_jax.evaluation.classification import CALIBRATION_BINS

RESAMPLES = 1000
LEVEL = 0.95


class Judged(NamedTuple):
    """What the figures of one view are made of, a few numbers an image; made by `judge`.

    Attributes:
        labels: the true ones, int [N].
        predicted: the likeliest ones, int [N].
        confidence: the probability of those [N].
        others: how many other classes are at least as likely as the true one, int [N]; as of `classification.rank`.
        loss: the negative log probability of the true class [N].
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    others: np.ndarray
    loss: np.ndarray


def judge(values: np.ndarray, labels: np.ndarray) -> Judged:
    """values: log probabilities [N, C], none of them NaN; labels: int [N]."""
    true = np.take_along_axis(values, labels[:, None], axis=-1)
    confidence = np.exp(values.max(axis=-1))
    others = np.sum(values >= true, axis=-1) - 1
    return Judged(labels, values.argmax(axis=-1), confidence, others, -true[:, 0].astype(np.float64))


def together(parts: Iterable[Judged]) -> Judged:
    """One after the other."""
    return Judged(*map(np.concatenate, zip(*(tuple(part) for part in parts), strict=True)))


def figures_of(images: Judged, weights: np.ndarray | None = None) -> dict[str, float]:
    """`classification_sums`' figures where image i is there weights[i] times (None: once), not all of them 0."""
    weights = np.ones(len(images.labels)) if weights is None else weights
    total, right = weights.sum(), (images.others < 1).astype(float)
    of_class = np.bincount(images.labels, weights)
    there = of_class > 0
    right_of_class = np.bincount(images.labels, weights * right)
    bins = np.clip(np.ceil(images.confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights * (right - images.confidence))
    return {
        "top_1_accuracy": float(weights @ right / total),
        "top_5_accuracy": float(weights @ (images.others < 5) / total),
        "mean_per_class_accuracy": float(np.mean(right_of_class[there] / of_class[there])),
        "loss": float(weights @ images.loss / total),
        "calibration_error": float(np.sum(np.abs(gaps)) / total),
    }


def bootstrap(views: Mapping[str, Judged], groups: Sequence[str] | None = None) -> dict[str, Any]:
    """Percentile intervals of the classification figures of each view, from the same resamples for all of them.

    Whole groups are drawn where there are any: images of one board, animal or walk tell less than so many of their own.
    A figure that all images agree on has no width here, however few they are.

    Args:
        views: the same images, by view.
        groups: of each image, or None where nothing is known of any.

    Returns:
        `level`, `resamples`, `by` ("image" or "group"), how many of these `units` there are, and `of`: by figure, e.g.
        "fused/top_1_accuracy", (low, high).

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentiles).
    """
    count = len(next(iter(views.values())).labels) if views else 0
    unit = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = int(unit.max()) + 1 if count else 0
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES if units else 0):
        weights = np.bincount(rng.integers(units, size=units), minlength=units)[unit].astype(np.float64)
        for view, images in views.items():
            for name, figure in figures_of(images, weights).items():
                drawn.setdefault(f"{view}/{name}", []).append(figure)
    tails = 50.0 * (1.0 - LEVEL), 100.0 - 50.0 * (1.0 - LEVEL)
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "by": "image" if groups is None else "group",
        "units": units,
        "of": {name: [float(end) for end in np.percentile(figures, tails)] for name, figures in drawn.items()},
    }
