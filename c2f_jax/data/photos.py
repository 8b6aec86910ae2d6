"""Your own photos, from a tree of folders or a table (see `listing`), as parts to train, validate and test on.

Without a test part `TEST_FRACTION` of each class is set aside. Every file is decoded once before training, so that none
that cannot be read turns up in the middle of it.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c2f_jax import storage
from c2f_jax.data import checking, images, splitting
from c2f_jax.data.checking import Verdict
from c2f_jax.data.listing import SLACK, Listed, Listing, read, some
from c2f_jax.data.raw import Raw
from c2f_jax.data.splitting import Item
from c2f_jax.errors import UserError

TEST_FRACTION = 0.2
_BEGINNING = 1 << 16  # bytes of a file that tell it from others of its size


class Photos:
    """A random-access source of photos, decoded when they are asked for; as of `images.decode`'s `min_side`.

    Attributes:
        sizes: height and width of each in pixels, int [N, 2]; None if they are not known.
    """

    def __init__(
        self,
        root: Path,
        items: Sequence[Item],
        min_side: int | None = None,
        groups: Mapping[str, str] | None = None,
        verdicts: Mapping[str, Verdict] | None = None,
    ):
        """groups: by path, of the photos that have one; verdicts: by path, if they are known."""
        self._root, self._items, self._min_side, self._groups = root, items, min_side, groups or {}
        self.sizes: np.ndarray | None = None
        if verdicts is not None:
            sizes = [(verdicts[item.path].height, verdicts[item.path].width) for item in items]
            self.sizes = np.array(sizes, int).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def labels(self) -> np.ndarray:
        """int [N], without decoding a photo."""
        return np.array([item.label for item in self._items], int)

    @property
    def groups(self) -> list[str] | None:
        """Of each photo, its own path where it is alone; None where no photo has one."""
        return [self._groups.get(item.path, item.path) for item in self._items] if self._groups else None

    @property
    def digest(self) -> str:
        """The same for the same paths under the same labels, wherever their root lies."""
        lines = sorted(f"{item.path}\0{item.label}" for item in self._items)
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:32]

    @property
    def content(self) -> str:
        """The same for the same files: by their sizes and beginnings, for names such as 001.jpg stand anywhere."""
        whole = hashlib.sha256()

        def look(item: Item) -> bytes:
            place = storage.join(self._root, item.path)
            try:
                return hashlib.sha256(storage.read_bytes(place, _BEGINNING)).digest() + b"%d;" % storage.size(place)
            except OSError as error:
                raise UserError(f"{place} cannot be read ({storage.told(error)}); start again") from error

        for part in storage.each(look, sorted(self._items)):
            whole.update(part)
        return whole.hexdigest()[:32]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises UserError if the file has gone bad since it was checked."""
        return self._example(index, None)

    def scaled(self, index: int, raw: Raw) -> dict[str, Any]:
        """As of `sources.scaled`."""
        return self._example(index, raw.shape)

    def _example(self, index: int, shape: images.Shape | None) -> dict[str, Any]:
        if not 0 <= index < len(self._items):
            raise IndexError(index)
        path, label, box = self._items[index]
        try:
            image = images.decode_photo(storage.join(self._root, path), min_side=self._min_side, shape=shape).image
        except images.UnreadableImage as error:
            raise UserError(
                f"{storage.join(self._root, path)} could be read at the start and now cannot ({error}): "
                "put it back, or start again to leave it out"
            ) from error
        example = {"image": image, "label": label, "index": index, "name": path}
        return example if box is None else example | {"box": np.array(box, np.float32)}


