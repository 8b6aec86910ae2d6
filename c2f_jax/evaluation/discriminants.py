"""What each place of a photo tells of its label, by linear discriminants that were fitted to other photos."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

FOLDS = 3
SHRINKAGE = 0.1  # of the within-class covariance towards a multiple of the identity
POWER = 4.0  # of P(label | square): on DeepPCB what there is at the defect then stands out most from the rest
CHUNK = 16  # photos


def held_out(features: np.ndarray, labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Logits [N, K] of where to look, `POWER` log P(label | square), by linear discriminants of the other photos.

    Args:
        features: [N, K, D] of N photos' K squares.
        labels: int [N].
        classes: how many there are.
    """
    folds = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    centre = features.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    # Each photo's squares are summed up once, and not once for each fold that they are fitted for.
    each = [moments(features[folds == fold], labels[folds == fold], classes, centre) for fold in range(FOLDS)]
    scores = np.empty((*features.shape[:2], classes), np.float32)
    for fold in range(FOLDS):
        others = [each[other] for other in range(FOLDS) if other != fold]
        weights, bias = discriminants(Moments(*map(sum, zip(*others, strict=True))), centre)
        for photo in np.flatnonzero(folds == fold):
            scores[photo] = features[photo].astype(np.float32) @ weights + bias
    return POWER * _own_log_probability(scores, labels)


def _own_log_probability(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log P(label | square) float64 [N, K], as sure as makes ``mean_k P(label | square k)`` likeliest.

    Some of a photo's squares tell its label, nobody says which: where only one in ten does, as on DeepPCB, what makes
    the label likeliest in each of them is near chance throughout.
    """
    own = np.broadcast_to(labels[:, None, None], (*scores.shape[:2], 1))

    def log_probability(log_scale: float) -> np.ndarray:
        return np.take_along_axis(log_softmax(math.exp(log_scale) * scores, axis=-1), own, axis=-1)[..., 0]

    def loss(log_scale: float) -> float:
        return -float(np.mean(logsumexp(log_probability(log_scale).astype(np.float64), axis=1)))

    return log_probability(minimize_scalar(loss, bounds=(-8.0, 3.0), method="bounded").x).astype(np.float64)


class Moments(NamedTuple):
    """Sums over squares, around a common centre.

    Attributes:
        members: squares of each class [C].
        sums: of their features [C, D].
        products: of features with features, of all of them [D, D].
    """

    members: Any
    sums: Any
    products: Any


def moments(features: np.ndarray, labels: np.ndarray, classes: int, centre: np.ndarray) -> Moments:
    """features: [N, K, D], all K squares of a photo are of its class; labels: int [N]; centre [D]."""
    count, squares_of, width = features.shape
    sums, products = np.zeros((classes, width)), np.zeros((width, width))
    for begin in range(0, count, CHUNK):  # as float32 all squares at once would take gigabytes
        rows = features[begin : begin + CHUNK].astype(np.float32) - centre
        np.add.at(sums, labels[begin : begin + CHUNK], rows.sum(axis=1))
        rows = rows.reshape(-1, width)
        products += rows.T @ rows
    return Moments(squares_of * np.bincount(labels, minlength=classes), sums, products)


def discriminants(found: Moments, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, C] and bias [C] of normal densities around the classes' means that share a covariance.

    A class without an example is as likely as the mean of all.
    """
    members, width = found.members[:, None], len(centre)
    means = np.where(members > 0, found.sums / np.maximum(members, 1), 0.0)  # 0: the mean of all
    within = (found.products - (members * means).T @ means) / members.sum()
    within *= 1.0 - SHRINKAGE
    within[np.diag_indices_from(within)] += SHRINKAGE / (1.0 - SHRINKAGE) * np.trace(within) / width + 1e-12
    weights = np.linalg.solve(within, means.T)
    bias = -0.5 * np.sum(means.T * weights, axis=0) - centre @ weights
    return weights.astype(np.float32), bias.astype(np.float32)
