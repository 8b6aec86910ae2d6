"""Labelled photos as a tree of folders or a table names them, without opening one: which, of what class and part.

A tree: root/<class>/..., or root/<part>/<class>/..., perhaps in a folder more that holds everything. A table: see
`tables`. docs/data.md says both to users.
"""

import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from c2f_jax import storage
from c2f_jax.data import images, tables
from c2f_jax.errors import UserError, as_name, as_text

_PARTS = {
    **{name: "train" for name in ("train", "training")},
    **{name: "val" for name in ("val", "valid", "validation", "dev")},
    **{name: "test" for name in ("test", "testing")},
}
# With what is added to such names (train_set, test1, val2017, training images); no class is called so.
_LIKE_PART = re.compile(
    rf"({'|'.join(_PARTS)}|eval|evaluation|holdout)"
    r"[\s_.-]*((set|data|dataset|split|part|image|img|photo|picture)s?)?[\s_.-]*\d*"
)
# Folders in a part that say that nobody knows the classes in it.
_UNLABELLED = ("images", "imgs", "unknown", "unlabeled", "unlabelled", "all")
_NOTHING = ("nan", "na", "n/a", "<na>", "none", "null")  # what programs write where there is no label
_HELD_OUT = ("train", None, "val", "test")  # a photo in two parts stays in the later one
SHOWN = 5  # of a longer list, in a line
SLACK = 2.0  # pixels that a box may reach out of its photo, by rounding or by counting from 1


class Listed(NamedTuple):
    """A photo: where it is and what is known of it.

    Attributes:
        path: relative to the root where it lies below it, else absolute; with forward slashes.
        label: the name of its class.
        part: "train", "val" or "test", or None where nobody has divided the photos.
        group: photos of one group belong on one side of every split; None if nothing is said.
        box: (ymin, xmin, ymax, xmax) of the object in pixels of the upright photo, or None.
        row: the row of the table that says so, or None.
    """

    path: str
    label: str
    part: str | None
    group: str | None = None
    box: tuple[float, float, float, float] | None = None
    row: int | None = None


class Listing(NamedTuple):
    """What a tree or table holds.

    Attributes:
        root: what paths are relative to.
        items: the photos, in the order of their paths.
        notes: lines to tell the user.
        empty: folders, relative to the root, that should hold a class to train on and hold no image.
    """

    root: Path
    items: tuple[Listed, ...]
    notes: tuple[str, ...]
    empty: tuple[str, ...] = ()


def read(path: str | os.PathLike[str]) -> Listing:
    """The labelled photos of a tree or a table, each file once. No photo is opened; a table may name missing ones.

    Raises:
        UserError: if it cannot be read or does not say what is what; it names the folder, file or row and the remedy.
    """
    place = storage.path(path)
    if storage.is_dir(place):
        try:
            listing = _read_tree(place)
        except OSError as error:
            raise UserError(f"{error.filename or place} cannot be listed ({storage.told(error)})") from error
    elif place.suffix.lower() in tables.SUFFIXES and storage.exists(place):
        listing = _read_table(place)
    else:
        what = "is neither a folder nor a table" if storage.exists(place) else "does not exist"
        raise UserError(
            f"{place} {what}; give the folder that holds one folder per class, "
            f"or a table of path and label ({', '.join(tables.SUFFIXES)})"
        )
    items, notes = _once(listing.root, listing.items)
    return listing._replace(items=items, notes=(*listing.notes, *notes, *_labels_told(items)))


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _labels_told(items: Iterable[Listed]) -> list[str]:
    """Lines on names of classes that are perhaps one class, or none."""
    labels = sorted({item.label for item in items})
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    same = [" and ".join(map(ascii, names)) for names in alike.values() if len(names) > 1]
    notes = [f"classes whose names differ in case, spaces or the code of a letter only: {some(same)}"] if same else []
    none = [label for label in labels if label.lower() in _NOTHING]
    if none:
        notes.append(f"{some(none)}: taken as the name of a class; remove these photos if it stands for nothing")
    return notes


# --- Trees ---


def _below(found: Sequence[str], prefix: str) -> tuple[list[str], dict[str, list[str]]]:
    """(images in the folder `prefix` itself, folder in it -> images below that)."""
    direct, folders = [], defaultdict(list)
    for path in found:
        if path.startswith(prefix):
            name, slash, _ = path[len(prefix) :].partition("/")
            if slash:
                folders[name].append(path)
            else:
                direct.append(path)
    return direct, dict(folders)


