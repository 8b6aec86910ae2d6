"""Examples -> batches for this process, by grain.

The order is a pure function of (seed, step): the batch of step t can be had without reading those before it, so a
checkpoint needs no position of the data, and any number of processes can resume it.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from c2f_jax.data import images
from c2f_jax.data.images import UnreadableImage, decode_photo
from c2f_jax.data.raw import MIDDLE, Raw
from c2f_jax.data.sources import Source, scaled

Batch = dict[str, np.ndarray]

DTYPES = {
    "label": np.int32,
    "index": np.int32,
    "box": np.float32,
    "parts": np.float32,
    "part_visible": np.float32,
    "evidence": np.float32,
}
READ_AHEAD = 256 << 20  # bytes of batches, but never less than two batches


def _to_arrays(example: dict[str, Any], raw: Raw, place: np.ndarray) -> dict[str, np.ndarray]:
    known = {name: np.asarray(example[name], dtype) for name, dtype in DTYPES.items() if name in example}
    return raw.cut(np.asarray(example["image"]), place) | known


def _laid_out(rows: Iterable[dict[str, np.ndarray]], count: int) -> Batch:
    """`count` rows -> a batch, each copied as soon as it is there: its pixels are still in the processor's cache."""
    batch: Batch = {}
    first: dict[str, Any] = {}
    for place, row in enumerate(rows):
        kind = {name: (value.shape, value.dtype) for name, value in row.items()}
        if not batch:
            batch, first = {name: np.empty((count, *shape), dtype) for name, (shape, dtype) in kind.items()}, kind
        if kind != first:
            raise ValueError(f"examples that differ cannot be one batch: {first} and {kind}")
        for name, value in row.items():
            batch[name][place] = value
    return batch


class Memory:
    """Host memory for photos, shared by the sources that keep them; it is not given back."""

    def __init__(self, mib: int):
        self._left, self._lock = mib << 20, threading.Lock()

    def take(self, size: int) -> bool:
        """Whether there are `size` bytes left; they are then taken."""
        with self._lock:
            fits = size <= self._left
            self._left -= size if fits else 0
        return fits


class InMemory:
    """A source whose photos are decoded and scaled when they are first asked for, and kept while there is `memory`.

    An epoch takes a different order, not different photos: decoding and scaling them each time costs a laptop a tenth
    of its training speed.
    """

    def __init__(self, source: Source, raw: Raw, memory: Memory):
        self._source, self._raw, self._memory = source, raw, memory
        self._kept: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if (kept := self._kept.get(index)) is not None:
            return kept
        example = scaled(self._source, index, self._raw)
        # Two threads may meet at a photo and both take memory for it: that is so much less to keep, not more.
        if self._memory.take(example["image"].nbytes):
            self._kept[index] = example
        return example


class With:
    """A source whose examples hold one thing more: `name`, of `values` [N, ...]."""

    def __init__(self, source: Source, name: str, values: np.ndarray):
        self._source, self._name, self._values = source, name, values

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[index] | {self._name: self._values[index]}

    def scaled(self, index: int, raw: Raw) -> dict[str, Any]:
        """As of `sources.scaled`."""
        return scaled(self._source, index, raw) | {self._name: self._values[index]}


