"""Photos in one folder per class: root/<class>/..., or root/train/<class>/... with val/ and test/ beside train/.

`valid` and `validation` are other names for `val`. Without a test folder `TEST_FRACTION` of each class is set aside.
Every file is decoded once before training, so that none that cannot be read turns up in the middle of it.
"""

import hashlib
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import PIL

from c2f_jax.data import images
from c2f_jax.errors import UserError

TEST_FRACTION = 0.2
NAMED = 20  # unreadable files that are listed by name

_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Item(NamedTuple):
    """A photo: path relative to the root, and class."""

    path: str
    label: int


class Photos:
    """A random-access source of photos, decoded when they are asked for."""

    def __init__(self, root: Path, items: Sequence[Item]):
        self._root, self._items = root, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises UserError if the file has gone bad since it was checked."""
        if not 0 <= index < len(self._items):
            raise IndexError(index)
        path, label = self._items[index]
        try:
            image = images.decode(self._root / path)
        except images.UnreadableImage as error:
            raise UserError(
                f"{self._root / path} could be read at the start and now cannot ({error}): "
                "put it back, or start again to leave it out"
            ) from error
        return {"image": image, "label": label, "index": index, "name": path}


class Folders(NamedTuple):
    """The parts of a tree, and lines to tell the user once."""

    train: Photos
    validation: Photos
    test: Photos
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def load(path: str, *, cache_dir: str, unreadable: str, validation_fraction: float) -> Folders:
    """Finds the photos below `path`, checks that each can be read, and splits them; the same way every time.

    Args:
        path: the root of the tree.
        cache_dir: remembers the check, so that the next start is quick.
        unreadable: "skip" leaves files out that cannot be read; "fail" raises.
        validation_fraction: share of each class's training photos to set aside; not used where there is a val folder.

    Raises:
        UserError: if the tree cannot be used; it names the folder or file and the remedy.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"dataset.path: {root} {what}; give the folder that holds one folder per class")
    try:
        found = images.find_images(root)
        where, parts, stray = _parts(root, found)
        class_names = _class_names(where, parts)
    except OSError as error:
        raise UserError(f"dataset.path: {error.filename or root} cannot be listed ({error.strerror})") from error
    used = sorted(path for part in parts.values() for paths in part.values() for path in paths)
    bad = _unreadable(root, used, Path(cache_dir).expanduser())
    notes = [f"images in no class folder, not used: {stray}"] if stray else []
    if bad:
        first = min(bad)
        told = f"{len(bad)} of {len(used)} images cannot be read"
        if len(bad) == len(used):
            raise UserError(f"{root}: none of the {len(used)} images can be read; the first is {first} ({bad[first]})")
        if unreadable == "fail":
            raise UserError(
                f"{root}: {told}; the first is {first} ({bad[first]}); mend or remove them, "
                "or leave them out with --config.dataset.unreadable=skip"
            )
        notes.append(f"{told} and are left out:")
        notes += [f"  {path}: {bad[path]}" for path in sorted(bad)[:NAMED]]
        notes += [f"  and {len(bad) - NAMED} more"] if len(bad) > NAMED else []

    def items(part: str) -> list[Item]:
        by_class = parts.get(part, {})
        return [
            Item(path, label)
            for label, name in enumerate(class_names)
            for path in by_class.get(name, [])
            if path not in bad
        ]

    train, validation, test = items("train"), items("val"), items("test")
    missing = set(range(len(class_names))) - {item.label for item in train}
    if missing:
        raise UserError(f"{root}: no image of class {class_names[min(missing)]} can be read; mend or remove its folder")
    if not test:
        if "test" in parts:
            raise UserError(f"{root}: the test folder holds no image that can be read; fill it or remove it")
        train, test = set_aside(train, TEST_FRACTION, at_least=1)
        notes.append(
            f"no test folder: {TEST_FRACTION:.0%} of each class, {len(test)} images, are set aside as test part"
        )
        if not test:
            raise UserError(f"{root}: one image per class leaves none for the test part; add images")
    if not validation:
        train, validation = set_aside(train, validation_fraction)
    return Folders(Photos(root, train), Photos(root, validation), Photos(root, test), class_names, tuple(notes))


