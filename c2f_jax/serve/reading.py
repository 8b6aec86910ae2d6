"""Uploads -> raw images, in processes of their own: a decoder that hangs, crashes or eats memory takes none with it."""

import asyncio
import io
import multiprocessing
import os
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image

from c2f_jax.data import images
from c2f_jax.data.raw import Raw
from c2f_jax.program import needing
from c2f_jax.serve.limits import MAX_PIXELS, READ_MEMORY, READ_SECONDS

with needing("serve"):
    from pebble import ProcessExpired, ProcessPool

PREVIEW_SIDE = 640  # pixels, of the longer side


class Upload(NamedTuple):
    """An image that was sent.

    Attributes:
        image, window: as of `Raw.cut` at its middle.
        height, width: in pixels.
        preview: a JPEG file of it, upright, if one was asked for.
    """

    image: np.ndarray
    window: np.ndarray
    height: int
    width: int
    preview: bytes | None


class Unreadable(Exception):
    """Bytes that give no picture; the message is a short reason."""


class Reader:
    """Processes that read images. As a context manager it ends them."""

    def __init__(self, raw: Raw):
        """raw: how photos become raw images."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Spawned: a fork of a process with JAX's threads may hang. Started anew now and then, against slow leaks.
        self._pool = ProcessPool(
            max_workers=min(4, max(2, cores)),
            max_tasks=2000,
            initializer=_prepare,
            context=multiprocessing.get_context("spawn"),
        )
        self._raw = raw

    def __enter__(self) -> "Reader":
        self._pool.schedule(_ready).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    async def read(self, data: bytes, *, preview: bool) -> Upload:
        """Raises Unreadable if `data` are no image that can be read within the limits."""
        future: Future = self._pool.schedule(_read, args=[data, self._raw, preview], timeout=READ_SECONDS)
        try:
            found = await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise Unreadable(f"takes longer than {READ_SECONDS:.0f} s to read") from error
        except ProcessExpired as error:
            raise Unreadable("damaged: its decoder failed") from error
        if isinstance(found, str):
            raise Unreadable(found)
        return Upload(*found)


def _prepare() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (READ_MEMORY, READ_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _ready() -> None:
    """For the first process to be there."""


def _read(data: bytes, raw: Raw, preview: bool) -> tuple | str:
    """What makes an `Upload`, or why there is none."""
    try:
        photo = images.decode_photo(data, min_side=max(raw.size, PREVIEW_SIDE // 2), max_pixels=MAX_PIXELS)
        cut = raw.cut(photo.image)
        return cut["image"], cut["window"], photo.height, photo.width, _preview(photo.image) if preview else None
    except images.UnreadableImage as error:
        return str(error)
    except MemoryError:
        return "not enough memory"


def _preview(image: np.ndarray) -> bytes:
    small, buffer = Image.fromarray(image), io.BytesIO()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BILINEAR)
    small.save(buffer, "jpeg", quality=85)
    return buffer.getvalue()