def _unwrapped(found: Sequence[str], prefix: str, classes: Iterable[str] = ()) -> str:
    """`prefix`, or the folder below it that holds all that `prefix` does, in folders: as archives are unpacked.

    A folder of one of `classes` is no such wrapper.
    """
    while True:
        _, folders = _below(found, prefix)
        if len(folders) != 1 or (name := next(iter(folders))) in classes:
            return prefix
        direct, inside = _below(folders[name], f"{prefix}{name}/")
        if 2 * len(direct) >= len(folders[name]) or (len(inside) == 1 and not direct and _leaf(inside)):
            return prefix
        if not prefix and name.lower() in _PARTS and not {"train", "test"} <= {_part(below) for below in inside}:
            return prefix  # the only part there is
        prefix = f"{prefix}{name}/"


def _leaf(folders: dict[str, list[str]]) -> bool:
    """Whether the only folder holds images and no folders."""
    (name, paths), *_ = folders.items()
    return all(path.split("/")[-2] == name for path in paths)


def _part(name: str) -> str | None:
    return _PARTS.get(name.lower())


def _folders(root: Path) -> list[str]:
    """Raises UserError for a link that leads nowhere: who knows whether it was a class."""
    if storage.is_remote(root):
        below = {path.partition("/")[0] for path in storage.find(root) if "/" in path}
        return sorted(name for name in below if not images.is_hidden(name))
    entries = [entry for entry in os.scandir(root) if not images.is_hidden(entry.name)]
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path) and not Path(entry.name).suffix:
            raise UserError(
                f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there; mend or remove it"
            )
    return sorted(entry.name for entry in entries if entry.is_dir())


def _read_tree(root: Path) -> Listing:
    found = images.find_images(root)
    top = _unwrapped(found, "")
    _, held = _below(found, top)
    there = _folders(root / top)
    # A folder `train` that holds photos itself, beside other folders of photos, is a class of vehicle.
    named = {name for name in there if _part(name)}
    others = set(held) - named
    direct = {name for name in named & set(held) if _below(held[name], f"{top}{name}/")[0]}
    if named and others and not named <= direct:
        raise UserError(
            f"{root / top}: holds both {min(named)}/ and the class folder {min(others)}/; "
            f"put the classes into train/, or all of them side by side, or take {min(others)}/ away"
        )
    notes = [f"the folders of classes are taken from {top}"] if top else []
    if not named or others:
        names = {name: held.get(name, []) for name in there}
        _refuse_no_classes(root / top, names)
        _refuse_crossed(root / top, top, names)
        _refuse_parts(root / top, names)
        notes += _several(top, names)
        return _tree(root, {None: names}, len(found), notes, [top + name for name in there if not names[name]])
    empty: list[str] = []
    told = 0  # photos that a line says are not used
    parts: dict[str | None, dict[str, list[str]]] = {}
    for name in sorted(named, key=lambda name: (_PARTS[name.lower()] != "train", name)):
        part = _PARTS[name.lower()]
        known = parts.get("train", {})
        inner = _unwrapped(found, f"{top}{name}/", known)
        alone, classes = _below(found, inner)
        if part != "train" and len(classes) == 1 and not set(classes) & set(known):
            (only, paths), *_ = classes.items()
            if only.lower() in _UNLABELLED or _part(only) == part:
                alone, classes = [*alone, *paths], {}
        if part == "train":
            classes = {below: classes.get(below, []) for below in _folders(root / inner)}
            _refuse_no_classes(root / inner, classes)
            empty += [inner + below for below, paths in classes.items() if not paths]
        elif part == "test" and not classes and not alone:
            raise UserError(f"{root}: the test folder holds no image; fill it or remove it")
        _refuse_crossed(root / inner, inner, classes)
        notes += _several(inner, classes) if part == "train" else []
        if alone and not classes:
            notes.append(f"{name}/ holds {len(alone)} images in no class folder, that is without labels: not used")
            told += len(alone)
        if inner != f"{top}{name}/":
            notes.append(f"the folders of classes in {name}/ are taken from {inner}")
        if part in parts:
            both = sorted(other for other in named if _part(other) == part)
            notes.append(f"{'/ and '.join(both)}/ are taken together as {part} part")
        into = parts.setdefault(part, {})
        for below, paths in classes.items():
            into[below] = [*into.get(below, []), *paths]
    return _tree(root, parts, len(found) - told, notes, empty)


def _tree(
    root: Path,
    parts: dict[str | None, dict[str, list[str]]],
    found: int,
    notes: Sequence[str],
    empty: Sequence[str],
) -> Listing:
    """found: images that are used or not told of yet."""
    _refuse_same_text(root, {name for classes in parts.values() for name in classes})
    items = [
        Listed(path, as_text(name), part)
        for part, classes in parts.items()
        for name, paths in classes.items()
        for path in paths
    ]
    stray = found - len(items)
    notes = [*notes, f"images in no class folder, not used: {stray}"] if stray else notes
    return Listing(root, _sorted(items), tuple(notes), tuple(empty))


