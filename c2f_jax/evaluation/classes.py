"""Which classes are taken for which: tables for people and spreadsheets."""

from collections.abc import Iterator, Sequence

import numpy as np

Z = 1.959964  # of a two-sided interval of 95 %


def confusion(answers: np.ndarray, labels: np.ndarray, classes: int) -> Iterator[np.ndarray]:
    """Class by class, how many of its images are taken for each class, int [C]: the rows of the confusion matrix.

    Args:
        answers: predicted labels, int [N].
        labels: true ones, int [N].
        classes: C.
    """
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(classes + 1))
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        yield np.bincount(answers[order[start:end]], minlength=classes)


def wilson(right: int, count: int) -> tuple[float, float]:
    """A 95 % interval of a share of which `right` of `count` images were seen, count > 0.

    References:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    share, square = right / count, Z * Z
    middle = share + square / (2 * count)
    half = Z * np.sqrt(share * (1 - share) / count + square / (4 * count * count))
    low, high = (float((middle + sign * half) / (1 + square / count)) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def confusion_rows(answers: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Iterator[list[str]]:
    """The confusion matrix with a header: true classes in rows, what they are taken for in columns."""
    yield ["class", *class_names]
    for name, counts in zip(class_names, confusion(answers, labels, len(class_names)), strict=True):
        yield [name, *map(str, counts.tolist())]


PER_CLASS = (
    *("class", "images", "right", "accuracy", "accuracy_low", "accuracy_high"),
    *("predicted", "precision", "most_often_taken_for", "times"),
)


def per_class_rows(answers: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Iterator[list[str]]:
    """A row a class, with a header; empty where there is nothing to count.

    `accuracy` is the share of the class's images that are right, with its 95 % interval (Wilson's); `predicted` how
    many images are taken for it, and `precision` the share of those that are right.
    """
    yield list(PER_CLASS)
    taken = np.bincount(answers, minlength=len(class_names))
    for label, counts in enumerate(confusion(answers, labels, len(class_names))):
        right, images, predicted = int(counts[label]), int(counts.sum()), int(taken[label])
        fields = [class_names[label], str(images), str(right)]
        fields += [f"{value:.4f}" for value in (right / images, *wilson(right, images))] if images else [""] * 3
        fields += [str(predicted), f"{right / predicted:.4f}" if predicted else ""]
        counts[label] = 0
        other = int(counts.argmax())
        yield [*fields, *([class_names[other], str(int(counts[other]))] if counts[other] else ["", ""])]
