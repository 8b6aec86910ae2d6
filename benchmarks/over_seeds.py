"""Figures of runs at several seeds: means, paired differences with their intervals, and how they are written."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

SEEDS_OF_A_CLAIM = 5
RESAMPLES = 10_000
ABSENT = "–"


class Difference(NamedTuple):
    """A contrast's outcome, in fractions (of the test images, or of what is shown of a box).

    Attributes:
        mean: over images and seeds.
        seeds: how many.
        by_image: 95 % interval by the bootstrap over images and seeds.
        by_seed: 95 % interval by Student's t over the seeds' means; None for one seed.
        weighted: whether images had weights.
    """

    mean: float
    seeds: int
    by_image: tuple[float, float]
    by_seed: tuple[float, float] | None
    weighted: bool = False


def paired_bootstrap(
    differences: np.ndarray, weights: np.ndarray | None = None, *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds and images, both drawn with replacement.

    Args:
        differences: [S, N], one model's correctness (or box) minus the other's on the same seed and image.
        weights: of the images in each mean, [N] above 0; None for equal ones.
        resamples: how many means to draw.

    Returns:
        The 2.5th and 97.5th percentile of the means; the draws are the same at each call.

    References:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals); seeds and images
        as crossed factors: Owen 2007, arXiv:0712.1111 (the pigeonhole bootstrap).
    """
    rng = np.random.default_rng(0)
    seeds, images = differences.shape
    weights = np.ones(images) if weights is None else weights

    def mean(rows: np.ndarray, columns: np.ndarray) -> float:
        return np.average(differences[rows].mean(axis=0)[columns], weights=weights[columns])

    means = [mean(rng.integers(seeds, size=seeds), rng.integers(images, size=images)) for _ in range(resamples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def t_interval(means: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of `means` [S], S at least 2, by Student's t: of what other seeds would give."""
    half = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    return float(np.mean(means) - half), float(np.mean(means) + half)


def compare(differences: np.ndarray, weights: np.ndarray | None = None, *, resamples: int = RESAMPLES) -> Difference:
    """The mean of `differences` [S, N] and its intervals; arguments as of `paired_bootstrap`.

    Where images are not alone but of groups, give the groups' means, weighted by their numbers of images: then whole
    groups are drawn.
    """
    means = np.average(differences, axis=1, weights=weights)
    return Difference(
        float(means.mean()),
        len(means),
        paired_bootstrap(differences, weights, resamples=resamples),
        t_interval(means) if len(means) > 1 else None,
        weights is not None,
    )


def between(interval: tuple[float, float] | None) -> str:
    """An interval of fractions in points, "+0.2 to +4.0"; a dash for none."""
    return ABSENT if interval is None else " to ".join(f"{100 * end:+.1f}" for end in interval)


def reading(outcome: Difference) -> str:
    """What may be said of a difference: nothing that one of its intervals leaves open."""
    if outcome.seeds < SEEDS_OF_A_CLAIM:
        return f"no claim: {outcome.seeds} of {SEEDS_OF_A_CLAIM} seeds"
    lows, highs = zip(outcome.by_image, outcome.by_seed or outcome.by_image, strict=True)
    return "higher" if min(lows) > 0 else "lower" if max(highs) < 0 else "not told apart"


def mean_sd(values: Sequence[float | None], digits: int, scale: float = 1.0) -> str:
    """Mean ± standard deviation over seeds (the mean alone for one seed), a dash where nothing was measured."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return ABSENT
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {np.std(known, ddof=1):.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    rule = "|" + "---|" * len(header)
    return ["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows), ""]