def _sorted(items: Iterable[Listed]) -> tuple[Listed, ...]:
    return tuple(sorted(items, key=lambda item: item.path))


def _refuse_same_text(where: Path, names: Iterable[str]) -> None:
    """A class's name is text, whatever bytes the folder's name is."""
    folders: dict[str, str] = {}
    for name in names:
        if folders.setdefault(as_text(name), name) != name:
            raise UserError(f"{where}: two class folders are both called {name} as text; rename one of them")


def _refuse_no_classes(where: Path, classes: dict[str, list[str]]) -> None:
    if not classes:
        raise UserError(
            f"{where}: has no class folders; make one folder per class and put its images into it, or give a table of "
            "path and label (to classify a folder of images with a trained model: --mode predict)"
        )
    if not any(classes.values()):
        raise UserError(f"{where}: its {len(classes)} class folders hold no image (jpg, png, ...)")


def _refuse_parts(where: Path, classes: Iterable[str]) -> None:
    """All of the folders are called like parts, and hold no classes."""
    if all(_LIKE_PART.fullmatch(name.lower().strip()) for name in classes):
        raise UserError(
            f"{where}: its folders {some(sorted(classes))} look like parts and no classes; put the images into "
            "train/<class>/ (and test/<class>/), or give a table of path, label and split"
        )


def _several(prefix: str, classes: dict[str, list[str]]) -> list[str]:
    """A line if most classes hold several folders: of genus/species the genus is the class."""
    inside = {name: _below(paths, f"{prefix}{name}/")[1] for name, paths in classes.items() if paths}
    deep = {name: folders for name, folders in inside.items() if len(folders) > 1}
    if 2 * len(deep) <= len(inside):
        return []
    name = min(deep)
    told = f"{name} = {some(sorted(deep[name]))}"
    return [f"{len(deep)} of {len(inside)} class folders hold several folders, each one class: {told}"]


def _refuse_crossed(where: Path, prefix: str, classes: dict[str, list[str]]) -> None:
    """Folders that all hold the same two or more folders are no classes, or theirs are the parts."""
    inner = {}
    for name, paths in classes.items():
        if paths:
            inner[name] = _below(paths, _unwrapped(paths, f"{prefix}{name}/"))[1]
    times: dict[str, int] = defaultdict(int)
    for folders in inner.values():
        for name in folders:
            times[name] += 1
    common = {name for name, count in times.items() if count > 1 and 2 * count > len(inner)}
    inside = sum(len(paths) for folders in inner.values() for name, paths in folders.items() if name in common)
    total = sum(map(len, classes.values()))
    if len(common) < 2 or 2 * len(common) < len(times) or 2 * inside < total:
        return
    outer, shared = sorted(inner), sorted(common)
    told = f"{where}: its folders {some(outer)} hold the same folders ({some(shared)})"
    if {_part(name) for name in shared} <= set(_PARTS.values()):
        raise UserError(f"{told}: parts inside classes; turn them round, {shared[0]}/{outer[0]}/, or give a table")
    raise UserError(
        f"{told}, which look like the classes; then give one of the {len(outer)}, or call them train/, val/ and test/ "
        "if they are that, or put all photos of a class into one folder; otherwise give a table of path and label"
    )


# --- Tables ---


def _read_table(table: Path) -> Listing:
    rows, notes = tables.read(table)
    root = table.parent
    items: dict[str, Listed] = {}
    for row in rows:
        item = _listed(table, root, row)
        before = items.get(item.path)
        if before is None:
            items[item.path] = item
        elif before._replace(row=item.row) != item:
            what = next(name for name in Listed._fields if getattr(before, name) != getattr(item, name))
            raise UserError(
                f"{table}: rows {before.row} and {item.row} say different things of {item.path} ({what}: "
                f"{getattr(before, what)} and {getattr(item, what)}); leave one of them"
            )
    boxes = [item.box for item in items.values() if item.box]
    if boxes and max(max(box) for box in boxes) <= 1.0:
        raise UserError(f"{table}: the boxes look like fractions of the photo; give xmin,ymin,xmax,ymax in pixels")
    twice = len(rows) - len(items)
    notes += [f"{table.name}: {twice} rows say what another says"] if twice else []
    return Listing(root, _sorted(items.values()), tuple(notes))


