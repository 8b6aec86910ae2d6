"""The layout of CUB-200-2011: text tables beside a folder of photos; unpacked, or in a tar or zip archive."""

import hashlib
import lzma
import posixpath
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from c2f_jax.errors import UserError

FOLDER = "CUB_200_2011"  # in the official archive, everything is in it
NUM_PARTS = 15
IMAGES, CLASSES, LABELS = "images.txt", "classes.txt", "image_class_labels.txt"
SPLIT, BOXES, PARTS = "train_test_split.txt", "bounding_boxes.txt", "parts/part_locs.txt"
TABLES = (IMAGES, CLASSES, LABELS, SPLIT, BOXES, PARTS)

_ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Files:
    """What lies at a path.

    Attributes:
        path: the folder or the archive.
        tables: what is in each file of `TABLES`.
        photos: the bytes of those photos (names as in images.txt) that are there, in any order.
    """

    path: Path
    tables: dict[str, bytes]
    photos: Callable[[Collection[str]], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True)
class Photo:
    """A line of each table. `box` is (x, y, width, height), `parts` [15, 2] is (x, y), both in pixels."""

    name: str
    image_id: str
    label: int
    box: np.ndarray
    parts: np.ndarray
    part_visible: np.ndarray


@dataclass(frozen=True)
class Layout:
    """All tables together; the photos of a split in the order of images.txt."""

    class_names: tuple[str, ...]
    splits: dict[str, list[Photo]]


