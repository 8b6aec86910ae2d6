"""Examples -> batches for this process, by grain.

The order is a pure function of (seed, step): the batch of step t can be had without reading those before it, so a
checkpoint needs no position of the data, and any number of processes can resume it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from c2f_jax.data.images import UnreadableImage, decode
from c2f_jax.data.sources import Source

Batch = dict[str, np.ndarray]

DTYPES = {
    "label": np.int32,
    "index": np.int32,
    "box": np.float32,
    "parts": np.float32,
    "part_visible": np.float32,
}


def square_sides(height: int, width: int) -> np.ndarray:
    """(height, width) of the largest square of pixels in an image, as fractions of the image's sides; float32 [2]."""
    return min(height, width) / np.array([height, width], np.float32)


def _resize(image: np.ndarray, raw_size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [R, R, 3]; each side is scaled on its own, as in WS-DAN: fractions of the image stay true."""
    if image.shape[:2] == (raw_size, raw_size):
        return image
    return np.asarray(Image.fromarray(image).resize((raw_size, raw_size), Image.Resampling.BILINEAR))


def _to_arrays(example: dict[str, Any], raw_size: int) -> dict[str, np.ndarray]:
    image = np.asarray(example["image"])
    arrays = {"image": _resize(image, raw_size), "square": square_sides(*image.shape[:2])}
    return arrays | {name: np.asarray(example[name], dtype) for name, dtype in DTYPES.items() if name in example}


class InMemory:
    """A source of examples as arrays of one size, decoded when they are first asked for and kept.

    An epoch takes a different order, not different images: decoding and resizing them each time costs a laptop a tenth
    of its training speed.
    """

    def __init__(self, source: Source, raw_size: int):
        self._source, self._raw_size = source, raw_size
        self._kept: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        # Two threads may decode the same image at the same time; they decode the same.
        if index not in self._kept:
            self._kept[index] = _to_arrays(self._source[index], self._raw_size)
        return self._kept[index]


def in_memory(source: Source, *, raw_size: int, limit_mib: int) -> Source:
    """`source`, kept in memory once it is decoded if all of it takes no more than `limit_mib`."""
    return InMemory(source, raw_size) if len(source) * 3 * raw_size**2 <= limit_mib << 20 else source


def training_batches(
    source: Source, *, batch_size: int, raw_size: int, seed: int, start: int, process: int, processes: int
) -> Iterator[Batch]:
    """This process's share of the batches of steps `start`, start + 1, ..., without end.

    Each epoch is a new permutation of the source; a batch may hold the end of one and the beginning of the next. Shares
    laid end to end are the batch that one process would have, in its order.

    Args:
        source: the training examples.
        batch_size: of the global batch; `processes` divides it.
        raw_size: R; images of other sizes are resized.
        seed: of the permutations.
        start: the first step wanted.
        process, processes: which share, of how many.

    Yields:
        `image` uint8 [b, R, R, 3], `square` float32 [b, 2] (see `square_sides`), `label`, `index` int32 [b], and `box`,
        `parts`, `part_visible` float32 where known.
    """
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    shares = dataset.map(lambda example: _to_arrays(example, raw_size)).batch(
        batch_size // processes, drop_remainder=True
    )
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(shares[process::processes][start:].to_iter_dataset(options))


def evaluation_batches(
    source: Source, *, batch_size: int, raw_size: int, process: int, processes: int
) -> Iterator[Batch]:
    """This process's share of every example once, in order; the last batch is filled up.

    `mask` float32 [b] is 1 for an example and 0 for filling. All processes get the same number of batches.
    """
    steps = -(-len(source) // batch_size)

    def row(position: int) -> dict[str, np.ndarray]:
        valid = position < len(source)
        # Beyond the end any example will do: it has the right shapes.
        return _to_arrays(source[position if valid else 0], raw_size) | {"mask": np.asarray(valid, np.float32)}

    shares = grain.MapDataset.range(steps * batch_size).map(row).batch(batch_size // processes)
    return iter(shares[process::processes].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


class ImageFile(NamedTuple):
    """An image file: `image` uint8 [R, R, 3], and its own size in pixels; or None, 0, 0 and why it cannot be read."""

    image: np.ndarray | None
    height: int
    width: int
    error: str | None


def read_images(paths: Sequence[Path], *, raw_size: int) -> Iterator[ImageFile]:
    """Files, read and resized by threads a little ahead of the reader, in order."""

    def read(path: Path) -> ImageFile:
        try:
            image = decode(path)
        except UnreadableImage as error:
            return ImageFile(None, 0, 0, str(error))
        return ImageFile(_resize(image, raw_size), image.shape[0], image.shape[1], None)

    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)
    return iter(grain.MapDataset.source(paths).map(read).to_iter_dataset(options))
