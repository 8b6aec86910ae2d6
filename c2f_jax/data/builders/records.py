"""A published data set, prepared once: TFDS's own format, ArrayRecord files that are read in any order.

TFDS's writer begins anew when it is stopped, and sorts what is larger than a gigabyte by TensorFlow. So the files are
written here, shard by shard in the order in which photos come (of a tar archive there is only one), and TFDS gets the
description that it reads them by: `tfds.builder_from_directory` opens what is prepared. `index.npz` has what the
tables say beside it: the order, the labels and the sizes, so that none of the photos is read for them.
"""

import contextlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from c2f_jax import storage
from c2f_jax.console import warn
from c2f_jax.data import images
from c2f_jax.data.builders import layout, masks
from c2f_jax.data.builders.fetch import Track
from c2f_jax.data.builders.files import Files
from c2f_jax.data.builders.layout import Annotations, Dataset, Photo
from c2f_jax.data.raw import Raw
from c2f_jax.errors import UserError, as_text

VERSION = "2.0.0"  # of what is written
SHARD_BYTES = 256 << 20  # a stop loses no more work than that of each part,
FIRST_BYTES = 4 << 20  # nor, as each shard is at most twice as large as the one before, more than is kept
AHEAD = 64  # photos that are decoded ahead of the writer

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


