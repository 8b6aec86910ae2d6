"""Raw images -> coarse view -> box -> fine view: the one place where the two looks are written.

Losses, evaluation, prediction and pictures all call `two_looks`; they differ in the coarse box, in the region rule and
in how a view is prepared (normalised only, or with colour changes).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2f_jax.kernels import compose, crop_and_resize, resize_maps, threshold_box

# Outputs of the coarse look, its boxes [B, 4] -> where to look again [B, 4]; boxes in raw coordinates, oriented alike.
Region = Callable[[dict[str, jax.Array], jax.Array], jax.Array]
Prepare = Callable[[jax.Array], jax.Array]  # a view with values 0..255 -> what the network takes


class Look(NamedTuple):
    """One look at one view.

    Attributes:
        box: oriented box [B, 4], in the coordinates of the raw image or (of `steps.predict`) of the photo.
        view: what the network saw [B, S, S, 3].
        logits: [B, C].
        out: the network's other outputs.
        batch_stats: running statistics after this look (as they were, when not training).
    """

    box: jax.Array
    view: jax.Array
    logits: jax.Array
    out: dict[str, jax.Array]
    batch_stats: Any


def central_boxes(sides: jax.Array) -> jax.Array:
    """Boxes [B, 4] around the middle of each image; sides [B, 2]: height and width, 1 is that of the image."""
    return jnp.concatenate([0.5 - 0.5 * sides, 0.5 + 0.5 * sides], axis=-1)


def learned_region(out: dict[str, jax.Array], coarse_box: jax.Array, *, side: float = 0.0) -> jax.Array:
    """The inverse mapping's box [B, 4]; with a `side` the square at its place."""
    return square_at(out["place"], coarse_box, side=side) if side else compose(coarse_box, out["box"])


def square_at(place: jax.Array, coarse_box: jax.Array, *, side: float) -> jax.Array:
    """Squares [B, 4] in raw coordinates, moved into the raw image where they would reach beyond it.

    place: (y, x) [B, 2] of their centres in the coordinates of coarse_box [B, 4]; side: a fraction of the raw image.
    """
    start, end = coarse_box[:, :2], coarse_box[:, 2:]
    centre = jnp.clip(start + place * (end - start), 0.5 * side, 1.0 - 0.5 * side)
    half = 0.5 * side * jnp.sign(end - start)
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def threshold_region(out: dict[str, jax.Array], coarse_box: jax.Array, *, size: int) -> jax.Array:
    """WS-DAN's region at test time: the mean map, resized to `size`, at 0.1 of its maximum, padded by 0.05. [B, 4]"""
    mean_map = resize_maps(jnp.mean(out["attention_maps"], axis=-1), size)
    return compose(coarse_box, threshold_box(mean_map, 0.1, padding=0.05))


def crop_view(raw: jax.Array, box: jax.Array, view_size: int) -> jax.Array:
    """What lies in `box` [B, 4] of raw [B, R, R, 3], with values 0..255: [B, view_size, view_size, 3].

    It is antialiased whenever a box may be larger than the view; two taps alias beyond a reduction of about 2.
    """
    return crop_and_resize(raw, box, view_size, antialias=raw.shape[-3] > view_size)


def see(
    network: nn.Module, params: Any, batch_stats: Any, view: jax.Array, *, train: bool, **collections: Any
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """The network on one prepared view [B, S, S, 3] -> logits [B, C], outputs, batch statistics after it."""
    variables = {"params": params, "batch_stats": batch_stats, **collections}
    apply: Any = network.apply  # flax's type hides that `mutable` makes it return two things
    if not train:
        logits, out = apply(variables, view, train=False)
        return logits, out, batch_stats
    (logits, out), updated = apply(variables, view, train=True, mutable=["batch_stats"])
    return logits, out, updated.get("batch_stats", {})  # a network may have none


def look(
    network: nn.Module,
    params: Any,
    batch_stats: Any,
    raw: jax.Array,
    box: jax.Array,
    *,
    view_size: int,
    prepare: Prepare,
    train: bool,
    **collections: Any,
) -> Look:
    """Crops `box` [B, 4] out of raw [B, R, R, 3] and shows it to the network."""
    view = prepare(crop_view(raw, box, view_size))
    logits, out, batch_stats = see(network, params, batch_stats, view, train=train, **collections)
    return Look(box, view, logits, out, batch_stats)


def two_looks(
    network: nn.Module,
    params: Any,
    batch_stats: dict[str, Any],
    raw: jax.Array,
    coarse_box: jax.Array,
    *,
    region: Region | None,
    view_size: int,
    fine_size: int,
    prepare: Prepare,
    train: bool,
    **collections: Any,
) -> dict[str, Look]:
    """The coarse look, and the fine one where a region rule says to look again.

    Args:
        network: maps a view to logits and outputs.
        params: its parameters, shared by both looks.
        batch_stats: {"coarse": ..., "fine": ...}: each kind of view has running statistics of its own.
        raw: uint8 images [B, R, R, 3].
        coarse_box: oriented boxes [B, 4] in raw coordinates.
        region: rule for where to look again; None looks once.
        view_size, fine_size: pixels along each side of the coarse and of the fine view.
        prepare: turns views with values 0..255 into the network's input; the same for both looks.
        train: as in the network.
        **collections: further variables of the coarse look (e.g. `perturbations`).

    Returns:
        {"coarse": Look} or {"coarse": Look, "fine": Look}; boxes in raw coordinates. The fine box inherits a mirror.
    """
    shown: dict[str, Any] = {"prepare": prepare, "train": train}
    coarse = look(network, params, batch_stats["coarse"], raw, coarse_box, view_size=view_size, **shown, **collections)
    looks = {"coarse": coarse}
    if region is not None:
        fine_box = region(coarse.out, coarse_box)
        looks["fine"] = look(network, params, batch_stats["fine"], raw, fine_box, view_size=fine_size, **shown)
    return looks


def attention_over_image(coarse: Look, size: int) -> jax.Array:
    """The coarse look's mean attention over all that its box is a part of: [B, size, size], maximum about 1, 0 beyond
    the box."""
    maps = coarse.out["attention_maps"].astype(jnp.float32)
    mean = jnp.mean(maps, axis=-1, keepdims=True)
    mean /= jnp.maximum(jnp.max(mean, axis=(1, 2), keepdims=True), 1e-9)
    # The image as a box in the coordinates of the view.
    low, high = coarse.box[:, :2], coarse.box[:, 2:]
    whole = jnp.concatenate([-low / (high - low), (1.0 - low) / (high - low)], axis=-1)
    inside = crop_and_resize(jnp.ones_like(mean), whole, size, padding="constant") > 0.5
    return (crop_and_resize(mean, whole, size) * inside)[..., 0]


def log_probabilities(looks: dict[str, Look]) -> dict[str, jax.Array]:
    """Log probabilities [B, C] of each look and, after two, of both: "fused", the mean of probabilities, not logits."""
    result = {name: jax.nn.log_softmax(seen.logits, axis=-1) for name, seen in looks.items()}
    if "fine" in result:
        result["fused"] = jnp.logaddexp(result["coarse"], result["fine"]) - jnp.log(2.0)
    return result
