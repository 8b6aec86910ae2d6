"""The losses that the stages swap: one look (baseline, coarse), or two, at one of several regions, and a drop view.

Each has the signature ``loss(task, params, probes, state, batch, keys) -> (loss, Aux)`` and is a mean over the batch
it is given, so the mean over equal shards is the loss of the global batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from c2f_jax.kernels import center_loss, compose, drop_mask, resize_maps, sample_attention_map, threshold_box
from c2f_jax.models.inverse_mapping import SHARPNESS
from c2f_jax.models.two_looks import Look, Region, crop_view, learned_region, see, square_at, two_looks
from c2f_jax.training import augment
from c2f_jax.training.teaching import PART, comparison_loss, drawn_places, evidence_at, teaching_loss

Batch = dict[str, jax.Array]
# Keys [B], outputs of the coarse look, its boxes [B, 4] -> where to look again [B, 4]; both in raw coordinates.
RegionOfKeys = Callable[[jax.Array, dict[str, jax.Array], jax.Array], jax.Array]
LOOKS = 4  # places of each example that second looks compare: the one that is learned from, and as many more


@dataclass(frozen=True)
class Task:
    """What stays the same over all stages: the network, its input and the constants of the losses.

    Attributes:
        network: maps a view to logits and outputs.
        view_size, fine_size: of a coarse and of a fine view, in pixels.
        normalise: views with values 0..255 -> network input.
        random_boxes: (keys [B], places [B, 2]) -> coarse boxes [B, 4] of the training views.
        random_colour: (keys [B], views) -> views changed in colour, or in parts; None for no changes.
        center_weight: lambda, on the centre loss.
        center_rate: beta, of the centres' update.
        test_side: of the central coarse box in evaluation and prediction, a fraction of the raw image's.
        test_region: rule for the second look in evaluation and prediction; None looks once.
        side: of the second look, a fraction of the raw image; 0 where the region says how large it is.
        cell_offset: of the feature maps' cells, see `soft_box`.
        teach: weight of what teaches the region, see `training.teaching`.
        mix: (keys [B], raw images, labels, coarse boxes) -> `augment.mix_examples`'s part of a batch, or None.
        label_smoothing: share of the target that all classes have in equal parts.
    """

    network: nn.Module
    view_size: int
    fine_size: int
    normalise: Callable[[jax.Array], jax.Array]
    random_boxes: Callable[[jax.Array, jax.Array], jax.Array]
    random_colour: Callable[[jax.Array, jax.Array], jax.Array] | None
    center_weight: float
    center_rate: float
    test_side: float
    test_region: Region | None
    side: float
    cell_offset: float
    teach: float
    mix: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Batch] | None = None
    label_smoothing: float = 0.0


class Aux(NamedTuple):
    """What a loss hands on besides its value.

    Attributes:
        metrics: scalars for the log, means over the batch.
        batch_stats: {"coarse", "fine"} after the step.
        pooled: the coarse look's attended features [B, M * N] for the centres, or None.
    """

    metrics: dict[str, jax.Array]
    batch_stats: dict[str, Any]
    pooled: jax.Array | None


def cross_entropy(logits: jax.Array, batch: Batch, *, smoothing: float = 0.0) -> jax.Array:
    """Mean over the batch of the cross entropy with its labels, those of mixed examples by their shares.

    Args:
        logits: [B, C].
        batch: `label` int [B]; of mixed examples `other` int [B] and `share` [B], the first label's.
        smoothing: share of each target that all classes have in equal parts.
    """

    def by_label(labels: jax.Array) -> jax.Array:
        values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if smoothing:
            even = -jnp.mean(jax.nn.log_softmax(logits, axis=-1), axis=-1)
            values = (1.0 - smoothing) * values + smoothing * even
        return values

    values = by_label(batch["label"])
    if "other" in batch:
        values = batch["share"] * values + (1.0 - batch["share"]) * by_label(batch["other"])
    return jnp.mean(values)


def _look_twice(
    task: Task, params: Any, probes: Any, state: Any, batch: Batch, keys: jax.Array, region: Region | None
) -> dict[str, Look]:
    collections = {"perturbations": probes} if probes else {}
    return two_looks(
        task.network,
        params,
        state.batch_stats,
        batch["image"],
        task.random_boxes(keys, batch["place"]),
        region=region,
        view_size=task.view_size,
        fine_size=task.fine_size,
        prepare=_prepare(task, keys),
        train=True,
        **collections,
    )


def _prepare(task: Task, keys: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Views with values 0..255 of the examples of `keys` -> network input."""
    return lambda views: task.normalise(views if task.random_colour is None else task.random_colour(keys, views))


