"""Name -> random-access sources of examples, one per split.

An example is a dict: `image` uint8 [H, W, 3], `label` int, `index` int (its position in its split) and, where known,
`box` float32 [4] (ymin, xmin, ymax, xmax, normalised to the image), `parts` float32 [P, 2] (y, x) and `part_visible`
bool [P].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from c2f_jax import storage
from c2f_jax.data import checking, deep_pcb, paper_birds, photos
from c2f_jax.data.builders import fetch
from c2f_jax.data.raw import Raw
from c2f_jax.errors import UserError

Example = dict[str, Any]

PUBLISHED = (
    *("cub200_2011", "fgvc_aircraft", "inat2021", "inat2021_mini", "nabirds", "oxford_iiit_pet"),
    *("stanford_cars", "stanford_dogs"),
)
NAMES = ("paper_birds", *PUBLISHED, "deep_pcb", "folder")
TFDS = "tfds:"  # before a name of TFDS


class Source(Protocol):
    """What grain calls a random-access data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Labelled(Source, Protocol):
    """A source that knows its labels, int [N], without decoding an image: as `load` gives them."""

    @property
    def labels(self) -> np.ndarray: ...


def scaled(source: Source, index: int, raw: Raw) -> Example:
    """`source[index]` with its image as of `raw.scale`; a source that has a `scaled` of its own is quicker about it."""
    own = getattr(source, "scaled", None)
    if own is not None:
        return cast(Example, own(index, raw))
    example = source[index]
    return example | {"image": raw.scale(np.asarray(example["image"]))}


