"""DeepPCB: small defects on photos of bare circuit boards, one defect to an example.

Tang, He, Huang, Yang: Online PCB Defect Detector On A New PCB Defect Dataset, arXiv:1902.06197; MIT licence. 1,000
training and 500 test photos of 640 x 640 pixels, each with a defect-free template that lies exactly over it, and 3 to
12 boxes of six kinds of defect. An example is a photo in which one defect is left and its template covers all others:
what it shows is one board with one defect, about 0.3 % of its area, and the label is the kind.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c2f_jax import storage
from c2f_jax.data import images
from c2f_jax.data.builders import fetch, files
from c2f_jax.errors import UserError

# Made by GitHub from the repository as it is today: there is no checksum to hold it to.
ARCHIVE = fetch.Archive("DeepPCB.zip", "https://github.com/tangsanli5201/DeepPCB/archive/refs/heads/master.zip")
KINDS = ("open", "short", "mousebite", "spur", "spurious_copper", "pin_hole")  # 1 to 6 in the files
LISTS = {"train": "trainval.txt", "test": "test.txt"}
# Of the 1,000 and 500 photos that the paper publishes, counted here by the rule below.
COUNTS = {"train": 6326, "test": 2980, "classes": 6}
APART = 8  # pixels between an example's defect and every other
MARGIN = 3  # pixels around other defects that the template covers too
SUFFIXES = (".jpg", ".png")  # the official photos, or the same without loss


class Defect(NamedTuple):
    """One example: files of the photo and its template below the root, whose defects' boxes (ymin, xmin, ymax, xmax)
    [D, 4] are in pixels, and which of them it is about."""

    name: str
    photo: Path
    template: Path
    boxes: np.ndarray
    which: int
    label: int


class Defects:
    """The examples of one split; photos are read when an example is asked for."""

    def __init__(self, defects: Sequence[Defect]):
        self._defects = defects

    def __len__(self) -> int:
        return len(self._defects)

    @property
    def labels(self) -> np.ndarray:
        """int [N]"""
        return np.array([defect.label for defect in self._defects])

    @property
    def boards(self) -> np.ndarray:
        """The photo of each example, str [N]: examples of one photo show the same board."""
        return np.array([defect.name.rpartition("#")[0] for defect in self._defects])

    @property
    def groups(self) -> list[str]:
        """`boards`, as other sources call what belongs together."""
        return [str(board) for board in self.boards]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        defect = self._defects[index]
        image, template = _read(defect.photo).copy(), _read(defect.template)
        if image.shape != template.shape:
            raise UserError(f"{defect.template} has another size than {defect.photo}; unpack the data set again")
        height, width = image.shape[:2]
        own = defect.boxes[defect.which]
        kept = image[own[0] : own[2], own[1] : own[3]].copy()
        for which, (ymin, xmin, ymax, xmax) in enumerate(defect.boxes):
            if which != defect.which:
                place = np.s_[max(0, ymin - MARGIN) : ymax + MARGIN, max(0, xmin - MARGIN) : xmax + MARGIN]
                image[place] = template[place]
        image[own[0] : own[2], own[1] : own[3]] = kept
        box = own / np.array([height, width, height, width])
        return {
            "image": image,
            "label": defect.label,
            "index": index,
            "box": np.clip(box, 0.0, 1.0).astype(np.float32),
            "name": defect.name,
        }


def _read(path: Path) -> np.ndarray:
    try:
        return images.decode(path.read_bytes())
    except (OSError, images.UnreadableImage) as error:
        raise UserError(f"{path} cannot be read ({error}); unpack the data set again") from error


def load(
    path: str, *, cache_dir: str, track: fetch.Track = fetch.untracked
) -> tuple[Defects, Defects, tuple[str, ...]]:
    """Training part, test part and class names.

    Args:
        path: the repository's folder or its `PCBData`, or its zip archive, which is unpacked below cache_dir; empty:
            fetched.
        cache_dir: see there.
        track: shows the progress.

    Raises:
        UserError: if the data cannot be had, or are not whole.
    """
    cache = storage.as_path("dataset.cache_dir", cache_dir, remote=False)
    how = f"the file with --config.dataset.path={ARCHIVE.name}"
    try:
        if path:
            place = storage.as_path("dataset.path", path, remote=False)
        else:
            place = fetch.fetch(ARCHIVE, cache / "downloads", title="DeepPCB", how=how, track=track)
        root = _root(_unpacked(place, cache) if place.is_file() else place)
    except OSError as error:
        raise UserError(f"{error.filename or cache}: {storage.told(error)}; --config.dataset.cache_dir=DIR") from error
    train, test = (Defects(_listed(root, name)) for name in LISTS.values())
    return train, test, KINDS


def _root(place: Path) -> Path:
    for root in (place, place / "PCBData", *sorted(place.glob("*/PCBData"))):
        if all((root / name).is_file() for name in LISTS.values()):
            return root
    raise UserError(f"{place} holds no PCBData/{LISTS['train']} and {LISTS['test']}: dataset.path is DeepPCB's folder")


def _unpacked(archive: Path, cache: Path) -> Path:
    state = archive.stat()
    target = cache / "deep_pcb" / f"{archive.stem}-{state.st_size}-{state.st_mtime_ns}"
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.{os.getpid()}.part")
        files.unpack(archive, partial, lambda name: "/PCBData/" in f"/{name}")
        storage.make_folder(partial)  # if there was nothing in it
        if not target.is_dir():
            partial.replace(target)
    return target


def _listed(root: Path, name: str) -> list[Defect]:
    found = []
    for number, line in enumerate((root / name).read_text().split("\n"), 1):
        if not line.strip():
            continue
        try:
            picture, table = line.split()
        except ValueError:
            raise UserError(f"{root / name}, line {number}: {line!r} is not a photo and a file of boxes") from None
        stem = picture.rpartition(".")[0]
        photo, template = _file(root, f"{stem}_test"), _file(root, f"{stem}_temp")
        rows = _boxes(root / table)
        for which in _alone(rows[:, :4]):
            found.append(Defect(f"{stem}#{which}", photo, template, rows[:, :4], which, int(rows[which, 4]) - 1))
    return found


def _file(root: Path, stem: str) -> Path:
    for suffix in SUFFIXES:
        if (path := root / (stem + suffix)).is_file():
            return path
    raise UserError(f"{root / stem}.jpg is missing; unpack the whole data set again")


def _boxes(path: Path) -> np.ndarray:
    """int [D, 5]: ymin, xmin, ymax, xmax in pixels, kind 1 to 6."""
    try:
        rows = np.array([line.split() for line in path.read_text().splitlines() if line.strip()], int).reshape(-1, 5)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not lines of x1 y1 x2 y2 kind ({error}); unpack the data set again") from error
    kinds, starts, ends = rows[:, 4], rows[:, :2], rows[:, 2:4]
    if not (np.all((kinds >= 1) & (kinds <= len(KINDS))) and np.all(starts < ends)):
        raise UserError(f"{path}: holds a box without area or a kind that is not 1 to {len(KINDS)}")
    return rows[:, [1, 0, 3, 2, 4]]


def _alone(boxes: np.ndarray) -> list[int]:
    """Which boxes [D, 4] are more than `APART` pixels from every other, in one direction at least."""
    apart = np.maximum(
        boxes[:, None, :2] - boxes[None, :, 2:],  # this one's start after that one's end
        boxes[None, :, :2] - boxes[:, None, 2:],
    ).max(-1)
    np.fill_diagonal(apart, APART + 1)
    return [int(which) for which in np.flatnonzero((apart > APART).all(1))]