def _view_metrics(task: Task, logits: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    metrics, labels = {}, batch["label"]
    for name, values in logits.items():
        metrics[f"{name}/loss"] = cross_entropy(values, batch, smoothing=task.label_smoothing)
        metrics[f"{name}/top_1_accuracy"] = jnp.mean((jnp.argmax(values, axis=-1) == labels).astype(values.dtype))
    return metrics


def _finish(
    task: Task,
    state: Any,
    batch: Batch,
    logits: dict[str, jax.Array],
    looks: dict[str, Look],
    teaching: jax.Array | None,
) -> Any:
    """Mean of the views' cross entropies plus the weighted losses of the coarse look's centres and region."""
    metrics = _view_metrics(task, logits, batch)
    loss = jnp.mean(jnp.stack([metrics[f"{name}/loss"] for name in logits]))
    pooled = looks["coarse"].out.get("pooled")
    if pooled is not None:
        metrics["center_loss"] = jnp.mean(center_loss(pooled, state.centers, batch["label"]))
        loss = loss + task.center_weight * metrics["center_loss"]
    if teaching is not None:
        metrics["teaching_loss"] = teaching
        loss = loss + task.teach * teaching
    # Until there is a fine look, its running statistics follow the coarse ones: that is the copy they start from.
    batch_stats = {"coarse": looks["coarse"].batch_stats, "fine": looks.get("fine", looks["coarse"]).batch_stats}
    return loss, Aux({"loss": loss, **metrics}, batch_stats, pooled)


def coarse_loss(task: Task, params: Any, probes: Any, state: Any, batch: Batch, keys: jax.Array) -> Any:
    """One look: CE(coarse) + lambda * L_A; CE alone for a network without attention (the baseline).

    A batch that holds `evidence` teaches the region by it.
    """
    looks = _look_twice(task, params, probes, state, batch, keys, region=None)
    coarse, teaching = looks["coarse"], None
    if "evidence" in batch:
        logits = coarse.out["region_logits"]
        cells: Any = logits.shape[1:]
        squares = {"side": PART * task.side, "cell_offset": task.cell_offset}
        evidence = evidence_at(batch["evidence"], batch["window"], coarse.box, cells=cells, **squares)
        teaching = teaching_loss(logits, evidence)
    return _finish(task, state, batch, {"coarse": coarse.logits}, looks, teaching)


def fine_loss(
    task: Task,
    params: Any,
    probes: Any,
    state: Any,
    batch: Batch,
    keys: jax.Array,
    *,
    region: RegionOfKeys,
    drop_view: bool,
    compare: bool = False,
) -> Any:
    """Two looks: mean of both CEs, and with `drop_view` of a third one, WS-DAN's drop view's, + lambda * L_A.

    With `compare` second looks at the places of `drawn_region` teach the region, which is then to be that.
    """
    looks = _look_twice(task, params, probes, state, batch, keys, region=partial(region, keys))
    logits = {name: seen.logits for name, seen in looks.items()}
    if drop_view:
        logits["drop"] = _drop_logits(task, params, state, looks["coarse"], keys)
    teaching = _compared(task, params, state, batch, keys, looks) if compare else None
    return _finish(task, state, batch, logits, looks, teaching)


def _compared(task: Task, params: Any, state: Any, batch: Batch, keys: jax.Array, looks: dict[str, Look]) -> jax.Array:
    """What second looks at `LOOKS` places tell teaches the region.

    The first is the one that is learned from; from the others nothing is, and no running statistics follow them.
    """
    region_logits, view = looks["coarse"].out["region_logits"], looks["coarse"].box
    cells, places = _drawn(keys, region_logits, cell_offset=task.cell_offset)
    boxes = [square_at(places[:, number], view, side=task.side) for number in range(1, LOOKS)]
    prepare = _prepare(task, keys)
    views = [prepare(crop_view(batch["image"], box, task.fine_size)) for box in boxes]
    others, _, _ = see(
        task.network, jax.lax.stop_gradient(params), state.batch_stats["fine"], jnp.concatenate(views), train=True
    )
    logits = jnp.stack([looks["fine"].logits, *jnp.split(others, LOOKS - 1)], axis=1)  # [B, LOOKS, C]
    told = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), batch["label"][:, None, None], axis=-1)[..., 0]
    return comparison_loss(region_logits, cells, told, sharpness=SHARPNESS)