class Parts(NamedTuple):
    """The parts of a data set, and lines to tell the user once."""

    train: Photos
    validation: Photos
    test: Photos
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def load(
    path: str,
    *,
    cache_dir: str,
    unreadable: str,
    validation_fraction: float,
    group_by: str = "",
    shots: int = 0,
    min_side: int | None = None,
    hosts: checking.Hosts | None = None,
) -> Parts:
    """Lists the photos of a tree or table, checks that each can be read, and splits them; the same way every time.

    Args:
        path: the root of the tree, or the table.
        cache_dir: remembers the check, so that the next start is quick.
        unreadable: "skip" leaves files out that cannot be read; "fail" raises.
        validation_fraction: share of each class's training photos to set aside; not used where there is a val part.
        group_by: regular expression on the relative path; photos with the same first group (or the same match) stay
            together. One that it does not match is alone.
        shots: train on so many photos of each class only; 0 for all. Validation and test part are as without.
        min_side: pixels that the shorter side of a photo will be reduced to, if that is less; None if it will not.
        hosts: who share the check of photos in a bucket.

    Raises:
        UserError: if the photos cannot be used; it names the folder, file or row and the remedy.
    """
    place = storage.as_path("dataset.path", path)
    pattern = splitting.compile_pattern(group_by)
    listing = read(place)
    class_names = _class_names(place, listing)
    if pattern is not None:
        listing = _grouped(place, listing, pattern)
    notes = list(listing.notes)
    verdicts = checking.check(listing.root, [item.path for item in listing.items], cache_dir, hosts)
    readable = usable(place, listing.items, verdicts, unreadable)
    notes += checking.unreadable_lines(verdicts)
    labels = {name: label for label, name in enumerate(class_names)}
    by_part: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(readable, key=lambda item: (labels[item.label], item.path)):
        box = normalised_box(place, item, verdicts[item.path])
        by_part[item.part or "train"].append(Item(item.path, labels[item.label], box))
    train, validation, test = by_part["train"], by_part["val"], by_part["test"]
    missing = set(range(len(class_names))) - {item.label for item in train}
    if missing:
        raise UserError(f"{place}: no image of class {class_names[min(missing)]} can be read; mend or remove them")
    groups = {item.path: item.group for item in readable if item.group}
    divided = _divided(readable)
    notes += divided

    units = _units(train, groups, verdicts)
    if not test:
        if any(item.part == "test" for item in listing.items):
            raise UserError(f"{place}: the test part holds no image that can be read; fill it or remove it")
        train, test = splitting.set_aside(train, TEST_FRACTION, at_least=1, units=units)
        notes.append(f"no test part: {TEST_FRACTION:.0%} of each class, {len(test)} images, are set aside as test part")
        if not test:
            few = "group" if groups else "image"
            raise UserError(f"{place}: one {few} per class leaves none for the test part; add images")
    untested = [class_names[i] for i in sorted({item.label for item in train} - {item.label for item in test})]
    if untested:
        few = "" if by_part["test"] else f" (of one {'group' if groups else 'image'} only)"
        notes.append(f"{len(untested)} of {len(class_names)} classes are not in the test part{few}: {some(untested)}")
    if not validation:
        train, validation = splitting.set_aside(train, validation_fraction, units=units)
    parts = {"train": train, "validation": validation, "test": test}
    notes += _copies(parts, verdicts)
    if shots:
        parts["train"] = splitting.shots(train, shots)
        notes.append(told_shots(shots, len(parts["train"]), len(train)))
    for name, items in parts.items():
        boxless = sum(item.box is None for item in items)
        if 0 < boxless < len(items):
            notes.append(f"{boxless} of {len(items)} images of the {name} part have no box: its boxes are not used")
            parts[name] = [item._replace(box=None) for item in items]
    notes.insert(0, summary({name: [item.label for item in items] for name, items in parts.items()}, class_names))
    if groups and not divided:
        notes.insert(1, f"{len(set(groups.values()))} groups, each on one side of a split")
    sources = [Photos(listing.root, items, min_side, groups, verdicts) for items in parts.values()]
    return Parts(sources[0], sources[1], sources[2], class_names, tuple(notes))


def usable(place: Path, items: Sequence[Listed], verdicts: Mapping[str, Verdict], unreadable: str) -> list[Listed]:
    """The photos that can be read.

    Raises:
        UserError: if none can, or one cannot and `unreadable` is "fail".
    """
    bad = sorted(item.path for item in items if verdicts[item.path].error)
    if bad:
        first, reason = bad[0], verdicts[bad[0]].error
        if len(bad) == len(items):
            hint = f"; paths are relative to {place.parent}" if storage.is_file(place) else ""
            raise UserError(
                f"{place}: none of the {len(items)} images can be read; the first is {first} ({reason}){hint}"
            )
        if unreadable == "fail":
            raise UserError(
                f"{place}: {len(bad)} of {len(items)} images cannot be read; the first is {first} ({reason}); mend or "
                "remove them, or leave them out with --config.dataset.unreadable=skip"
            )
    return [item for item in items if not verdicts[item.path].error]


def normalised_box(place: Path, item: Listed, verdict: Verdict) -> tuple[float, float, float, float] | None:
    """The object's box (ymin, xmin, ymax, xmax) in fractions of the photo, cut to it; None if none is given.

    Raises:
        UserError: if it lies outside by more than `SLACK` pixels.
    """
    if item.box is None:
        return None
    ymin, xmin, ymax, xmax = item.box
    height, width = verdict.height, verdict.width
    if ymax > height + SLACK or xmax > width + SLACK or ymin >= height or xmin >= width or ymax <= 0 or xmax <= 0:
        raise UserError(
            f"{place}: row {item.row}: the box {xmin:g}, {ymin:g}, {xmax:g}, {ymax:g} reaches out of the photo "
            f"{item.path}, which is {width} wide and {height} high (pixels, turned upright as EXIF says)"
        )
    return max(ymin, 0) / height, max(xmin, 0) / width, min(ymax / height, 1.0), min(xmax / width, 1.0)


