"""Which test images of a run are worth a look."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from c2f_jax.evaluation.outcomes import Outcomes, answer_of, confused, right

# How much is shown: what keeps a report of any data set to a few MB.
EACH_END = 12  # best and worst images
CHANGED = 8  # images that the second look fixed, and that it broke
PAIRS = 12  # confused pairs, each with
PER_PAIR = 3  # images of either class
WITH_MAPS = 4  # images whose maps are shown one by one


@dataclass(frozen=True)
class Choice:
    """Which images are shown where, by index."""

    worst: tuple[int, ...] = ()
    best: tuple[int, ...] = ()
    fixed: tuple[int, ...] = ()
    broke: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int, int, tuple[int, ...], tuple[int, ...]], ...] = ()
    maps: tuple[int, ...] = ()
    far: tuple[int, ...] = ()
    near: tuple[int, ...] = ()

    def all(self) -> set[int]:
        """Every index."""
        shown = {*self.worst, *self.best, *self.fixed, *self.broke, *self.maps, *self.far, *self.near}
        for *_, mistaken, known in self.pairs:
            shown |= {*mistaken, *known}
        return shown


def choose(outcomes: Outcomes) -> Choice:
    """The images worth a look; the same ones for the same outcomes."""
    answer = outcomes.views[answer_of(outcomes.views)]
    order = np.argsort(-answer.loss, kind="stable")
    count = len(order)
    half = min(EACH_END, (count + 1) // 2)
    worst, best = order[:half], order[::-1][: min(EACH_END, count - half)]
    fixed = broke = np.zeros(0, int)
    if "fine" in outcomes.views:
        first = outcomes.views["coarse"]
        change = np.exp(-answer.loss) - np.exp(-first.loss)
        known, before = right(answer), right(first)
        fixed = _strongest(np.flatnonzero(~before & known), -change)
        broke = _strongest(np.flatnonzero(before & ~known), change)
    pairs = []
    for true, told, number in confused(answer)[:PAIRS]:
        mistaken = np.flatnonzero((outcomes.labels == true) & (answer.predicted == told))
        sure = np.flatnonzero((outcomes.labels == told) & right(answer))
        surest = sure[np.argsort(answer.loss[sure], kind="stable")][:PER_PAIR]
        mistaken = mistaken[np.argsort(-answer.confidence[mistaken], kind="stable")][:PER_PAIR]
        pairs.append((true, told, number, _ints(mistaken), _ints(surest)))
    maps = [order[round(place * (count - 1))] for place in np.linspace(0.9, 0.1, min(WITH_MAPS, count))]
    far = near = np.zeros(0, int)
    if outcomes.overlap is not None:
        by_overlap = np.argsort(outcomes.overlap, kind="stable")
        far, near = by_overlap[: min(4, count)], by_overlap[::-1][: min(4, max(0, count - 4))]
    return Choice(
        _ints(worst), _ints(best), _ints(fixed), _ints(broke), tuple(pairs), _ints(maps), _ints(far), _ints(near)
    )


def _strongest(indices: np.ndarray, key: np.ndarray) -> np.ndarray:
    return indices[np.argsort(key[indices], kind="stable")][:CHANGED]


def _ints(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(value) for value in values))