def _drawn(keys: jax.Array, region_logits: jax.Array, *, cell_offset: float) -> tuple[jax.Array, jax.Array]:
    keys = augment.stream(keys, augment.REGION)
    return drawn_places(keys, region_logits, count=LOOKS, cell_offset=cell_offset, sharpness=SHARPNESS)


def taught_region(keys: jax.Array, out: dict[str, jax.Array], coarse_box: jax.Array) -> jax.Array:
    """The learned box, of Coarse2Fine."""
    del keys
    return learned_region(out, coarse_box)


def drawn_region(
    keys: jax.Array, out: dict[str, jax.Array], coarse_box: jax.Array, *, side: float, cell_offset: float
) -> jax.Array:
    """A square of `side` at a place drawn from the learned distribution, so that the classifier sees several."""
    _, places = _drawn(keys, out["region_logits"], cell_offset=cell_offset)
    return square_at(places[:, 0], coarse_box, side=side)


def random_region(
    keys: jax.Array, out: dict[str, jax.Array], coarse_box: jax.Array, *, min_side: float, max_side: float
) -> jax.Array:
    """Its control: random squares of the coarse view with sides U(min_side, max_side), keyed by example and step."""
    del out
    region_keys = augment.stream(keys, augment.REGION)
    places = augment.random_places(region_keys)
    boxes = augment.random_boxes(region_keys, places, min_side=min_side, max_side=max_side, flip=False)
    return compose(coarse_box, boxes)


def random_square(keys: jax.Array, out: dict[str, jax.Array], coarse_box: jax.Array, *, side: float) -> jax.Array:
    """The control of squares: one of `side` anywhere in the coarse view, keyed by example and step."""
    del out
    places = augment.random_places(augment.stream(keys, augment.REGION))
    half = jnp.minimum(0.5 * side / jnp.abs(coarse_box[:, 2:] - coarse_box[:, :2]), 0.5)
    return square_at(half + (1.0 - 2.0 * half) * places, coarse_box, side=side)


def sampled_crop_region(keys: jax.Array, out: dict[str, jax.Array], coarse_box: jax.Array, *, size: int) -> jax.Array:
    """WS-DAN's: one sampled map, resized to `size`, at a random threshold, padded by 0.1."""
    box = threshold_box(_sampled_map(keys, 0, out, size), _thresholds(keys, 1, 0.4, 0.6), padding=0.1)
    return compose(coarse_box, box)


def _drop_logits(task: Task, params: Any, state: Any, coarse: Look, keys: jax.Array) -> jax.Array:
    """WS-DAN's drop view: the coarse one without what a sampled map attends to, at a random threshold.

    It is normalised by its own batch; no running statistics follow it, since no test shows such a view.
    """
    mask = drop_mask(_sampled_map(keys, 2, coarse.out, task.view_size), _thresholds(keys, 3, 0.2, 0.5))
    dropped = coarse.view * mask[..., None].astype(coarse.view.dtype)
    logits, _, _ = see(task.network, params, state.batch_stats["coarse"], dropped, train=True)
    return logits


# Streams 0 and 1 of the region's keys are the crop's map and threshold, 2 and 3 the drop view's.
def _keys_of(keys: jax.Array, number: int) -> jax.Array:
    return augment.stream(augment.stream(keys, augment.REGION), number)


def _thresholds(keys: jax.Array, number: int, low: float, high: float) -> jax.Array:
    return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(_keys_of(keys, number))


def _sampled_map(keys: jax.Array, number: int, out: dict[str, jax.Array], size: int) -> jax.Array:
    maps = jax.lax.stop_gradient(out["attention_maps"])
    return resize_maps(sample_attention_map(_keys_of(keys, number), maps), size)
