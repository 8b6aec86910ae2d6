"""What every builder says of its data set: where it is published, how its tables are read, what each photo is."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from c2f_jax.console import warn
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.data.builders.files import Files, stem
from c2f_jax.errors import UserError


class Photo(NamedTuple):
    """What the tables say of a photo. Places are in pixels of the file as it is stored, before EXIF turns it.

    Attributes:
        name: the end of its path; no other photo has it.
        image_id: what the data set calls it.
        labels: its class at each level of `Annotations.class_names`.
        box: x1, y1, x2, y2 of the object's edges, or None.
        parts: float [P, 2], (x, y), or None.
        part_visible: bool [P], or None.
        segmentation: the end of the path of a mask (PNG), or None.
    """

    name: str
    image_id: str
    labels: tuple[int, ...]
    box: tuple[float, float, float, float] | None = None
    parts: np.ndarray | None = None
    part_visible: np.ndarray | None = None
    segmentation: str | None = None


class Annotations(NamedTuple):
    """All that the tables say.

    Attributes:
        class_names: by level, the finest and default one first.
        photos: of the parts "train" and "test", in the data set's order.
    """

    class_names: Mapping[str, tuple[str, ...]]
    photos: Mapping[str, Sequence[Photo]]


@dataclass(frozen=True)
class Dataset:
    """A data set that people publish figures on.

    Attributes:
        name: of `dataset.name`.
        title: for people.
        archives: where it is published.
        read: makes sense of its tables.
        tables: of them, those that tell its versions apart; the first one is always there.
        members: a regular expression, of all members of archives that `read` asks for.
        levels: what it labels; the finest and default one first.
        counts: published: "train" and "test" images, and "classes" of the default level.
        counts_source: who says so.
        folders: names of those that hold its photos, its masks, and its boxes if each has a file.
        banner: pixels at the bottom of each photo that are no part of it.
        box_of_mask: whether its masks are trimaps, and the box is around their objects.
        optional: folders, or archives without suffixes, that it is whole without.
        homepage: for people.
    """

    name: str
    title: str
    archives: tuple[Archive, ...]
    read: Callable[[Files], Annotations]
    tables: tuple[str, ...]
    members: str
    counts: Mapping[str, int]
    counts_source: str
    homepage: str
    folders: tuple[str, ...]
    levels: tuple[str, ...] = ("label",)
    banner: int = 0
    box_of_mask: bool = False
    optional: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """Names of archives without suffixes."""
        return tuple(stem(archive.name) for archive in self.archives)

    @property
    def needed(self) -> tuple[Archive, ...]:
        """What has to be there."""
        return tuple(archive for archive in self.archives if not archive.optional)

    @property
    def how(self) -> str:
        """How to give it by hand."""
        names = [archive.name for archive in self.needed]
        if len(names) == 1:
            return f"the file with --config.dataset.path={names[0]}"
        return f"a folder that holds {', '.join(names)} with --config.dataset.path=DIR"


def check(path: Path, annotations: Annotations) -> None:
    """Raises UserError unless there is something to train and test on, and every photo stands in one place."""
    for part, photos in annotations.photos.items():
        if not photos:
            raise UserError(f"{path}: the tables leave the {part} part empty; unpack the whole of the official archive")
    names = Counter(photo.name for photos in annotations.photos.values() for photo in photos)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: the tables list {name} {count} times; mend them, or fetch the archive again")
    class_names = next(iter(annotations.class_names.values()))
    trained = {photo.labels[0] for photo in annotations.photos["train"]}
    for label, name in enumerate(class_names):
        if label not in trained:
            raise UserError(f"{path}: class {name} has no training image; take it out of the tables")


# --- Tables ---


def rows(files: Files, table: str, columns: int, *, comment: str = "") -> Iterator[list[str]]:
    """The words of each line; the last may hold spaces. Lines that begin with `comment` are none."""
    for number, line in enumerate(files.text(table).split("\n"), start=1):
        if comment and line.lstrip().startswith(comment):
            continue
        words = line.strip().split(maxsplit=columns - 1)
        if words and len(words) != columns:
            raise UserError(f"{files.path}: {table}, line {number} must have {columns} words, not {line.strip()!r}")
        if words:
            yield words


def lines(files: Files, table: str) -> list[str]:
    """Those that are not empty."""
    found = [line.strip() for line in files.text(table).split("\n") if line.strip()]
    if not found:
        raise UserError(f"{files.path}: {table} is empty")
    return found


def unique_rows(files: Files, table: str, *, names: bool = True) -> dict[str, str]:
    """Id -> name, where no id comes twice, nor, with `names`, a name."""
    found = list(rows(files, table, 2))
    if not found:
        raise UserError(f"{files.path}: {table} is empty")
    for column in list(zip(*found, strict=True))[: 2 if names else 1]:
        word, count = Counter(column).most_common(1)[0]
        if count > 1:
            raise UserError(f"{files.path}: {table} lists {word} {count} times")
    return {key: name for key, name in found}


def by_image(
    files: Files, table: str, columns: int, known: Collection[str], of: str, *, strict: bool = True
) -> dict[str, list[list[str]]]:
    """Image id -> the other words of its lines. `of`: the table that lists the `known` ones.

    strict: whether to refuse lines of other images; else they are told and passed over.
    """
    found: dict[str, list[list[str]]] = {}
    unknown = 0
    for image_id, *words in rows(files, table, columns):
        if image_id not in known and strict:
            raise UserError(f"{files.path}: {table} names image {image_id}, which {of} does not list")
        if image_id in known:
            found.setdefault(image_id, []).append(words)
        else:
            unknown += 1
    if unknown:
        warn(f"{files.path}: {unknown} lines of {table} name images that {of} does not list: they are passed over")
    return found


def box(
    files: Files, table: str, image_id: str, found: Mapping[str, list[list[str]]], *, sizes: bool
) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 of an image; None if it has no line. sizes: whether the table has widths and heights instead."""
    if image_id not in found:
        return None
    x, y, *rest = numbers(files, table, image_id, [one(files, table, image_id, found)])[0].tolist()
    return (x, y, x + rest[0], y + rest[1]) if sizes else (x, y, rest[0], rest[1])


