"""Name -> random-access sources of examples, one per split.

An example is a dict: `image` uint8 [H, W, 3], `label` int, `index` int (its position in its split) and, where known,
`box` float32 [4] (ymin, xmin, ymax, xmax, normalised to the image), `parts` float32 [P, 2] (y, x) and `part_visible`
bool [P].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from c2f_jax import storage
from c2f_jax.data import checking, deep_pcb, paper_birds, photos
from c2f_jax.errors import UserError

Example = dict[str, Any]

NAMES = ("paper_birds", "cub200_2011", "deep_pcb", "folder")


class Source(Protocol):
    """What grain calls a random-access data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Labelled(Source, Protocol):
    """A source that knows its labels, int [N], without decoding an image: as `load` gives them."""

    @property
    def labels(self) -> np.ndarray: ...


class Subset:
    """Some examples of a source, in the order of `indices`; each keeps the `index` it has in the source."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self._source, self._indices = source, np.asarray(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    @property
    def labels(self) -> np.ndarray:
        """int [N], of a `Labelled` source."""
        return cast(Labelled, self._source).labels[self._indices]


class Balanced:
    """`source` with every class equally often: each example of the largest class once, those of others again and again.

    An example keeps the `index` it has in the source.
    """

    def __init__(self, source: Source, labels: np.ndarray):
        """labels: int [N] of the source."""
        self._source = source
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._size = max(map(len, self._members))

    def __len__(self) -> int:
        return self._size * len(self._members)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        members = self._members[index // self._size]
        return self._source[int(members[index % self._size % len(members)])]


@dataclass(frozen=True)
class Splits:
    """A data set: training, validation (set aside from training; may be empty) and test part."""

    train: Source
    validation: Source
    test: Source
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()  # lines to tell the user once


def split_indices(size: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """A fixed random partition of range(size): (kept, set aside), each in ascending order.

    The same for every seed of training, so that runs with other seeds are judged on the same examples.
    """
    order = np.random.default_rng(0).permutation(size)
    aside = round(size * fraction)
    return np.sort(order[aside:]), np.sort(order[:aside])


def split_groups(groups: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """As `split_indices`, by whole groups [N]: the share set aside is one of groups, not of examples."""
    names, of = np.unique(groups, return_inverse=True)
    _, aside = split_indices(len(names), fraction)
    held = np.isin(of, aside)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shots(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` examples of each class, fixed and nested, in ascending order."""
    order = np.random.default_rng(0).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)]))


def load(
    name: str,
    *,
    path: str,
    cache_dir: str,
    unreadable: str,
    validation_fraction: float,
    train_size: int | None,
    test_size: int | None,
    group_by: str = "",
    shots: int = 0,
    min_side: int | None = None,
    hosts: checking.Hosts | None = None,
) -> Splits:
    """The splits of data set `name`.

    Args:
        name: one of `NAMES`.
        path: where the photos are; empty for paper_birds, and for cub200_2011 and deep_pcb if they are to be fetched.
        cache_dir: where prepared data go.
        unreadable: folder: whether to "skip" files that cannot be read, or "fail".
        validation_fraction: share of the training part that is set aside, where the data have no validation part.
        train_size, test_size: paper_birds: how many examples to make; None for its own.
        group_by: folder: regular expression on the paths, of photos that no split may divide.
        shots: train on so many examples of each class only, five of them among the ten; 0 for all.
        min_side: folder: pixels that the shorter side of a photo will be reduced to; None if it will not.
        hosts: folder: who share the check of photos in a bucket.

    Raises:
        UserError: if there is no such data set, its files are not there or not whole, or an option is not for it.
    """
    if name not in NAMES:
        raise UserError(f"dataset.name must be one of {', '.join(NAMES)}; got {name!r}")
    if name == "paper_birds" and path:
        raise UserError(
            "dataset.path is for photos and paper_birds are drawn; leave it out, "
            "or give --config configs/folder.py or --config configs/cub.py"
        )
    if name != "paper_birds" and (train_size is not None or test_size is not None):
        raise UserError(f"dataset.train_size and dataset.test_size are for paper_birds; {name} has its own")
    if name != "folder" and group_by:
        raise UserError(f"dataset.group_by is for dataset.name=folder; {name} is divided already")
    if name == "folder":
        if not path:
            raise UserError(
                "dataset.name=folder needs the folder that holds one folder per class, --config.dataset.path=DIR, "
                "or a table of path and label, --config.dataset.path=labels.csv"
            )
        return Splits(
            *photos.load(
                path,
                cache_dir=cache_dir,
                unreadable=unreadable,
                validation_fraction=validation_fraction,
                group_by=group_by,
                shots=shots,
                min_side=min_side,
                hosts=hosts,
            )
        )
    if path and storage.is_remote(path):
        raise UserError(f"dataset.path: {name} is read from this machine; copy {path}, and give the copy")
    train: Labelled
    test: Labelled
    if name == "cub200_2011":
        # Imported late: who does not read CUB need not wait for TFDS.
        from c2f_jax.data.builders import cub200_2011

        train, test, class_names = cub200_2011.load(path or None, cache_dir=cache_dir)
    elif name == "deep_pcb":
        train, test, class_names = deep_pcb.load(path, cache_dir=cache_dir)
    else:
        train = paper_birds.PaperBirds("train", size=train_size)
        test = paper_birds.PaperBirds("test", size=test_size)
        class_names = paper_birds.CLASS_NAMES
    if isinstance(train, deep_pcb.Defects):
        # By whole boards: the other defects of one tell what it looks like without them.
        kept, aside = split_groups(train.boards, validation_fraction)
    else:
        kept, aside = split_indices(len(train), validation_fraction)
    notes: tuple[str, ...] = ()
    if shots:
        used = _shots(train.labels[kept], shots)
        notes = (photos.told_shots(shots, len(used), len(kept)),)
        kept = kept[used]
    return Splits(Subset(train, kept), Subset(train, aside), test, class_names, notes)