def summary(labels: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> str:
    """Classes, images by part, and the smallest and largest class of the training part, in a line."""
    counts = Counter({label: 0 for label in range(len(class_names))})
    counts.update(labels["train"])
    (most, largest), *_, (fewest, smallest) = counts.most_common()
    spread = f"fewest {smallest} ({class_names[fewest]}), most {largest} ({class_names[most]})"
    return (
        f"{len(class_names)} classes; {', '.join(f'{len(part)} {name}' for name, part in labels.items())} images; "
        f"in train of each class {smallest if smallest == largest else spread}"
    )


def told_shots(shots: int, used: int, there: int) -> str:
    """A line on how many training images are used."""
    return f"dataset.shots={shots}: {used} of {there} training images are used"


def _class_names(place: Path, listing: Listing) -> tuple[str, ...]:
    teaching = sorted({item.label for item in listing.items if item.part in (None, "train")})
    held_out = [item for item in listing.items if item.part in ("val", "test")]
    if not teaching and held_out:
        if storage.is_file(place):
            raise UserError(f"{place}: no row has the split train; give it to the photos to train on")
        here = held_out[0].path.split("/")[0]
        raise UserError(f"{place}: holds {here}/ and no train/; put the training images into train/<class>/")
    for path in listing.empty:
        folder = place / path
        linked = not storage.is_remote(folder) and folder.is_symlink()
        link = f" of its own: it is a link to {folder.resolve()}" if linked else ""
        raise UserError(f"{folder.parent}: class folder {folder.name} holds no image{link}; fill it or remove it")
    if len(teaching) < 2:
        what = "class folder" if storage.is_dir(place) else "label"
        raise UserError(f"{place}: has only one {what}, {teaching[0]}; two or more are needed to tell apart")
    for item in held_out:
        if item.label not in teaching:
            where, train = (place / item.path, "train/") if item.row is None else (f"{place}: row {item.row}", "train")
            raise UserError(f"{where}: class {item.label} is not in {train}; add it there, or remove it")
    return tuple(teaching)


def _grouped(place: Path, listing: Listing, pattern: Any) -> Listing:
    """With the groups that `dataset.group_by` finds in the paths."""
    if any(item.group for item in listing.items):
        raise UserError(f"{place} has a column group; leave out dataset.group_by, or the column")
    items = tuple(item._replace(group=splitting.group_of(pattern, item.path)) for item in listing.items)
    alone = [item.path for item in items if item.group is None]
    if len(alone) == len(items):
        raise UserError(f"dataset.group_by: {pattern.pattern!r} matches no path; the first is {alone[0]}")
    notes = listing.notes
    if alone:
        notes += (f"dataset.group_by matches not {len(alone)} of {len(items)} paths, each alone then: {some(alone)}",)
    return listing._replace(items=items, notes=notes)


def _divided(items: Sequence[Listed]) -> list[str]:
    """A line if groups stand in two of the parts that were given."""
    parts = defaultdict(set)
    for item in items:
        if item.group:
            parts[item.group].add(item.part)
    divided = sorted(group for group, of in parts.items() if len(of) > 1)
    if not divided:
        return []
    return [f"{len(divided)} groups stand in two parts, so that test figures may flatter: {some(divided)}"]


def _units(items: Sequence[Item], groups: Mapping[str, str], verdicts: Mapping[str, Verdict]) -> dict[str, str]:
    """Path -> key, of photos that no split may divide: of a group, or exact copies in one class."""
    bands: dict[tuple[str, object], list[str]] = {}
    for item in items:
        if item.path in groups:
            name = groups[item.path]
            # No path begins so: the group's name is its unit's key, whoever joins it.
            bands.setdefault(("group", name), [f"\0{name}"]).append(item.path)
        if verdicts[item.path].pixels:
            bands.setdefault(("copies", (item.label, verdicts[item.path].pixels)), []).append(item.path)
    return splitting.joined(band for band in bands.values() if len(band) > 1)


def _copies(parts: Mapping[str, Sequence[Item]], verdicts: Mapping[str, Verdict]) -> list[str]:
    """Lines on photos that look alike across parts, and on copies under two classes."""
    notes = []
    train, validation, test = ([item.path for item in items] for items in parts.values())
    near = checking.alike(verdicts, test, train + validation) | checking.alike(verdicts, validation, train)
    if near:
        notes.append(
            f"{len(near)} photos have a nearly equal one in another part, so that figures may flatter; give them one "
            f"group (docs/data.md): {some(f'{one} = {other}' for one, other in near.items())}"
        )
    labels: dict[str, dict[int, str]] = defaultdict(dict)
    for items in parts.values():
        for item in items:
            if verdicts[item.path].pixels:
                labels[verdicts[item.path].pixels].setdefault(item.label, item.path)
    twice = [" = ".join(by_label.values()) for by_label in labels.values() if len(by_label) > 1]
    if twice:
        notes.append(f"{len(twice)} photos stand in two classes, pixel for pixel: {some(twice)}")
    return notes