class Subset:
    """Some examples of a source, in the order of `indices`; each keeps the `index` it has in the source."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self._source, self._indices = source, np.asarray(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def scaled(self, index: int, raw: Raw) -> Example:
        """As of `scaled`."""
        return scaled(self._source, int(self._indices[index]), raw)

    @property
    def labels(self) -> np.ndarray:
        """int [N], of a `Labelled` source."""
        return cast(Labelled, self._source).labels[self._indices]

    @property
    def sizes(self) -> np.ndarray | None:
        """Height and width of each photo in pixels, int [N, 2]; None if the source does not know without decoding."""
        sizes = getattr(self._source, "sizes", None)
        return None if sizes is None else sizes[self._indices]

    @property
    def groups(self) -> list[str] | None:
        """Of each example, what no split divides; None where nothing is known of any."""
        groups = getattr(self._source, "groups", None)
        return None if groups is None else [groups[index] for index in self._indices]


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
        return self._source[self._of(index)]

    def scaled(self, index: int, raw: Raw) -> Example:
        """As of `scaled`."""
        return scaled(self._source, self._of(index), raw)

    def _of(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        members = self._members[index // self._size]
        return int(members[index % self._size % len(members)])


@dataclass(frozen=True)
class Splits:
    """A data set: training, validation (set aside from training; may be empty) and test part."""

    train: Source
    validation: Source
    test: Source
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()  # lines to tell the user once
    published: Mapping[str, int] = field(default_factory=dict)  # of "train", "test" and "classes"; empty: nothing is


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


def check_options(
    name: str, *, path: str, train_size: int | None, test_size: int | None, group_by: str, fields: str
) -> dict[str, str]:
    """What `fields` calls how, for `load`; says what no data set of that name could do with, before one is looked for.

    Raises:
        UserError: if there is no such data set, or an option is not for it.
    """
    if name not in NAMES and (not name.startswith(TFDS) or name == TFDS):
        raise UserError(f"dataset.name must be one of {', '.join(NAMES)}, or {TFDS}NAME; got {name!r}")
    called = _fields(name, fields)
    if name == "paper_birds" and path:
        raise UserError(
            "dataset.path is for photos and paper_birds are drawn; leave it out, "
            "or give --config configs/folder.py or --config configs/cub.py"
        )
    if name != "paper_birds" and (train_size is not None or test_size is not None):
        raise UserError(f"dataset.train_size and dataset.test_size are for paper_birds; {name} has its own")
    if name != "folder" and group_by:
        raise UserError(f"dataset.group_by is for dataset.name=folder; {name} is divided already")
    if name == "folder" and not path:
        raise UserError(
            "dataset.name=folder needs the folder that holds one folder per class, --config.dataset.path=DIR, "
            "or a table of path and label, --config.dataset.path=labels.csv"
        )
    if name != "folder" and path and storage.is_remote(path):
        raise UserError(f"dataset.path: {name} is read from this machine; copy {path}, and give the copy")
    return called


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
    fields: str = "",
    track: fetch.Track = fetch.untracked,
) -> Splits:
    """The splits of data set `name`.

    Args:
        name: one of `NAMES`, or `tfds:NAME`.
        path: where the photos are; empty for paper_birds, and for published data that are to be fetched; of TFDS its
            data_dir.
        cache_dir: where prepared data go.
        unreadable: folder: whether to "skip" files that cannot be read, or "fail".
        validation_fraction: share of the training part that is set aside, where the data have no validation part.
        train_size, test_size: paper_birds: how many examples to make; None for its own.
        group_by: folder: regular expression on the paths, of photos that no split may divide.
        shots: train on so many examples of each class only, five of them among the ten; 0 for all.
        min_side: pixels that the shorter side of a photo will be reduced to; None if it will not.
        hosts: folder: who share the check of photos in a bucket.
        fields: what is called how in the data: "label=family", of TFDS also `image`, `box`, `train`, ...
        track: shows the progress of what takes long.

    Raises:
        UserError: if there is no such data set, its files are not there or not whole, or an option is not for it.
    """
    called = check_options(
        name, path=path, train_size=train_size, test_size=test_size, group_by=group_by, fields=fields
    )
    if name == "folder":
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
    train: Labelled
    test: Labelled
    validation: Source | None = None
    notes: tuple[str, ...] = ()
    published: Mapping[str, int] = {}
    if name in PUBLISHED:
        # Imported late: who reads none of them need not wait for TFDS.
        from c2f_jax.data.builders import published as builders

        train, test, class_names, notes = builders.load(
            name, path, cache_dir=cache_dir, level=called.get("label", ""), min_side=min_side, track=track
        )
        published = builders.counts(name, called.get("label", ""))
    elif name.startswith(TFDS):
        from c2f_jax.data.builders import other

        train, validation, test, class_names = other.load(
            name.removeprefix(TFDS), path, fields=called, min_side=min_side
        )
    elif name == "deep_pcb":
        train, test, class_names = deep_pcb.load(path, cache_dir=cache_dir, track=track)
        published = deep_pcb.COUNTS
    else:
        train = paper_birds.PaperBirds("train", size=train_size)
        test = paper_birds.PaperBirds("test", size=test_size)
        class_names = paper_birds.CLASS_NAMES
    if validation is not None:
        kept, aside = np.arange(len(train)), np.arange(0)
    elif isinstance(train, deep_pcb.Defects):
        # By whole boards: the other defects of one tell what it looks like without them.
        kept, aside = split_groups(train.boards, validation_fraction)
    else:
        kept, aside = split_indices(len(train), validation_fraction)
    if shots:
        used = _shots(train.labels[kept], shots)
        notes += (photos.told_shots(shots, len(used), len(kept)),)
        kept = kept[used]
    aside_part = Subset(train, aside) if validation is None else validation
    return Splits(Subset(train, kept), aside_part, test, class_names, notes, published)


def _fields(name: str, text: str) -> dict[str, str]:
    """`label=family, test=validation` as a table; raises UserError unless it is one that `name` has a use for."""
    known = ("image", "label", "box", "train", "validation", "test") if name.startswith(TFDS) else ("label",)
    found: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        what, equals, called = (word.strip() for word in item.partition("="))
        empty = not called and what not in ("box", "validation")
        if what not in known or not equals or what in found or empty:
            shown = item if len(item) <= 60 else f"{item[:57]}..."
            raise UserError(
                f"dataset.fields: {shown!r} is not one of {', '.join(f'{word}=...' for word in known)}, each once, "
                "with commas between"
            )
        found[what] = called
    if found and name not in PUBLISHED and not name.startswith(TFDS):
        raise UserError(f"dataset.fields is for data sets with fields of their own; leave it out for {name}")
    return found
