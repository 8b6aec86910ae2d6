"""What each place of a photo tells of its label, by linear discriminants that were fitted to other photos."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

FOLDS = 3
SHRINKAGE = 0.1  # of the within-class covariance towards a multiple of the identity
POWER = 4.0  # of P(label | square): on DeepPCB what there is at the defect then stands out most from the rest
# Numbers, of as many photos as how sure the discriminants are is measured on: 256 MiB, and four times that for a while.
SCORES = 2**26

# Photos' numbers -> their squares' features [b, K, D], some photos at a time, in that order.
Features = Callable[[np.ndarray], Iterator[np.ndarray]]


def held_out(
    features: Features, labels: np.ndarray, *, classes: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Logits float32 [N, K] of where to look, `POWER` log P(label | square), by linear discriminants of other photos.

    However many photos there are, no more is kept of them than that, a covariance for each fold and `SCORES`.

    Args:
        features: of all photos, and then again, of those that are asked for.
        labels: int [N].
        classes: how many there are.
        groups: of each photo; others of its group tell a photo no more than it tells itself. None where there are none.
    """
    order, every = np.random.default_rng(0).permutation(len(labels)), np.arange(len(labels))
    folds = order % FOLDS
    if groups is not None:
        names, of = np.unique(np.asarray(groups), return_inverse=True)
        folds = np.random.default_rng(0).permutation(len(names))[of] % FOLDS
    # Each photo's squares are summed up once, and not once for each fold that they are fitted for.
    each: list[Moments] = []
    for photos, rows in _some(features, every):
        if not each:
            # Sums around what photos have in common lose fewer digits; any centre is right.
            centre = rows.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
            squares, width = rows.shape[1:]
            each = [Moments.zeros(classes, width) for _ in range(FOLDS)]
        for fold, total in enumerate(each):
            of_fold = folds[photos] == fold
            total.add(rows[of_fold], labels[photos[of_fold]], centre)
    fitted = []
    for fold in range(FOLDS):
        others = [each[other] for other in range(FOLDS) if other != fold]
        fitted.append(discriminants(Moments(*map(sum, zip(*others, strict=True))), centre))
    weights, bias = map(np.stack, zip(*fitted, strict=True))

    def scores(wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for photos, rows in _some(features, wanted):
            yield photos, rows.astype(np.float32) @ weights[folds[photos]] + bias[folds[photos], None]

    asked = np.flatnonzero(order < max(FOLDS, SCORES // (squares * classes)))
    scale = _sureness(np.concatenate([found for _, found in scores(asked)]), labels[asked])
    own = [_own_log_probability(found, labels[photos], scale) for photos, found in scores(every)]
    return POWER * np.concatenate(own)


def _some(features: Features, photos: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The photos with their squares' features, some at a time."""
    begin = 0
    for rows in features(photos):
        yield photos[begin : begin + len(rows)], rows
        begin += len(rows)


def _sureness(scores: np.ndarray, labels: np.ndarray) -> float:
    """The factor on scores [N, K, C] that makes ``mean_k P(label | square k)`` likeliest.

    Some of a photo's squares tell its label, nobody says which: where only one in ten does, as on DeepPCB, what makes
    the label likeliest in each of them is near chance throughout.
    """

    def loss(log_scale: float) -> float:
        own = _own_log_probability(scores, labels, math.exp(log_scale))
        return -float(np.mean(logsumexp(own.astype(np.float64), axis=1)))

    return math.exp(minimize_scalar(loss, bounds=(-8.0, 3.0), method="bounded").x)


def _own_log_probability(scores: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
    """log P(label | square) float32 [N, K], of scores [N, K, C] times `scale`."""
    own = np.broadcast_to(labels[:, None, None], (*scores.shape[:2], 1))
    return np.take_along_axis(log_softmax(np.float32(scale) * scores, axis=-1), own, axis=-1)[..., 0]


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

    @classmethod
    def zeros(cls, classes: int, width: int) -> "Moments":
        """Of no squares."""
        return cls(np.zeros(classes), np.zeros((classes, width)), np.zeros((width, width)))

    def add(self, features: np.ndarray, labels: np.ndarray, centre: np.ndarray) -> None:
        """More squares, in place. features: [N, K, D], all K squares of a photo are of its class; labels: int [N]."""
        rows = features.astype(np.float32) - centre
        np.add.at(self.sums, labels, rows.sum(axis=1))
        np.add.at(self.members, labels, rows.shape[1])
        rows = rows.reshape(-1, rows.shape[-1])
        np.add(self.products, rows.T @ rows, out=self.products)


def discriminants(found: Moments, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, C] and bias [C] of normal densities around the classes' means that share a covariance.

    A class without an example is as likely as the mean of all.
    """
    members, width = found.members[:, None], len(centre)
    means = np.where(members > 0, found.sums / np.maximum(members, 1), found.sums.sum(axis=0) / max(members.sum(), 1))
    within = (found.products - (members * means).T @ means) / max(members.sum(), 1)
    within *= 1.0 - SHRINKAGE
    within[np.diag_indices_from(within)] += SHRINKAGE / (1.0 - SHRINKAGE) * np.trace(within) / width + 1e-12
    weights = np.linalg.solve(within, means.T)
    bias = -0.5 * np.sum(means.T * weights, axis=0) - centre @ weights
    return weights.astype(np.float32), bias.astype(np.float32)
