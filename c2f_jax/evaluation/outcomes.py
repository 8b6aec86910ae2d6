"""What came of each image of a part, and what can be read off that: calibration, classes, confusions.

On the host, and a few numbers an image whatever the number of classes: log probabilities are reduced batch by batch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from c2f_jax.evaluation.classification import CALIBRATION_BINS
from c2f_jax.evaluation.intervals import Judged, together

DRAWS = 10_000  # of a bootstrap


class Outcomes(NamedTuple):
    """Of N images, in the order of their source.

    Attributes:
        labels: the true classes, int [N].
        views: by view ("coarse", "fine", "fused", "calibrated_coarse", "calibrated").
        overlap: IoU of the second look's box with the object's [N]; None where either is unknown.
    """

    labels: np.ndarray
    views: dict[str, Judged]
    overlap: np.ndarray | None


def right(view: Judged) -> np.ndarray:
    """Whether the true class alone is the likeliest, bool [N]."""
    return view.others < 1


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """One after the other; one part or more."""
    views = {view: together(part.views[view] for part in parts) for view in parts[0].views}
    overlaps = [part.overlap for part in parts if part.overlap is not None]
    overlap = np.concatenate(overlaps) if len(overlaps) == len(parts) else None
    return Outcomes(np.concatenate([part.labels for part in parts]), views, overlap)


class Bin(NamedTuple):
    """Images whose confidence lies in a bin: how many, their mean confidence and their accuracy."""

    images: int
    confidence: float
    accuracy: float


def reliability(view: Judged) -> list[Bin | None]:
    """The bins of `classification.calibration_gaps`, from the least sure on; None where there is no image."""
    bins = np.clip(np.ceil(view.confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    found: list[Bin | None] = []
    for number in range(CALIBRATION_BINS):
        inside = bins == number
        mean = (float(view.confidence[inside].mean()), float(right(view)[inside].mean())) if inside.any() else None
        found.append(Bin(int(inside.sum()), *mean) if mean else None)
    return found


class ByClass(NamedTuple):
    """Images of each class, int [C], and how many of them each view has right, int [C] by view."""

    images: np.ndarray
    right: dict[str, np.ndarray]


def by_class(outcomes: Outcomes, num_classes: int) -> ByClass:
    """Counts, of classes without an image too."""
    images = np.bincount(outcomes.labels, minlength=num_classes)
    known = {
        view: np.bincount(outcomes.labels[right(said)], minlength=num_classes) for view, said in outcomes.views.items()
    }
    return ByClass(images, known)


def confused(view: Judged) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images), the most frequent first, then by class; of wrong answers only."""
    wrong = view.predicted != view.labels
    pairs = Counter(zip(view.labels[wrong].tolist(), view.predicted[wrong].tolist(), strict=True))
    return sorted(((true, told, count) for (true, told), count in pairs.items()), key=lambda row: (-row[2], row))


def difference(first: Judged, other: Judged, groups: Sequence[str] | None = None) -> tuple[float, float, float]:
    """How much more often `other` is right than `first` on the same images, and its 95 % interval by a bootstrap.

    Args:
        first, other: the same images.
        groups: of each image; whole groups are drawn, as of `intervals.bootstrap`. None where nothing is known of any.

    Raises:
        ValueError: if there is no image, or they are not the same.
    """
    if not len(first.labels) or not np.array_equal(first.labels, other.labels):
        raise ValueError("a difference needs one image or more, the same for both")
    gains = right(other).astype(int) - right(first).astype(int)
    unit = np.arange(len(gains)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = np.stack([np.bincount(unit, gains), np.bincount(unit)], axis=-1)  # gain and images of each
    alike, counts = np.unique(units, axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(units), counts / len(units), size=DRAWS) @ alike
    low, high = np.quantile(draws[:, 0] / draws[:, 1], (0.025, 0.975))
    return float(gains.mean()), float(low), float(high)


def answer_of(views: Mapping[str, object] | Sequence[str]) -> str:
    """The view that a run answers with, of those there are."""
    return next(view for view in ("calibrated", "fused", "coarse") if view in views)
