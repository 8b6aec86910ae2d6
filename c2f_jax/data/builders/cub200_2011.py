"""CUB-200-2011 as a TFDS data set: prepared once into ArrayRecord files, then read in any order.

Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001. Any data in the same layout will do, with any
number of classes; see `layout`.
"""

import contextlib
import hashlib
import http.client
import io
import os
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from c2f_jax import storage
from c2f_jax.console import warn
from c2f_jax.data import images
from c2f_jax.data.builders import layout
from c2f_jax.errors import UserError

URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
SIZE = 1_150_585_339  # bytes; with the checksum: as TFDS has registered them for its caltech_birds2011
SHA256 = "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081"
COUNTS = {"train": 5994, "test": 5794}  # of the official archive

_MAX_SPLIT_BYTES = 1000 << 20  # beyond it TFDS sorts on disk, which needs TensorFlow


@dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """Where one data set comes from; `name` tells its prepared files from those of others.

    Attributes:
        open_files: reads the tables; called when the data set has to be prepared.
        counts: examples that each split must have; None if not known beforehand.
    """

    open_files: Callable[[], layout.Files] | None = None
    counts: dict[str, int] | None = None


class Cub2002011(tfds.core.GeneratorBasedBuilder):
    """Photos of birds with class, box and parts; examples in the order of images.txt.

    `box` is (ymin, xmin, ymax, xmax) and `parts` (y, x), as fractions of the photo and clipped to it. The photos' own
    bytes are kept.
    """

    name = "cub200_2011"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(),  # names: known when the tables are read
                "box": tfds.features.BBoxFeature(),
                "parts": tfds.features.Tensor(shape=(layout.NUM_PARTS, 2), dtype=np.float32),
                "part_visible": tfds.features.Tensor(shape=(layout.NUM_PARTS,), dtype=np.bool_),
                "name": tfds.features.Text(),
                "image_id": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=features,
            homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # its retries take minutes to say that there is no network
        files = self.builder_config.open_files()
        tables = layout.read_layout(files)
        counts = {split: len(photos) for split, photos in tables.splits.items()}
        if self.builder_config.counts not in (None, counts):
            raise UserError(f"{files.path}: holds {counts} images, not {self.builder_config.counts}; fetch it again")
        self.info.features["label"].names = list(tables.class_names)
        return {split: self._generate_examples(files, photos) for split, photos in tables.splits.items()}

    def _generate_examples(
        self, files: layout.Files, photos: Sequence[layout.Photo]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        waiting = {photo.name: (position, photo) for position, photo in enumerate(photos)}
        size = 0
        for name, content in files.photos([photo.name for photo in photos]):
            position, photo = waiting.pop(name, (-1, None))
            if photo is None:
                raise UserError(f"{files.path}: holds images/{name} twice")
            size += len(content)
            if size > _MAX_SPLIT_BYTES:
                raise UserError(f"{files.path}: more than {_MAX_SPLIT_BYTES >> 20} MiB in one part; shrink the photos")
            yield position, _example(files, photo, content)
        if waiting:
            raise UserError(
                f"{files.path}: images/{min(waiting)} is missing, one of {len(waiting)}; unpack the whole archive"
            )


def _example(files: layout.Files, photo: layout.Photo, content: bytes) -> dict[str, Any]:
    try:
        height, width, _ = images.decode(content).shape
    except images.UnreadableImage as error:
        raise UserError(
            f"{files.path}: images/{photo.name} cannot be read ({error}); unpack the archive again"
        ) from error
    x, y, box_width, box_height = photo.box
    sides = np.array([height, width])
    box = np.clip(np.array([[y, x], [y + box_height, x + box_width]]) / sides, 0.0, 1.0).ravel()
    if not (box[0] < box[2] and box[1] < box[3]):
        raise UserError(
            f"{files.path}: {layout.BOXES} puts the box of image {photo.image_id} outside its photo, {width} x {height}"
        )
    return {
        "image": content,
        "label": photo.label,
        "box": box.astype(np.float32),
        "parts": np.clip(photo.parts[:, ::-1] / sides, 0.0, 1.0).astype(np.float32),
        "part_visible": photo.part_visible,
        "name": photo.name,
        "image_id": photo.image_id,
    }


class Birds:
    """The examples of one split."""

    def __init__(self, records: Sequence[dict[str, Any]]):
        """`records`: as TFDS reads them, the photos not decoded."""
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @property
    def labels(self) -> np.ndarray:
        """int [N]; no photo is decoded for it."""
        return np.array([int(record["label"]) for record in self._records])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._records[index]
        return {
            "image": images.decode(record["image"]),
            "label": int(record["label"]),
            "index": index,
            "box": record["box"],
            "parts": record["parts"],
            "part_visible": record["part_visible"],
            "name": record["name"].decode(),
        }


def load(path: str | None, *, cache_dir: str) -> tuple[Birds, Birds, tuple[str, ...]]:
    """Training part, test part and class names; prepares the data set if that has not been done.

    Args:
        path: the official archive (or another tar or zip in its layout), or the unpacked folder; None: fetched.
        cache_dir: what is prepared or fetched lies below it.

    Raises:
        UserError: if the data cannot be had, or are not whole.
    """
    cache = storage.as_path("dataset.cache_dir", cache_dir, remote=False)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that is not built in
    try:
        config = _config(path, cache)
        with _one_at_a_time(cache / f"{Cub2002011.name}.lock"):
            builder = Cub2002011(data_dir=cache, config=config)
            if not _is_whole(builder):
                builder.data_path.rmtree(missing_ok=True)
                builder = Cub2002011(data_dir=cache, config=config)
                _prepare(builder)
        records = [
            builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}) for split in ("train", "test")
        ]
    except OSError as error:
        raise UserError(
            f"{error.filename or cache}: {error.strerror or error}; prepared data go to dataset.cache_dir, "
            "choose another with --config.dataset.cache_dir=DIR"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return Birds(records[0]), Birds(records[1]), tuple(builder.info.features["label"].names)


def _config(path: str | None, cache: Path) -> Config:
    if path is None:
        return Config(name="official", open_files=lambda: layout.open_files(_fetch(cache)), counts=COUNTS)
    place = storage.as_path("dataset.path", path, remote=False)
    if place.is_file():
        # Reading the tables of an archive takes as long as reading all of it: told apart by what the folder says.
        state = place.stat()
        name = hashlib.sha256(f"{place.name} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
        return Config(name=name, open_files=lambda: layout.open_files(place))
    files = layout.open_files(place)
    return Config(name=layout.digest(files), open_files=lambda: files)


def _is_whole(builder: Cub2002011) -> bool:
    """Whether it is prepared and nobody has cleared away a part of it since."""
    return builder.is_prepared() and all(
        path.exists() for split in builder.info.splits.values() for path in split.filepaths
    )


def _prepare(builder: Cub2002011) -> None:
    """Writes to a folder beside the final one, which appears when all is there."""
    for rest in builder.data_path.parent.glob(f"*{tfds.core.constants.INCOMPLETE_PREFIX}*"):
        rest.rmtree()  # left by a process that was killed
    warn(f"preparing {builder.name} in {builder.data_path}; this is done once")
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports an unknown size twice
            builder.download_and_prepare(file_format="array_record")
    except RuntimeError as error:
        wrote, _, reason = str(error).partition("Failed to finalize writing")
        if wrote or not reason:
            raise
        # ArrayRecord's way to tell that the disk is full, or the folder gone.
        raise OSError(0, reason.partition(": ")[2].partition(";")[0], str(builder.data_path)) from error


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Lets the processes of one machine, or of one shared folder, prepare in turn."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(cache: Path) -> Path:
    """The official archive, from the cache or the network."""
    archive = cache / "downloads" / "CUB_200_2011.tgz"
    if archive.is_file():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_suffix(".part")
    warn(f"fetching {URL} ({SIZE / 1e9:.2f} GB) to {archive}")
    checksum, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(URL, timeout=30) as response, open(partial, "wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
                checksum.update(block)
                size += len(block)
        problem = "" if checksum.hexdigest() == SHA256 else f"{size} bytes with another checksum came"
    except (OSError, http.client.HTTPException) as error:
        problem = str(getattr(error, "reason", error)) or type(error).__name__
    if problem:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"CUB-200-2011 cannot be fetched ({problem}); get {URL} some other way and give the file "
            "with --config.dataset.path=CUB_200_2011.tgz"
        )
    os.replace(partial, archive)
    return archive