def open_files(path: Path) -> Files:
    """The tables at `path`, which is read in whole if it is a tar archive.

    Raises:
        UserError: if it is not there, is neither a folder nor an archive, or lacks a table.
    """
    if not path.exists():
        raise UserError(f"dataset.path: there is no {path}")
    if path.is_dir():
        return _open_folder(path)
    tables = dict(_members(path, lambda name: name.endswith(TABLES)))
    roots = [name.removesuffix(IMAGES) for name in tables if posixpath.basename(name) == IMAGES]
    if not roots:
        raise UserError(f"{path}: holds no {IMAGES}; dataset.path takes the official archive {FOLDER}.tgz")
    root = min(roots, key=len)

    def photos(names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        folder = f"{root}images/"
        wanted = {folder + name for name in names}
        for name, content in _members(path, wanted.__contains__):
            yield name.removeprefix(folder), content

    return Files(path, {name: _present(path, name, tables.get(root + name)) for name in TABLES}, photos)


def digest(files: Files) -> str:
    """Tells data sets apart by all that their tables say."""
    return hashlib.sha256(b"\0".join(files.tables[name] for name in TABLES)).hexdigest()[:16]


def read_layout(files: Files) -> Layout:
    """Parses the tables and checks that they fit together.

    Raises:
        UserError: naming the table and what is wrong with it.
    """
    names = _unique_rows(files, IMAGES)
    class_names = _unique_rows(files, CLASSES)
    label_of = {class_id: label for label, class_id in enumerate(class_names)}
    labels, split = _by_image(files, LABELS, 2, names), _by_image(files, SPLIT, 2, names)
    boxes, parts = _by_image(files, BOXES, 5, names), _by_image(files, PARTS, 5, names)

    splits: dict[str, list[Photo]] = {"train": [], "test": []}
    for image_id, name in names.items():
        (class_id,), (is_train,) = _one(files, LABELS, image_id, labels), _one(files, SPLIT, image_id, split)
        if class_id not in label_of:
            raise UserError(f"{files.path}: {LABELS} gives image {image_id} the class {class_id}, not in {CLASSES}")
        if is_train not in ("0", "1"):
            raise UserError(f"{files.path}: {SPLIT} has {is_train!r} for image {image_id}; 1 is train, 0 test")
        box = _numbers(files, BOXES, image_id, [_one(files, BOXES, image_id, boxes)])[0]
        rows = _numbers(files, PARTS, image_id, sorted(parts.get(image_id, []), key=lambda words: words[0].zfill(3)))
        if [row[0] for row in rows] != list(range(1, NUM_PARTS + 1)):
            raise UserError(f"{files.path}: {PARTS} must list parts 1 to {NUM_PARTS} of image {image_id}, once each")
        splits["train" if is_train == "1" else "test"].append(
            Photo(name, image_id, label_of[class_id], box, rows[:, 1:3], rows[:, 3] > 0)
        )
    for split_name, photos in splits.items():
        if not photos:
            raise UserError(f"{files.path}: {SPLIT} leaves the {split_name} part empty")
    trained = {photo.label for photo in splits["train"]}
    for class_id, name in class_names.items():
        if label_of[class_id] not in trained:
            raise UserError(f"{files.path}: {CLASSES} lists {name}, which has no training image; remove its line")
    return Layout(tuple(class_names.values()), splits)


def _open_folder(path: Path) -> Files:
    root = path if (path / IMAGES).is_file() else path / FOLDER
    if not (root / IMAGES).is_file():
        raise UserError(
            f"{path}: holds neither {IMAGES} nor {FOLDER}/; dataset.path takes the unpacked folder or the archive"
        )

    def photos(names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            file = root / "images" / name
            if file.is_file():
                yield name, file.read_bytes()

    def table(name: str) -> bytes | None:
        return (root / name).read_bytes() if (root / name).is_file() else None

    return Files(root, {name: _present(root, name, table(name)) for name in TABLES}, photos)


def _members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each wanted file in an archive."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                for entry in zipped.infolist():
                    if wanted(entry.filename):
                        yield entry.filename, zipped.read(entry)
        else:
            with tarfile.open(path) as tarred:
                for member in tarred:
                    stream = tarred.extractfile(member) if wanted(member.name) else None
                    if stream is not None:
                        yield member.name, stream.read()
                # A damaged header ends the loop as if the archive ended there; the checksum at the end of what is
                # compressed tells.
                while tarred.fileobj is not None and tarred.fileobj.read(1 << 20):
                    pass
    except (*_ARCHIVE_ERRORS, EOFError, KeyError, OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a whole tar or zip archive ({_one_line(error)}); "
            "fetch it again, or give another --config.dataset.path"
        ) from error


def _present(path: Path, name: str, content: bytes | None) -> bytes:
    if content is None:
        raise UserError(f"{path}: {name} is missing; unpack the whole of the official archive")
    return content


def _rows(files: Files, table: str, columns: int) -> Iterator[list[str]]:
    """The words of each line; the last may hold spaces."""
    try:
        text = files.tables[table].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{files.path}: {table} is not a text file in UTF-8") from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip().split(maxsplit=columns - 1)
        if words and len(words) != columns:
            raise UserError(f"{files.path}: {table}, line {number} must have {columns} words, not {line.strip()!r}")
        if words:
            yield words


def _unique_rows(files: Files, table: str) -> dict[str, str]:
    """Id -> name, where neither comes twice."""
    rows = list(_rows(files, table, 2))
    if not rows:
        raise UserError(f"{files.path}: {table} is empty")
    for column in zip(*rows, strict=True):
        word, count = Counter(column).most_common(1)[0]
        if count > 1:
            raise UserError(f"{files.path}: {table} lists {word} {count} times")
    return dict(rows)


def _by_image(files: Files, table: str, columns: int, images: Collection[str]) -> dict[str, list[list[str]]]:
    """Image id -> the other words of its lines."""
    found: dict[str, list[list[str]]] = {}
    for image_id, *words in _rows(files, table, columns):
        if image_id not in images:
            raise UserError(f"{files.path}: {table} names image {image_id}, which {IMAGES} does not list")
        found.setdefault(image_id, []).append(words)
    return found


def _one(files: Files, table: str, image_id: str, lines: dict[str, list[list[str]]]) -> list[str]:
    count = len(lines.get(image_id, []))
    if count != 1:
        raise UserError(f"{files.path}: {table} has {count} lines for image {image_id}, not 1")
    return lines[image_id][0]


def _numbers(files: Files, table: str, image_id: str, words: list[list[str]]) -> np.ndarray:
    try:
        numbers = np.array(words, np.float64)
    except ValueError:
        numbers = np.array(np.nan)
    if not np.all(np.isfinite(numbers)):
        raise UserError(f"{files.path}: {table} has something other than numbers for image {image_id}")
    return numbers


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