def one(files: Files, table: str, image_id: str, found: Mapping[str, list[list[str]]]) -> list[str]:
    """The only line of an image."""
    count = len(found.get(image_id, []))
    if count != 1:
        raise UserError(f"{files.path}: {table} has {count} lines for image {image_id}, not 1")
    return found[image_id][0]


def numbers(files: Files, table: str, image_id: str, words: Sequence[Sequence[str]]) -> np.ndarray:
    """float64; raises UserError if one is none."""
    try:
        found = np.array(words, np.float64)
    except ValueError:
        found = np.array(np.nan)
    if not np.all(np.isfinite(found)):
        raise UserError(f"{files.path}: {table} has something other than numbers for image {image_id}")
    return found


def parts(
    files: Files, table: str, image_id: str, found: Mapping[str, list[list[str]]], ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) [P, 2] and whether it is seen [P], from lines of part, x, y, seen; the parts are called `ids`."""
    table_rows = numbers(files, table, image_id, found.get(image_id, []))
    table_rows = table_rows[np.argsort(table_rows[:, 0], kind="stable")] if table_rows.size else np.zeros((0, 4))
    if table_rows[:, 0].tolist() != list(ids):
        raise UserError(f"{files.path}: {table} must list parts {ids[0]} to {ids[-1]} of image {image_id}, once each")
    return table_rows[:, 1:3], table_rows[:, 3] > 0


def part_of(files: Files, table: str, image_id: str, found: Mapping[str, list[list[str]]]) -> str:
    """ "train" where the table says 1, "test" where it says 0."""
    (is_train,) = one(files, table, image_id, found)
    if is_train not in ("0", "1"):
        raise UserError(f"{files.path}: {table} has {is_train!r} for image {image_id}; 1 is train, 0 test")
    return "train" if is_train == "1" else "test"


def told_apart(names: Sequence[str], ids: Sequence[str]) -> tuple[str, ...]:
    """Names of classes; those that come twice with their ids behind."""
    times = Counter(names)
    return tuple(f"{name} ({key})" if times[name] > 1 else name for name, key in zip(names, ids, strict=True))


def matlab(files: Files, table: str, variable: str) -> np.ndarray:
    """A variable of a .mat file, arrays of one element taken out.

    Raises:
        UserError: if it is no such file, or lacks the variable.
    """
    import scipy.io  # late: who has no such file need not wait for it

    try:
        return np.atleast_1d(scipy.io.loadmat(BytesIO(files.read(table)), squeeze_me=True)[variable])
    except UserError:
        raise
    except Exception as error:  # damaged files make it raise nearly anything
        raise UserError(
            f"{files.path}: {table} is not a MATLAB file with {variable} ({' '.join(str(error).split())[:80]}); "
            "unpack the official archive again"
        ) from error