def set_aside(items: Sequence[Item], fraction: float, *, at_least: int = 0) -> tuple[list[Item], list[Item]]:
    """(kept, set aside): the share `fraction` of each class, chosen by a hash of the path.

    New photos hardly change who is chosen among the old. `at_least` so many of each class are set aside, but never all.
    """
    by_class = defaultdict(list)
    for item in items:
        by_class[item.label].append(item)
    aside: set[Item] = set()
    for members in by_class.values():
        members.sort(key=lambda item: hashlib.sha256(os.fsencode(item.path)).digest())
        aside.update(members[: min(len(members) - 1, max(at_least, math.floor(fraction * len(members) + 0.5)))])
    return [item for item in items if item not in aside], [item for item in items if item in aside]


def _parts(root: Path, found: Sequence[str]) -> tuple[Path, dict[str, dict[str, list[str]]], int]:
    """The folder of the training classes; part -> class -> paths, with even the empty class folders; and how many
    images are in none.

    A tree without train/, val/ and test/ is all "train".
    """
    folders = _folders(root)
    held = {path.split("/")[0] for path in found if "/" in path}
    # A folder `train` that holds photos itself, beside other folders of photos, is a class of vehicle.
    direct = {path.split("/")[0] for path in found if path.count("/") == 1}
    named = {name for name in folders if name.lower() in _PARTS}
    others = {name for name in folders if name in held} - named
    if named and others and not named <= direct:
        raise UserError(
            f"{root}: holds both {min(named)}/ and the class folder {min(others)}/; "
            "put the classes into train/, or all of them side by side"
        )
    parts: dict[str, dict[str, list[str]]] = {}
    where, depth = root, 0
    if named and not others:
        depth = 1
        for name in sorted(named):
            classes = parts.setdefault(_PARTS[name.lower()], {})
            classes.update({below: classes.get(below, []) for below in _folders(root / name)})
        if "train" not in parts:
            raise UserError(f"{root}: holds {min(named)}/ and no train/; put the training images into train/<class>/")
        where = root / min(name for name in named if name.lower() == "train")
    else:
        parts["train"] = {name: [] for name in folders}
    stray = 0
    for path in found:
        words = path.split("/")
        part = parts[_PARTS[words[0].lower()]] if depth and len(words) > 1 else parts["train"]
        if len(words) > depth + 1:
            part[words[depth]].append(path)
        else:
            stray += 1
    return where, parts, stray


def _class_names(where: Path, parts: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    train = parts["train"]
    if not any(train.values()):
        if train:
            raise UserError(f"{where}: its {len(train)} class folders hold no image (jpg, png, ...)")
        raise UserError(
            f"{where}: has no class folders; make one folder per class and put its images into it "
            "(to classify a folder of images with a trained model: --mode predict)"
        )
    for name, paths in train.items():
        if not paths:
            raise UserError(f"{where}: class folder {name} holds no image; fill it or remove it")
    if len(train) < 2:
        raise UserError(f"{where}: has only one class folder, {min(train)}; two or more are needed to tell apart")
    for part in ("val", "test"):
        for name, paths in parts.get(part, {}).items():
            if paths and name not in train:
                raise UserError(f"{where.parent / paths[0]}: class {name} is not in train/; add it there, or remove it")
    return tuple(sorted(train))


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not images.is_hidden(entry.name))


def _unreadable(root: Path, paths: Sequence[str], cache: Path) -> dict[str, str]:
    """Path -> reason, of the files that cannot be decoded; remembered until a file comes, goes or changes."""

    def state(path: str) -> str:
        try:
            status = (root / path).stat()
        except OSError:  # such as a link to nowhere
            return f"{path}\0\0"
        return f"{path}\0{status.st_size}\0{status.st_mtime_ns}"

    def reason(path: str) -> str | None:
        try:
            images.decode(root / path)
        except images.UnreadableImage as error:
            return str(error)
        return None

    digest = hashlib.sha256(os.fsencode("\n".join([PIL.__version__, *map(state, paths)]))).hexdigest()[:16]
    file = cache / "folder" / f"{digest}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        pass
    print(f"checking the {len(paths)} images in {root}; this is done once", file=sys.stderr, flush=True)
    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        reasons = list(executor.map(reason, paths))
    finally:
        executor.shutdown(cancel_futures=True)  # otherwise Ctrl-C would wait for all of them
    bad = {path: why for path, why in zip(paths, reasons, strict=True) if why is not None}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(bad))
        temporary.replace(file)
    except OSError as error:
        raise UserError(
            f"{error.filename or file}: {error.strerror}; choose another place with --config.dataset.cache_dir=DIR"
        ) from error
    return bad
