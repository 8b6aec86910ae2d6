"""Which classes are taken for which: tables for people and spreadsheets."""

from collections.abc import Sequence

import numpy as np

Z = 1.959964  # of a two-sided interval of 95 %


def confusion(answers: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class (row) are taken for each class (column), int [C, C].

    Args:
        answers: predicted labels, int [N].
        labels: true ones, int [N].
        classes: C.
    """
    return np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)


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


def confusion_table(matrix: np.ndarray, class_names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a matrix of `confusion`: true classes in rows, what they are taken for in columns."""
    rows = [[name, *map(str, counts)] for name, counts in zip(class_names, matrix.tolist(), strict=True)]
    return ["class", *class_names], rows


PER_CLASS = (
    *("class", "images", "right", "accuracy", "accuracy_low", "accuracy_high"),
    *("predicted", "precision", "most_often_taken_for", "times"),
)


def per_class_table(matrix: np.ndarray, class_names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) by class of a matrix of `confusion`; empty where there is nothing to count.

    `accuracy` is the share of the class's images that are right, with its 95 % interval (Wilson's); `predicted` how
    many images are taken for it, and `precision` the share of those that are right.
    """
    rows = []
    for label, name in enumerate(class_names):
        right, images, predicted = (int(n) for n in (matrix[label, label], matrix[label].sum(), matrix[:, label].sum()))
        fields = [name, str(images), str(right)]
        fields += [f"{value:.4f}" for value in (right / images, *wilson(right, images))] if images else [""] * 3
        fields += [str(predicted), f"{right / predicted:.4f}" if predicted else ""]
        wrong = matrix[label].copy()
        wrong[label] = 0
        other = int(wrong.argmax())
        fields += [class_names[other], str(int(wrong[other]))] if wrong[other] else ["", ""]
        rows.append(fields)
    return list(PER_CLASS), rows
