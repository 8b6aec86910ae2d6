"""What a second look at each place of each training photo would tell: the table that teaches the region.

Features of squares on a grid over the whole photo, by the backbone as it is; then for each of a few fixed folds of them
linear discriminants of the others' squares: `log P(label | square)` of classifiers that have not seen the photo, which
its own label cannot flatter. Written once, since what is made from other parameters would be another table.
"""

import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

from c2f_jax import storage
from c2f_jax.console import tell
from c2f_jax.errors import UserError
from c2f_jax.runs import parallel, processes
from c2f_jax.runs.build import Run, evaluation_batches
from c2f_jax.training.teaching import PART, cover

FILE = "evidence.npy"
GRID = 12  # places along each side
FOLDS = 3
SHRINKAGE = 0.1  # of the within-class covariance towards a multiple of the identity
POWER = 4.0  # of P(label | square): on DeepPCB what there is at the defect then stands out most from the rest
CHUNK = 16  # photos
PHOTOS = 4  # seen at a time by each device
# Along the longer side of a photo that is squeezed into a square, as much detail as along the shorter one needs.
STRETCH = 1.25


def evidence_of(run: Run, workdir: Path, state: Any | None) -> np.ndarray:
    """The table [N, G, G] of the training part, from `workdir` or else made of `state` and written there.

    All processes call it together. state: None beyond the step that makes it.

    Raises:
        UserError: if the file is not there any more, cannot be read, or is of other photos.
    """
    path = storage.join(workdir, FILE)
    made = processes.told_by_first(lambda: "made" if storage.exists(path) else "")
    if not made and state is not None:
        if processes.is_first():
            tell("looking at all places of the training photos")
        table = held_out(features_of(run, state), run.labels, classes=len(run.splits.class_names))
        processes.by_first(lambda: _write(path, table.reshape(-1, GRID, GRID)))
    return processes.together(lambda: _read(path, len(run.labels)))


def _write(path: Path, table: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, table.astype(np.float32))
    storage.write_bytes(path, content.getvalue())


def _read(path: Path, count: int) -> np.ndarray:
    try:
        table = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
        if table.shape != (count, GRID, GRID) or not np.isfinite(table).all():
            raise ValueError(f"holds {table.dtype} {list(table.shape)}, not {[count, GRID, GRID]} numbers")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): it taught this run where to look; start another, with another --workdir"
        ) from error
    return table


def features_of(run: Run, state: Any) -> np.ndarray:
    """Mean features float16 [N, G * G, D] of the training photos' squares, in running statistics; in every process."""
    config, task = run.config.copy_and_resolve_references(), run.task
    network: Any = task.network
    config.train.eval_batch_size = PHOTOS * parallel.device_count()
    # As much detail as a second look has, as far as raw images have it.
    whole = min(config.model.view_size / task.side, config.dataset.raw_size)
    whole *= STRETCH if config.augment.keep_aspect else 1.0
    whole = 32 * math.ceil(whole / 32)
    variables = {"params": state.params["backbone"], "batch_stats": state.batch_stats["coarse"]["backbone"]}

    @partial(jax.jit, out_shardings=parallel.replicated(run.mesh))
    def see(variables: Any, photos: jax.Array, window: jax.Array) -> jax.Array:
        maps = network.backbone.apply(variables, task.normalise(photos.astype(jnp.float32)), train=False)
        maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
        shares = cover(window, cells=maps.shape[1], side=PART * task.side, grid=GRID, cell_offset=task.cell_offset)
        means = jnp.einsum("byxc,bgy,bhx->bghc", maps, *shares)
        return means.reshape(len(means), GRID * GRID, -1).astype(jnp.float16)

    batches = evaluation_batches(config, run.splits.train, run.mesh, whole=whole)
    rows = [np.asarray(see(variables, batch["photo"], batch["window"])) for batch in batches]
    return np.concatenate(rows)[: len(run.labels)]


def held_out(features: np.ndarray, labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Logits [N, K] of where to look, `POWER` log P(label | square), by linear discriminants of the other photos.

    Args:
        features: [N, K, D] of N photos' K squares.
        labels: int [N].
        classes: how many there are.
    """
    folds = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    scores = np.empty((*features.shape[:2], classes), np.float32)
    for fold in range(FOLDS):
        fitted = folds != fold
        weights, bias = discriminants(features[fitted], labels[fitted], classes)
        for photo in np.flatnonzero(~fitted):
            scores[photo] = features[photo].astype(np.float32) @ weights + bias
    return POWER * _own_log_probability(scores, labels)


def _own_log_probability(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log P(label | square) float64 [N, K], as sure as makes ``mean_k P(label | square k)`` likeliest.

    Some of a photo's squares tell its label, nobody says which: where only one in ten does, as on DeepPCB, what makes
    the label likeliest in each of them is near chance throughout.
    """
    own = np.broadcast_to(labels[:, None, None], (*scores.shape[:2], 1))

    def log_probability(log_scale: float) -> np.ndarray:
        return np.take_along_axis(log_softmax(math.exp(log_scale) * scores, axis=-1), own, axis=-1)[..., 0]

    def loss(log_scale: float) -> float:
        return -float(np.mean(logsumexp(log_probability(log_scale).astype(np.float64), axis=1)))

    return log_probability(minimize_scalar(loss, bounds=(-8.0, 3.0), method="bounded").x).astype(np.float64)


def discriminants(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, C] and bias [C] of normal densities around the classes' means that share a covariance.

    features: [N, K, D], all K of a photo are of its class; labels: int [N]. A class without an example is as likely as
    the mean of all.
    """
    count, squares_of, width = features.shape
    centre = features.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    sums = np.zeros((classes, width))
    moments = np.zeros((width, width))
    for begin in range(0, count, CHUNK):  # as float32 all squares at once would take gigabytes
        rows = features[begin : begin + CHUNK].astype(np.float32) - centre
        np.add.at(sums, labels[begin : begin + CHUNK], rows.sum(axis=1))
        rows = rows.reshape(-1, width)
        moments += rows.T @ rows
    members = squares_of * np.bincount(labels, minlength=classes)[:, None]
    means = np.where(members > 0, sums / np.maximum(members, 1), 0.0)  # 0: the mean of all
    within = (moments - (members * means).T @ means) / members.sum()
    within *= 1.0 - SHRINKAGE
    within[np.diag_indices_from(within)] += SHRINKAGE / (1.0 - SHRINKAGE) * np.trace(within) / width + 1e-12
    weights = np.linalg.solve(within, means.T)
    bias = -0.5 * np.sum(means.T * weights, axis=0) - centre @ weights
    return weights.astype(np.float32), bias.astype(np.float32)
