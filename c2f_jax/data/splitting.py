"""Which photos are set aside: by a hash of their paths, the share of each class, and groups undivided."""

import hashlib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from c2f_jax.errors import UserError


class Item(NamedTuple):
    """A photo: path relative to the root, class, and box (ymin, xmin, ymax, xmax) in fractions of it, or None."""

    path: str
    label: int
    box: tuple[float, float, float, float] | None = None


def compile_pattern(text: str) -> re.Pattern[str] | None:
    """The regular expression of `dataset.group_by`; None for "".

    Raises:
        UserError: if it is none.
    """
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UserError(f"dataset.group_by: {text!r} is no regular expression ({error})") from error


def group_of(pattern: re.Pattern[str], path: str) -> str | None:
    """The pattern's first group in `path`, or all that it matches; None where it does not match, or matches nothing."""
    match = pattern.search(path)
    if match is None:
        return None
    return (match.group(1) if pattern.groups else match.group()) or None


def joined(bands: Iterable[Sequence[str]]) -> dict[str, str]:
    """Name -> the key of its unit. Names that stand in one band, or in bands that share a name, are one unit.

    The key is the unit's first name in the order of the alphabet.
    """
    first: dict[str, str] = {}

    def find(name: str) -> str:
        while first.setdefault(name, name) != name:
            first[name] = name = first[first[name]]
        return name

    for band in bands:
        for name in band:
            one, other = sorted((find(band[0]), find(name)))
            first[other] = one
    return {name: find(name) for name in first}


def set_aside(
    items: Sequence[Item], fraction: float, *, at_least: int = 0, units: Mapping[str, str] | None = None
) -> tuple[list[Item], list[Item]]:
    """(kept, set aside): about the share `fraction` of each class.

    Units are taken in the order of a hash of their keys, so that new photos hardly change who is chosen among the old;
    each if that brings the counts of its classes nearer to their shares. `at_least` so many of each class are set aside
    where its photos are not all of one unit, but never all of a class.

    Args:
        items: the photos.
        fraction: the share.
        at_least: photos of each class.
        units: path -> key, of photos that stay together; a photo that is not in it is alone.
    """
    members = defaultdict(list)
    for item in items:
        members[(units or {}).get(item.path, item.path)].append(item)
    counts = {key: Counter(item.label for item in unit) for key, unit in members.items()}
    total = Counter(item.label for item in items)
    quota = {label: min(count - 1, max(at_least, math.floor(fraction * count + 0.5))) for label, count in total.items()}
    aside: Counter[int] = Counter()
    order = sorted(members, key=lambda key: hashlib.sha256(os.fsencode(key)).digest())
    chosen = set()

    def gain(key: str) -> int:
        """How much nearer the unit brings the counts."""
        return sum(
            abs(aside[label] - quota[label]) - abs(aside[label] + count - quota[label])
            for label, count in counts[key].items()
        )

    def may(key: str) -> bool:
        return all(aside[label] + count < total[label] for label, count in counts[key].items())

    for key in order:
        if gain(key) > 0 and may(key):
            chosen.add(key)
            aside.update(counts[key])
    for label in sorted(total) if at_least else ():
        if aside[label] > 0 or quota[label] == 0:
            continue
        # All units of a class were too large for its share.
        left = [key for key in order if label in counts[key] and may(key)]
        if left:
            key = max(left, key=gain)
            chosen.add(key)
            aside.update(counts[key])
    taken = {item.path for key in chosen for item in members[key]}
    return [item for item in items if item.path not in taken], [item for item in items if item.path in taken]


def shots(items: Sequence[Item], count: int) -> list[Item]:
    """The first `count` photos of each class in the order of the hash: five are among the ten."""
    by_class = defaultdict(list)
    for item in items:
        by_class[item.label].append(item)
    chosen: set[str] = set()
    for members in by_class.values():
        members.sort(key=lambda item: hashlib.sha256(os.fsencode(item.path)).digest())
        chosen.update(item.path for item in members[:count])
    return [item for item in items if item.path in chosen]