class Records:
    """The examples of one part.

    Attributes:
        boxless: how many have no box; if there is one, no example gives its box, since batches have one for each.
    """

    def __init__(self, folder: Path, dataset: Dataset, part: str, level: int, min_side: int | None = None):
        """Opens what `prepare` has written. level: which labels; min_side: as of `images.decode`."""
        with _quiet():
            self._records: Any = tfds.builder_from_directory(folder).as_data_source(
                part, decoders={name: tfds.decode.SkipDecoding() for name in _images(folder)}
            )
        with np.load(folder / "index.npz") as index:
            self._order, self._labels = index[f"{part}/order"], index[f"{part}/labels"][:, level]
            self._sizes, boxes = index[f"{part}/sizes"], index[f"{part}/boxes"]
        self._has_box, self.boxless = bool(boxes.all()), int(np.count_nonzero(~boxes))
        self._banner, self._min_side = dataset.banner, min_side

    def __len__(self) -> int:
        return len(self._order)

    @property
    def labels(self) -> np.ndarray:
        """int [N]"""
        return self._labels

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each photo in pixels, int [N, 2]."""
        return self._sizes

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(index, None)

    def scaled(self, index: int, raw: Raw) -> dict[str, Any]:
        """As of `sources.scaled`."""
        return self._example(index, raw)

    def _example(self, index: int, raw: Raw | None) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._records[int(self._order[index])]
        shape = raw.shape if raw is not None and not self._banner else None
        photo = images.decode_photo(record["image"], min_side=self._min_side, shape=shape)
        image = photo.image
        if self._banner:  # it may have been decoded at a half of its size
            image = image[: round(image.shape[0] * (1 - self._banner / photo.height))]
            image = image if raw is None else raw.scale(image)
        example = {
            "image": image,
            "label": int(self._labels[index]),
            "index": index,
            "name": record["name"].decode(),
        }
        names = [*(["box"] if self._has_box else []), *(["parts", "part_visible"] if "parts" in record else [])]
        return example | {name: record[name] for name in names}

    def segmentation(self, index: int) -> np.ndarray | None:
        """The mask of a photo, uint8 [H, W] with the values of its file, turned as EXIF turns the photo.

        None if the data set has none, or this one has another size than its photo.
        """
        record = self._records[int(self._order[index])]
        if "segmentation" not in record:
            return None
        mask, file = masks.decode(record["segmentation"]), images.stored(record["image"])
        return masks.upright(mask, file.orientation) if mask.shape == (file.height, file.width) else None


def prepare(dataset: Dataset, files: Files, folder: Path, track: Track) -> None:
    """Writes `folder` from `files`; what an earlier try has written is gone on with. `track` shows the progress.

    Raises:
        UserError: if the data are not whole.
        OSError: if it cannot be written.
    """
    annotations = dataset.read(files)
    layout.check(files.path, annotations)
    partial = folder.with_name(f"{folder.name}.incomplete")
    storage.make_folder(partial)
    warn(f"preparing {dataset.title} in {folder}; this is done once")
    features = _features(annotations)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    written = _Written(partial, dataset.name)
    place = {
        photo.name: (part, position, photo)
        for part, photos in annotations.photos.items()
        for position, photo in enumerate(photos)
    }
    wanted = [name for name in place if name not in written.names]
    seen: set[str] = set()
    unfit = 0  # masks
    photos = track(_decoded(dataset, files, wanted, place), total=len(wanted), what=f"preparing {dataset.name}")
    with _as_os_errors(partial), written.kept_if_interrupted():
        for found in photos:
            if found.photo.name in seen:
                raise UserError(f"{files.path}: holds {found.photo.name} twice")
            seen.add(found.photo.name)
            unfit += not found.mask_fits
            example = features.encode_example(_example(found, list(annotations.class_names)))
            written.add(place[found.photo.name][0], found, bytes(serializer.serialize_example(example)))
        lacking = [name for name in wanted if name not in seen]
        if lacking:
            remedy = (
                f"give the unpacked folder, or {files.how}"
                if len(lacking) == len(place)
                else "unpack the whole archive"
            )
            raise UserError(f"{files.path}: {min(lacking)} is missing, one of {len(lacking)}; {remedy}")
        written.close()
        _describe(partial, dataset, annotations, features, written)
    if unfit:
        warn(f"{files.path}: {unfit} masks have another size than their photos: these are not used")
    if folder.exists():
        shutil.rmtree(folder)  # somebody has cleared away a part of it
    partial.rename(folder)


def is_whole(folder: Path) -> bool:
    """Whether it is prepared, and nobody has cleared away a part of it since."""
    if not (folder / "index.npz").is_file():
        return False
    with _quiet():
        info = tfds.builder_from_directory(folder).info
    return all(os.path.exists(path) for split in info.splits.values() for path in split.filepaths)


def class_names(folder: Path, level: str) -> tuple[str, ...]:
    """Of a level, as `Annotations.class_names` calls it."""
    return tuple(json.loads(storage.read_text(folder / "class_names.json"))[level])


# --- A photo ---


class _Found(NamedTuple):
    """A photo that can be read: its bytes, height and width without banner, and its places in fractions of them.

    box: None as well if it lies outside, or has no area.
    """

    photo: Photo
    content: bytes
    size: tuple[int, int]
    box: np.ndarray | None
    parts: np.ndarray | None
    mask: bytes | None
    mask_fits: bool


def _decoded(dataset: Dataset, files: Files, wanted: Sequence[str], place: Mapping[str, Any]) -> Iterator[_Found]:
    """The photos as they come, each decoded once, a few ahead of who takes them."""
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        waiting: deque[Future[_Found]] = deque()
        try:
            for name, content in files.photos(wanted):
                photo = place[name][2]
                # Not in a thread: the files of an archive are read but once, and the first time here.
                mask = None if photo.segmentation is None else files.read(photo.segmentation)
                waiting.append(executor.submit(_look, dataset, files.path, photo, content, mask))
                while len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _look(dataset: Dataset, path: Path, photo: Photo, content: bytes, mask: bytes | None) -> _Found:
    try:
        height, width, _ = images.decode(content).shape
        stored = images.stored(content)
    except images.UnreadableImage as error:
        raise UserError(f"{path}: {photo.name} cannot be read ({error}); unpack the archive again") from error
    height -= dataset.banner
    if height < 1:
        raise UserError(f"{path}: {photo.name} is not higher than its banner of {dataset.banner} pixels")
    sides = np.array([height, width])

    def upright(points: np.ndarray) -> np.ndarray:
        """(x, y) in pixels of the file -> (y, x) in fractions of the upright photo, not clipped."""
        return images.turned(points, stored)[:, ::-1] / sides

    box, fits = photo.box, True
    if mask is not None:
        pixels = masks.readable(path, photo, mask)
        fits = pixels.shape == (stored.height, stored.width)
        if dataset.box_of_mask:
            box = masks.around(pixels) if fits else None
    corners = None
    if box is not None:
        corners = np.clip(upright(np.array([box[:2], box[2:]], np.float64)), 0.0, 1.0)
        corners = np.concatenate([corners.min(0), corners.max(0)]).astype(np.float32)
        # Boxes are for measuring alone: for one that encloses nothing no photo has to go.
        corners = corners if corners[0] < corners[2] and corners[1] < corners[3] else None
    parts = None if photo.parts is None else np.clip(upright(photo.parts), 0.0, 1.0).astype(np.float32)
    return _Found(photo, content, (height, width), corners, parts, mask, fits)


# --- Shards ---


def _features(annotations: Annotations) -> tfds.features.FeaturesDict:
    levels = list(annotations.class_names)
    some = next(iter(annotations.photos["train"]))
    features: dict[str, Any] = {"image": tfds.features.Image(), "name": tfds.features.Text()}
    features["image_id"] = tfds.features.Text()
    for level, names in annotations.class_names.items():
        features["label" if level == levels[0] else level] = tfds.features.ClassLabel(
            names=[" ".join(as_text(name).split()) for name in names]  # TFDS keeps them as lines
        )
    features["box"] = tfds.features.BBoxFeature()
    if some.parts is not None:
        features["parts"] = tfds.features.Tensor(shape=some.parts.shape, dtype=np.float32)
        features["part_visible"] = tfds.features.Tensor(shape=some.parts.shape[:1], dtype=np.bool_)
    if some.segmentation is not None:
        features["segmentation"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    return tfds.features.FeaturesDict(features)


def _example(found: _Found, levels: Sequence[str]) -> dict[str, Any]:
    example: dict[str, Any] = {
        "image": found.content,
        "name": as_text(found.photo.name),
        "image_id": found.photo.image_id,
        # As TFDS marks that there is none.
        "box": tfds.features.BBox(*(np.zeros(4) if found.box is None else found.box).tolist()),
    }
    for level, label in zip(levels, found.photo.labels, strict=True):
        example["label" if level == levels[0] else level] = label
    if found.parts is not None:
        example |= {"parts": found.parts, "part_visible": found.photo.part_visible}
    if found.mask is not None:
        example["segmentation"] = found.mask
    return example


class _Written:
    """The shards of a folder; those that are whole are kept from one try to the next.

    Attributes:
        shards: by part, rows of (name, height, width, whether it has a box) of each shard's records, in their order.
        names: of all photos in whole shards.
    """

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name
        self._open: dict[str, tuple[ArrayRecordWriter, list[Any], list[int]]] = {}
        self.shards: dict[str, list[list[Any]]] = {"train": [], "test": []}
        for part, shards in self.shards.items():
            while (rows := self._rows(part, len(shards))) is not None:
                shards.append(rows)
        self.names = {row[0] for shards in self.shards.values() for rows in shards for row in rows}

    def _place(self, part: str, shard: int) -> Path:
        return self._folder / f"{self._name}-{part}.array_record-{shard:05d}"

    def _list(self, part: str, shard: int) -> Path:
        return self._folder / f"{part}-{shard:05d}.json"

    def _rows(self, part: str, shard: int) -> list[Any] | None:
        # The list is written when the shard is whole.
        if not (self._list(part, shard).is_file() and self._place(part, shard).is_file()):
            return None
        try:
            return list(json.loads(storage.read_text(self._list(part, shard))))
        except ValueError:
            return None

    def add(self, part: str, found: _Found, record: bytes) -> None:
        if part not in self._open:
            place = str(self._place(part, len(self.shards[part])))
            self._open[part] = ArrayRecordWriter(place, "group_size:1"), [], [0]
        writer, rows, size = self._open[part]
        writer.write(record)
        rows.append([found.photo.name, *found.size, found.box is not None])
        size[0] += len(record)
        if size[0] >= min(SHARD_BYTES, FIRST_BYTES << min(len(self.shards[part]), 16)):
            self._close(part)

    def close(self) -> None:
        for part in list(self._open):
            self._close(part)

    @contextlib.contextmanager
    def kept_if_interrupted(self) -> Iterator[None]:
        """Of what is written when Ctrl-C comes, all is kept."""
        try:
            yield
        except KeyboardInterrupt:
            for part, (_, rows, _) in list(self._open.items()):
                place = self._place(part, len(self.shards[part]))
                self._open[part][0].close()
                # It may have come between a record and its row.
                if ArrayRecordReader(str(place)).num_records() == len(rows):
                    storage.write_text(self._list(part, len(self.shards[part])), json.dumps(rows))
            raise

    def forget(self) -> None:
        """Removes the lists, when all that is in them is written elsewhere."""
        for part, shards in self.shards.items():
            for shard in range(len(shards)):
                storage.remove(self._list(part, shard))

    def _close(self, part: str) -> None:
        writer, rows, _ = self._open.pop(part)
        writer.close()
        storage.write_text(self._list(part, len(self.shards[part])), json.dumps(rows))
        self.shards[part].append(rows)


def _describe(
    folder: Path,
    dataset: Dataset,
    annotations: Annotations,
    features: tfds.features.FeaturesDict,
    written: _Written,
) -> None:
    """What TFDS and `Records` read the shards by."""
    index: dict[str, np.ndarray] = {}
    for part, photos in annotations.photos.items():
        rows = [row for shard in written.shards[part] for row in shard]
        position = {row[0]: number for number, row in enumerate(rows)}
        order = np.array([position[photo.name] for photo in photos])
        sizes = np.array([row[1:3] for row in rows], np.int32)
        index[f"{part}/order"], index[f"{part}/sizes"] = order, sizes[order]
        index[f"{part}/boxes"] = np.array([row[3] for row in rows], bool)[order]
        index[f"{part}/labels"] = np.array([photo.labels for photo in photos], np.int32)
    template = tfds.core.ShardedFileTemplate(
        dataset_name=dataset.name, data_dir=folder, filetype_suffix="array_record", template=_TEMPLATE
    )
    splits = [
        tfds.core.SplitInfo(
            name=part,
            shard_lengths=[len(rows) for rows in shards],
            num_bytes=sum(path.stat().st_size for path in folder.glob(f"{dataset.name}-{part}.array_record-*")),
            filename_template=template,
        )
        for part, shards in written.shards.items()
    ]
    with _quiet():
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=features,
            split_infos=splits,
            version=VERSION,
            filename_template=template,
            homepage=dataset.homepage,
            check_data=False,
        )
    storage.write_text(folder / "class_names.json", json.dumps(annotations.class_names))
    with storage.writing(folder / "index.npz") as file:
        np.savez(file, **cast(Any, index))
    written.forget()


def _images(folder: Path) -> list[str]:
    """Features that are kept as files' bytes."""
    with _quiet():
        features = tfds.builder_from_directory(folder).info.features
    return [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every data set that is not built in
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _as_os_errors(folder: Path) -> Iterator[None]:
    """ArrayRecord's way to tell that the disk is full, or the folder gone, is a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "failed" not in str(error).lower():
            raise
        reason = str(error).partition(": ")[2].partition(";")[0] or str(error)
        raise OSError(0, " ".join(reason.split()), str(folder)) from error