def _listed(table: Path, root: Path, row: tables.Row) -> Listed:
    cells = row.cells
    for name in ("path", "label"):
        if not cells[name]:
            raise UserError(f"{table}: row {row.number} has no {name}; fill it or remove the row")
    part = None
    if "split" in cells:
        part = _part(cells["split"])
        if part is None:
            raise UserError(
                f"{table}: row {row.number} has the split {cells['split']!r}; call it train, val or test, in every row"
            )
    path = _path(table, root, row)
    return Listed(path, cells["label"], part, cells.get("group") or None, _box(table, row), row.number)


def _path(table: Path, root: Path, row: tables.Row) -> str:
    """As of `Listed`, of what stands in a row; where there is no such file, one that programs may have written so."""
    path = row.cells["path"]
    told = f"{table}: row {row.number}: the path"
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise UserError(f"{told} {path} holds half a character, as no name does") from error
    if "\0" in path:
        raise UserError(f"{told} {path} holds a NUL character, as no name does")
    storage.check_scheme(told, path, ("gs",))
    # With spaces around it, bytes that were spelled out, or an apostrophe before it: as files may be called, and
    # programs write it.
    meant = [row.path, *(tables.as_cell_is_meant(cell) for cell in (path, row.path))]
    others = [other for other in dict.fromkeys([*meant, *map(as_name, [path, *meant])]) if other != path]
    if (others or "\\" in path) and not storage.exists(storage.join(root, path)):
        there = (other for other in others if storage.exists(storage.join(root, other)))
        path = next(there, path.replace("\\", "/"))
    if storage.is_remote(path):
        place = os.fspath(storage.path(path))
        within = storage.is_remote(root) and place.startswith(f"{os.fspath(root)}/")
        return place.removeprefix(f"{os.fspath(root)}/") if within else place
    path = os.path.normpath(path)
    if os.path.isabs(path) and not storage.is_remote(root) and Path(path).is_relative_to(os.path.abspath(root)):
        path = os.path.relpath(path, os.path.abspath(root))
    return Path(path).as_posix()


def _box(table: Path, row: tables.Row) -> tuple[float, float, float, float] | None:
    words = [row.cells.get(name, "") for name in tables.BOX]
    if not any(words):
        return None
    told = f"{table}: row {row.number}: the box {', '.join(word or 'nothing' for word in words)}"
    try:
        xmin, ymin, xmax, ymax = (float(word.replace(",", ".")) for word in words)
    except ValueError as error:
        raise UserError(f"{told} is not four numbers (xmin, ymin, xmax, ymax in pixels)") from error
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
        raise UserError(f"{told} is not four numbers (xmin, ymin, xmax, ymax in pixels)")
    if xmin >= xmax or ymin >= ymax:
        raise UserError(f"{told} has no inside; xmin must be less than xmax, and ymin than ymax")
    if min(xmin, ymin) < -SLACK:
        raise UserError(f"{told} reaches out of the photo; coordinates are pixels from its upper left corner")
    return ymin, xmin, ymax, xmax


# --- One file, two paths ---


def _once(root: Path, items: Sequence[Listed]) -> tuple[tuple[Listed, ...], list[str]]:
    """Without further paths to a file that is there already: links, and hard ones."""
    places: dict[object, Listed] = {}
    dropped, moved, real = [], [], cache(os.path.realpath)
    for item in items:
        key = _file(storage.join(root, item.path), real)
        other = places.setdefault(key, item)
        if other is item:
            continue
        if other.label != item.label:
            raise UserError(
                f"{root}: {other.path} and {item.path} are one file in two classes, {other.label} and {item.label}; "
                "remove the wrong one"
            )
        if other.part != item.part:
            places[key], gone = sorted([other, item], key=lambda item: -_HELD_OUT.index(item.part))
            moved.append(f"{places[key].path} and not {gone.path}")
        dropped.append(item)
    notes = []
    if dropped:
        notes.append(f"{len(dropped)} paths lead to files that others lead to; each file is counted once")
    if moved:
        notes.append(f"{len(moved)} files stood in two parts; used: {some(moved)}")
    return _sorted(places.values()), notes


def _file(path: Path, real: Callable[[str], str]) -> object:
    """What tells a file from all others. real: the real place of a folder, asked for once."""
    if storage.is_remote(path):
        return os.fspath(path)
    folder, name = os.path.split(path)
    place = os.path.join(real(folder), name)
    try:
        if os.path.islink(place):
            place = os.path.realpath(place)
        status = os.stat(place)
    except OSError:  # not there
        return place
    # Not by the number alone: some network file systems make numbers up.
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 and status.st_ino else place
