"""What came of each image of a part, and what can be read off that: calibration, classes, confusions, the gate.

On the host, and a few numbers an image whatever the number of classes: log probabilities are reduced batch by batch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from c2f_jax.evaluation.classification import CALIBRATION_BINS

DRAWS = 10_000  # of a bootstrap


class Said(NamedTuple):
    """What one view says of N images.

    Attributes:
        label: the likeliest class, int [N].
        confidence: its probability [N].
        true: the probability of the true class [N].
        right: whether the true class alone is the likeliest, bool [N].
    """

    label: np.ndarray
    confidence: np.ndarray
    true: np.ndarray
    right: np.ndarray


class Outcomes(NamedTuple):
    """Of N images, in the order of their source.

    Attributes:
        labels: the true classes, int [N].
        views: by view ("coarse", "fine", "fused", ...).
        overlap: IoU of the second look's box with the object's [N]; None where either is unknown.
    """

    labels: np.ndarray
    views: dict[str, Said]
    overlap: np.ndarray | None


def said(values: np.ndarray, labels: np.ndarray) -> Said:
    """Of log probabilities [N, C] and true classes int [N]. Ties and NaNs are not right, as in `classification`."""
    label = values.argmax(axis=-1)
    true = np.take_along_axis(values, labels[:, None], axis=-1)
    right = (np.sum(values >= true, axis=-1) == 1) & ~np.isnan(values).any(axis=-1)
    best = np.take_along_axis(values, label[:, None], axis=-1)[:, 0]
    return Said(label, np.exp(best.astype(np.float64)), np.exp(true[:, 0].astype(np.float64)), right)


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """One after the other; one part or more."""
    views = {
        view: Said(*(np.concatenate(columns) for columns in zip(*(part.views[view] for part in parts), strict=True)))
        for view in parts[0].views
    }
    overlaps = [part.overlap for part in parts if part.overlap is not None]
    overlap = np.concatenate(overlaps) if len(overlaps) == len(parts) else None
    return Outcomes(np.concatenate([part.labels for part in parts]), views, overlap)


class Bin(NamedTuple):
    """Images whose confidence lies in a bin: how many, their mean confidence and their accuracy."""

    images: int
    confidence: float
    accuracy: float


def reliability(view: Said) -> list[Bin | None]:
    """The bins of `classification.calibration_gaps`, from the least sure on; None where there is no image."""
    bins = np.clip(np.ceil(view.confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    found: list[Bin | None] = []
    for number in range(CALIBRATION_BINS):
        inside = bins == number
        mean = (float(view.confidence[inside].mean()), float(view.right[inside].mean())) if inside.any() else None
        found.append(Bin(int(inside.sum()), *mean) if mean else None)
    return found


class ByClass(NamedTuple):
    """Images of each class, int [C], and how many of them each view has right, int [C] by view."""

    images: np.ndarray
    right: dict[str, np.ndarray]


def by_class(outcomes: Outcomes, num_classes: int) -> ByClass:
    """Counts, of classes without an image too."""
    images = np.bincount(outcomes.labels, minlength=num_classes)
    right = {
        view: np.bincount(outcomes.labels[said.right], minlength=num_classes) for view, said in outcomes.views.items()
    }
    return ByClass(images, right)


def confused(labels: np.ndarray, view: Said) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images), the most frequent first, then by class; of wrong answers only."""
    wrong = ~view.right & (view.label != labels)
    pairs = Counter(zip(labels[wrong].tolist(), view.label[wrong].tolist(), strict=True))
    return sorted(((true, told, count) for (true, told), count in pairs.items()), key=lambda row: (-row[2], row))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean's 95 % interval by a bootstrap over images (percentiles).

    Args:
        values: whole numbers, few of them different ([N]: right or not; or a difference of two such, paired).

    Raises:
        ValueError: if there is no image.
    """
    if not len(values):
        raise ValueError("an interval needs one image or more")
    levels, counts = np.unique(np.asarray(values, int), return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=DRAWS)
    low, high = np.quantile(draws @ levels / len(values), (0.025, 0.975))
    return float(low), float(high)


def gate_curve(first: Said, answer: Said) -> tuple[np.ndarray, np.ndarray]:
    """What comes of a second look at only those images that the first is least sure of.

    Returns:
        Shares of second looks, from 0 to 1, and the accuracy of the answers [N + 1].
    """
    order = np.argsort(first.confidence, kind="stable")
    gained = answer.right[order].astype(int) - first.right[order].astype(int)
    right = first.right.sum() + np.concatenate([[0], np.cumsum(gained)])
    return np.arange(len(order) + 1) / len(order), right / len(order)


def answer_of(views: Mapping[str, object] | Sequence[str]) -> str:
    """The view that a run answers with, of those there are."""
    return next(view for view in ("calibrated", "fused", "coarse") if view in views)
