"""Photos of a report, small: each with its boxes, what was attended to, and the second look, as data URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from c2f_jax.data.sources import Source, Subset
from c2f_jax.inference.predict import Model
from c2f_jax.kernels import ordered
from c2f_jax.models.two_looks import attention_over_image
from c2f_jax.report.gather import in_batches
from c2f_jax.training import steps
from c2f_jax.training.losses import Task

PHOTO_SIDE, FINE_SIDE = 216, 144  # pixels: the longer side of a photo, and a second look's
QUALITY = 72  # of JPEG
HEAT_SIZE = 32
MOST_MAPS = 64  # of an image, shown one by one

Box = tuple[float, float, float, float]  # left, top, width, height in per cent of the photo


@dataclass(frozen=True)
class Picture:
    """One test image.

    Attributes:
        index: its place in the test part.
        photo: data URI.
        aspect: width / height of the photo.
        coarse: where the first look looked; None if that is all of the photo.
        box: where the second did, and None for one look.
        truth: the object's box, where known.
        heat: data URI of a dark picture that lets through what was attended to; None without attention.
        fine: data URI of the second look.
        maps: as `heat`, of each attention map.
        strengths: each map's share of the largest one's maximum.
    """

    index: int
    photo: str
    aspect: float
    coarse: Box | None = None
    box: Box | None = None
    truth: Box | None = None
    heat: str | None = None
    fine: str | None = None
    maps: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()


def draw(model: Model, source: Source, indices: Sequence[int], *, with_maps: Sequence[int] = ()) -> dict[int, Picture]:
    """Pictures of some examples of `source`, by index; of those in `with_maps` each attention map, too."""
    indices, pictures = sorted(set(indices)), {}
    if not indices:
        return {}
    some = Subset(source, indices)
    found = in_batches(model, some, jax.jit(partial(_look, model.task)))
    for index, looks in zip(indices, found, strict=True):
        example = source[index]
        pictures[index] = _picture(index, example, looks, with_maps=index in with_maps)
    return pictures


def _look(task: Task, params: Any, batch_stats: Any, batch: Any) -> dict[str, jax.Array]:
    looks = steps.predict(task, params, batch_stats, batch)
    found = {"coarse": ordered(looks["coarse"].box)}
    if "fine" in looks:
        found["fine"] = jnp.clip(ordered(looks["fine"].box), 0.0, 1.0)
    if "attention_maps" in looks["coarse"].out:
        coarse = looks["coarse"]
        found["heat"] = attention_over_image(coarse, HEAT_SIZE)
        maps = coarse.out["attention_maps"][..., :MOST_MAPS]

        def alone(one: jax.Array) -> jax.Array:
            return attention_over_image(coarse._replace(out={"attention_maps": one[..., None]}), HEAT_SIZE)

        found["maps"] = jax.vmap(alone, in_axes=-1, out_axes=1)(maps)
        peaks = jnp.max(maps, axis=(1, 2)).astype(jnp.float32)
        found["strengths"] = peaks / jnp.maximum(jnp.max(peaks, axis=-1, keepdims=True), 1e-9)
    return found


def _picture(index: int, example: dict[str, Any], looks: dict[str, np.ndarray], *, with_maps: bool) -> Picture:
    photo = Image.fromarray(np.asarray(example["image"]))
    small = photo.copy()
    small.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    fine = None
    if "fine" in looks:
        ymin, xmin, ymax, xmax = (float(value) for value in looks["fine"])
        place = (xmin * photo.width, ymin * photo.height, xmax * photo.width, ymax * photo.height)
        if place[2] > place[0] and place[3] > place[1]:
            fine = _jpeg(photo.resize((FINE_SIDE, FINE_SIDE), Image.Resampling.BICUBIC, box=place))
    whole = np.allclose(looks["coarse"], [0, 0, 1, 1], atol=0.01)
    return Picture(
        index,
        _jpeg(small),
        photo.width / photo.height,
        None if whole else _percent(looks["coarse"]),
        _percent(looks["fine"]) if "fine" in looks else None,
        _percent(example["box"]) if "box" in example else None,
        _shade(looks["heat"]) if "heat" in looks else None,
        fine,
        tuple(_shade(one) for one in looks["maps"]) if with_maps and "maps" in looks else (),
        tuple(float(one) for one in looks["strengths"]) if with_maps and "maps" in looks else (),
    )


def _percent(box: np.ndarray) -> Box:
    ymin, xmin, ymax, xmax = (round(100.0 * float(value), 2) for value in box)
    return xmin, ymin, round(xmax - xmin, 2), round(ymax - ymin, 2)


def _shade(heat: np.ndarray) -> str:
    """Black, densest where nothing was attended to: laid over the photo it leaves what was."""
    # Sixteen steps are plenty, and compress well.
    alpha = (12 * np.round(15 * (1.0 - np.clip(heat, 0.0, 1.0)))).astype(np.uint8)
    layer = Image.merge("LA", (Image.new("L", alpha.shape[::-1]), Image.fromarray(alpha)))
    return _uri(layer, "png", optimize=True)


def _jpeg(image: Image.Image) -> str:
    return _uri(image, "jpeg", quality=QUALITY, optimize=True)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