def _read_options(batch_bytes: int) -> grain.ReadOptions:
    """One thread per core, as far as batches read ahead take no more than `READ_AHEAD`."""
    ahead = max(2, min(8, READ_AHEAD // max(1, batch_bytes)))
    return grain.ReadOptions(num_threads=min(_cores(), ahead), prefetch_buffer_size=ahead)


def _cores() -> int:
    """Cores that this process may use: of a container or a SLURM step often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_batches(
    source: Source, *, batch_size: int, raw: Raw, seed: int, start: int, process: int, processes: int
) -> Iterator[Batch]:
    """This process's share of the batches of steps `start`, start + 1, ..., without end.

    Each epoch is a new permutation of the source; a batch may hold the end of one and the beginning of the next. Shares
    laid end to end are the batch that one process would have, in its order.

    Args:
        source: the training examples.
        batch_size: of the global batch; `processes` divides it.
        raw: how photos become raw images.
        seed: of the permutations and places.
        start: the first step wanted.
        process, processes: which share, of how many.

    Yields:
        `image` uint8 [b, R, R, 3]; `place` float32 [b, 2], (y, x) drawn uniformly from 0 to 1: where a view is to lie
        between the first and the last place it can take in the photo, which is where the raw image lies between its
        own; `window` float32 [b, 4], the raw image in the photo; `row` int32 [b], its place in the global batch;
        `label`, `index` int32 [b], and `box`, `parts`, `part_visible` float32 of the photo where known.
    """

    def drawn(position: int, index: int) -> tuple[int, dict[str, np.ndarray]]:
        # By the position in the whole order, so that whoever reads it draws the same.
        place = np.random.default_rng((seed, position)).random(2, np.float32)
        return index, {"place": place, "row": np.asarray(position % batch_size, np.int32)}

    def batch(rows: Sequence[tuple[int, dict[str, np.ndarray]]]) -> Batch:
        arrays = (_to_arrays(scaled(source, index, raw), raw, row["place"]) | row for index, row in rows)
        return _laid_out(arrays, len(rows))

    share = batch_size // processes
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().map_with_index(drawn)
    shares = order.batch(share, drop_remainder=True, batch_fn=batch)[process::processes][start:]
    return iter(shares.to_iter_dataset(_read_options(share * 3 * raw.size**2)))


def evaluation_batches(
    source: Source, *, batch_size: int, raw: Raw, process: int, processes: int, whole: int = 0
) -> Iterator[Batch]:
    """This process's share of every example once, in order, at the middle of its photo; the last batch is filled up.

    As of `training_batches`, without `place` and `row`; `mask` float32 [b] is 1 for an example and 0 for filling; with
    `whole`, `photo` uint8 [b, whole, whole, 3] is all of the photo, squeezed. All processes get the same number of
    batches.
    """
    steps = -(-len(source) // batch_size)

    def arrays(position: int) -> dict[str, np.ndarray]:
        valid = position < len(source)
        # Beyond the end any example will do: it has the right shapes.
        index = position if valid else 0
        photo = {"photo": scaled(source, index, Raw(whole, False))["image"]} if whole else {}
        mask = np.asarray(valid, np.float32)
        return _to_arrays(scaled(source, index, raw), raw, MIDDLE) | photo | {"mask": mask}

    def batch(positions: Sequence[int]) -> Batch:
        return _laid_out(map(arrays, positions), len(positions))

    share = batch_size // processes
    shares = grain.MapDataset.range(steps * batch_size).batch(share, batch_fn=batch)[process::processes]
    return iter(shares.to_iter_dataset(_read_options(share * 3 * max(raw.size, whole) ** 2)))


class ImageFile(NamedTuple):
    """An image file: `image` and `window` as of `Raw.cut` at its middle, and its own size in pixels; or None, None,
    0, 0 and why it cannot be read."""

    image: np.ndarray | None
    window: np.ndarray | None
    height: int
    width: int
    error: str | None


def read_images(pictures: Sequence[images.Source], *, raw: Raw) -> Iterator[ImageFile]:
    """Files, or pictures in memory, read and scaled by threads a little ahead of the reader, in order."""

    def read(picture: images.Source) -> ImageFile:
        try:
            photo = decode_photo(picture, min_side=raw.size, shape=raw.shape)
        except UnreadableImage as error:
            return ImageFile(None, None, 0, 0, str(error))
        return ImageFile(**raw.cut(photo.image), height=photo.height, width=photo.width, error=None)

    ahead = max(2, min(64, READ_AHEAD // (3 * raw.size**2)))
    options = grain.ReadOptions(num_threads=min(2 * _cores(), ahead), prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(pictures).map(read).to_iter_dataset(options))
