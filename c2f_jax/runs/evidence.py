"""What a second look at each place of each training photo would tell: the table that teaches the region.

Features of squares on a grid over the whole photo, by the backbone as it is; then for each of a few fixed folds of them
linear discriminants of the others' squares: `log P(label | square)` of classifiers that have not seen the photo, which
its own label cannot flatter. Written once, since what is made from other parameters would be another table.
"""

import io
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax import storage
from c2f_jax.console import tell
from c2f_jax.data.sources import Subset
from c2f_jax.errors import UserError
from c2f_jax.evaluation.discriminants import Features, held_out
from c2f_jax.runs import parallel, processes
from c2f_jax.runs.build import Run, evaluation_batches
from c2f_jax.runs.held_out import other_training_part
from c2f_jax.training.teaching import PART, cover

FILE = "evidence.npy"
GRID = 12  # places along each side
PHOTOS = 4  # seen at a time by each device
# Along the longer side of a photo that is squeezed into a square, as much detail as along the shorter one needs.
STRETCH = 1.25
ROOM = 2**32  # bytes of host memory for features; beyond it the photos are looked at three times


def evidence_of(run: Run, workdir: Path, state: Any | None) -> np.ndarray:
    """The table [N, G, G] of the training part, made of `state` and written to `workdir`, or else read there.

    All processes call it together. state: None beyond the step that makes it. A table that an earlier beginning left is
    of other weights or photos, for all that is known.

    Raises:
        UserError: if the file is not there any more, cannot be read, or is of other photos, or if it would hold what
            is not finite.
    """
    path = storage.join(workdir, FILE)
    if state is not None:
        if processes.is_first():
            tell("looking at all places of the training photos")
        features = Kept(features_of(run, state), len(run.labels))
        table = held_out(features, run.labels, classes=len(run.splits.class_names), groups=run.groups)
        processes.by_first(lambda: _write(path, table.reshape(-1, GRID, GRID)))

    def read() -> np.ndarray:
        if state is None and other_training_part(workdir, run.photos):
            raise UserError(
                f"the training photos have changed since this run began, and {path} tells where to look in those: put "
                "them back as they were, or start another, with another --workdir"
            )
        return _read(path, len(run.labels))

    return processes.together(read)


def _write(path: Path, table: np.ndarray) -> None:
    if not np.isfinite(table).all():
        raise UserError(
            "what the network sees in the training photos is not finite, and teaches nothing: take other weights "
            "(model.pretrained, init_from), or --config.region.teach=0.0 --config.region.box_gradient=none"
        )
    content = io.BytesIO()
    np.save(content, table.astype(np.float32))
    storage.write_bytes(path, content.getvalue())


def _read(path: Path, count: int) -> np.ndarray:
    try:
        content = storage.read_bytes(path)
    except OSError as error:
        raise UserError(
            f"{path}: {storage.told(error)}; it taught this run where to look: restore it, or start another, with "
            "another --workdir"
        ) from error
    try:
        table = np.load(io.BytesIO(content), allow_pickle=False)
        if table.shape != (count, GRID, GRID) or not np.isfinite(table).all():
            raise ValueError(f"holds {table.dtype} {list(table.shape)}, not {[count, GRID, GRID]} numbers")
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): it taught this run where to look; start another, with another --workdir"
        ) from error
    return table


def features_of(run: Run, state: Any) -> Features:
    """Mean features float16 [b, G * G, D] of training photos' squares, in running statistics; in every process."""
    config, task = run.config.copy_and_resolve_references(), run.task
    network: Any = task.network
    config.train.eval_batch_size = PHOTOS * parallel.device_count()
    # As much detail as a second look has, as far as raw images have it.
    whole = min(task.fine_size / task.side, config.dataset.raw_size)
    whole *= STRETCH if config.augment.keep_aspect else 1.0
    whole = 32 * math.ceil(whole / 32)
    # Some backbones have no running statistics.
    statistics = state.batch_stats["coarse"].get("backbone", {})
    variables = {"params": state.params["backbone"], "batch_stats": statistics}

    @partial(jax.jit, out_shardings=parallel.replicated(run.mesh))
    def see(variables: Any, photos: jax.Array, window: jax.Array) -> jax.Array:
        maps = network.backbone.apply(variables, task.normalise(photos.astype(jnp.float32)), train=False)
        maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
        shares = cover(window, cells=maps.shape[1], side=PART * task.side, grid=GRID, cell_offset=task.cell_offset)
        means = jnp.einsum("byxc,bgy,bhx->bghc", maps, *shares)
        return means.reshape(len(means), GRID * GRID, -1).astype(jnp.float16)

    def features(photos: np.ndarray) -> Iterator[np.ndarray]:
        left = len(photos)
        for batch in evaluation_batches(config, Subset(run.splits.train, photos), run.mesh, whole=whole):
            seen = np.asarray(see(variables, batch["photo"], batch["window"]))[:left]  # the last batch is filled up
            left -= len(seen)
            yield seen

    return features


class Kept:
    """Features that are kept when all photos' have been asked for, if they take no more than `room` bytes."""

    def __init__(self, features: Features, count: int, *, room: int = ROOM):
        self._features, self._count, self._room = features, count, room
        self._kept: np.ndarray | None = None

    def __call__(self, photos: np.ndarray) -> Iterator[np.ndarray]:
        """As of `Features`."""
        if self._kept is not None:
            for some in np.split(photos, range(PHOTOS, len(photos), PHOTOS)):
                yield self._kept[some]
            return
        kept, done = None, 0
        for rows in self._features(photos):
            if not done and len(photos) == self._count and self._count * rows[0].nbytes <= self._room:
                kept = np.empty((self._count, *rows.shape[1:]), rows.dtype)
            if kept is not None:
                kept[photos[done : done + len(rows)]] = rows
            done += len(rows)
            yield rows
        self._kept = kept
