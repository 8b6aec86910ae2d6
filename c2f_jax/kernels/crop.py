"""The differentiable crop.

Output pixel i of an axis with n pixels looks at ``position = lo * N + (i + 1/2) (hi - lo) N / n - 1/2`` of the N input
pixels, whose centres are at 0, 1, ...: half-pixel centres, boxes measured at pixel edges (torch's
``align_corners=False``). It takes the pixels under a triangle: two of them, or as many as an output pixel covers when
antialiased. Two ways to compute the same: gather these taps, or multiply by a matrix that holds their weights. Pixels
without weight do not count, even where they are not finite.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from c2f_jax.kernels.by_gather import gather, gather_on_cpu, of_each_box
from c2f_jax.kernels.by_matmul import matmul, special_pixels
from c2f_jax.kernels.taps import Axis, number, size_of, taps_of_boxes, triangles

PADDINGS = ("edge", "constant", "symmetric", "reflect")
METHODS = ("linear", "nearest")
IMPLEMENTATIONS = ("auto", "gather", "matmul")
# Other people's words, and what used to stand where another word stands now.
INSTEAD = {
    "border": "padding='edge'",
    "zeros": "padding='constant'",
    "reflection": "padding='symmetric', or 'reflect' for aligned corners",
    "bilinear": "method='linear'",
    "gather": "implementation='gather'",
    "matmul": "implementation='matmul'",
}


def crop_and_resize(
    images: ArrayLike,
    boxes: ArrayLike | Sequence[Any],
    output_size: SupportsIndex | Sequence[SupportsIndex],
    *,
    method: str = "linear",
    antialias: bool = False,
    padding: str = "edge",
    fill_value: float = 0.0,
    implementation: str = "auto",
) -> jax.Array:
    """Crops boxes out of images and resizes them, differentiable in the image and in the box.

    The result is linear in the image's pixels and piecewise linear in the box (piecewise rational where antialiased).
    Its derivative in the box is exact; where it jumps (a sample on a pixel's centre) it is the one from the right (as
    seen in the mirror beyond the image with padding "symmetric" and "reflect"), and 0 beyond the image with padding
    "edge". Forward and reverse mode, and second derivatives across image and box. Finite for boxes without area,
    mirrored, or outside the image.

    Args:
        images: [..., H, W, C], floating, integer or bool; those that are not floating are read as they are and come out
            as floats.
        boxes: [..., 4] with the leading axes of the images, or [..., K, 4] for K crops of each image, which is not
            copied for it. Fractions of the image at pixel edges, [ymin, xmin, ymax, xmax]; min > max mirrors.
        output_size: S, or (height, width).
        method: "linear" between the pixels' centres, or "nearest": the pixel that each sample lies in, for labels and
            masks, in the images' dtype and without a gradient in the box.
        antialias: where the crop is larger than the output, average over as much of it as an output pixel covers, as
            `jax.image.scale_and_translate` does. Without it a reduction of more than about 2 aliases. A side longer
            than the image is averaged as one of the image's length; with padding "edge" an average counts the pixels
            inside the image alone.
        padding: what lies beyond the image, in the words of `numpy.pad`: "edge" repeats its last pixel, "constant" is
            `fill_value` (blended over one pixel, as torch's "zeros"), "symmetric" mirrors about the last pixel's outer
            edge (torch's "reflection" without aligned corners), "reflect" about its centre.
        fill_value: of padding "constant".
        implementation: "gather" the taps of each axis, or "matmul" with their weights. "auto" takes the faster one for
            the platform that the program is compiled for.

    Returns:
        [..., S, S, C] or [..., K, S, S, C]; of the images' dtype if that is floating, else of the boxes'. Coordinates
        are computed in float32 or wider.

    Raises:
        ValueError: for shapes and dtypes that do not fit, or an unknown word.

    References:
        Jaderberg et al., Spatial Transformer Networks, arXiv:1506.02025.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> image = jnp.arange(16.0).reshape(4, 4, 1)
        >>> crop_and_resize(image, [0.25, 0.25, 0.75, 0.75], 2)[..., 0].tolist()
        [[5.0, 6.0], [9.0, 10.0]]
        >>> box_gradient = jax.grad(lambda box: crop_and_resize(image, box, 2).sum())
        >>> box_gradient(jnp.array([0.3, 0.3, 0.7, 0.7])).round(3).tolist()
        [32.0, 8.0, 32.0, 8.0]
    """
    images, boxes = jnp.asarray(images), jnp.asarray(boxes)
    size = _checked(images, boxes, output_size)
    for name, word, words in (
        ("padding", padding, PADDINGS),
        ("method", method, METHODS),
        ("implementation", implementation, IMPLEMENTATIONS),
    ):
        if word not in words:
            meant = f"; use {INSTEAD[word]}" if word in INSTEAD else ""
            raise ValueError(f"{name} must be one of {words}, got {word!r}{meant}")
    if method == "nearest" and (antialias or implementation == "matmul"):
        raise ValueError("method='nearest' takes one pixel each: it has no antialias and no implementation='matmul'")

    wide = jnp.float64 if jnp.float64 in (boxes.dtype, images.dtype) else jnp.float32
    out_dtype = images.dtype if method == "nearest" or jnp.issubdtype(images.dtype, jnp.floating) else None
    boxes = boxes.astype(wide)
    one_each = boxes.ndim == images.ndim - 2
    if one_each:
        boxes = boxes[..., None, :]
    crop = _way(method, implementation, antialias and not all(isinstance(side, int) for side in images.shape[-3:-1]))
    crop = partial(crop, size=size, padding=padding, fill_value=float(fill_value), antialias=antialias)
    images, boxes = _spread_alike(images, boxes)
    # One axis of images, one of their boxes.
    if images.ndim == 3:
        out = crop(images[None], boxes[None])[0]
    else:
        for _ in range(images.ndim - 4):
            crop = jax.vmap(crop)
        out = crop(images, boxes)
    out = jnp.squeeze(out, -4) if one_each else out
    return out if out_dtype is None else out.astype(out_dtype)


def _checked(
    images: jax.Array, boxes: jax.Array, output_size: SupportsIndex | Sequence[SupportsIndex]
) -> tuple[int, int]:
    """The output's (height, width); what does not fit is refused."""
    if images.ndim < 3:
        raise ValueError(f"images must be [..., H, W, C], got shape {images.shape}")
    if not any(jnp.issubdtype(images.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"images must be floating, integer or bool, got {images.dtype}: crop real and imaginary parts")
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [..., 4], got shape {boxes.shape}")
    if not any(jnp.issubdtype(boxes.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(f"boxes must be floating or integer, got {boxes.dtype}")
    leading = images.shape[:-3]
    if boxes.shape[: len(leading)] != leading or boxes.ndim - 1 - len(leading) not in (0, 1):
        raise ValueError(
            f"boxes must be [*images.shape[:-3], 4] or [*images.shape[:-3], K, 4], "
            f"got boxes {boxes.shape} for images {images.shape}"
        )
    if any(isinstance(side, int) and side == 0 for side in images.shape[-3:-1]):
        raise ValueError(f"images must have at least one pixel, got shape {images.shape}")
    return size_of(output_size)


def _spread_alike(images: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Under a mesh with explicit axes: whole images, with all their boxes on their devices; elsewhere as they are."""
    sharding = jax.typeof(images).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        sharding = jax.typeof(boxes).sharding
        if AxisType.Explicit not in sharding.mesh.axis_types:
            return images, boxes
    ours, theirs = ([*jax.typeof(a).sharding.spec, *[None] * a.ndim][: a.ndim] for a in (images, boxes))
    leading = images.ndim - 3
    shared = [a if a is not None else b for a, b in zip(ours[:leading], theirs[:leading], strict=True)]
    used = {name for axis in shared if axis is not None for name in (axis if isinstance(axis, tuple) else (axis,))}

    last = ours[-1] if isinstance(ours[-1], tuple) else (ours[-1],)
    images_spec = PartitionSpec(*shared, None, None, None if used & set(last) else ours[-1])
    boxes_spec = PartitionSpec(*shared, *[None] * (boxes.ndim - leading))
    # jax 0.8 and later, 0.7, 0.6.
    home: Any = next((m for m in (jax, jax.sharding) if hasattr(m, "reshard")), None)
    home = home or importlib.import_module("jax.experimental.shard")
    return (
        home.reshard(images, NamedSharding(sharding.mesh, images_spec)),
        home.reshard(boxes, NamedSharding(sharding.mesh, boxes_spec)),
    )


def _way(method: str, implementation: str, unknown_taps: bool) -> Callable[..., jax.Array]:
    """The function that crops boxes [B, K, 4] of images [B, H, W, C], left to the platform where that matters."""
    if method == "nearest":
        return _nearest
    if unknown_taps:
        if implementation == "gather":
            raise ValueError("implementation='gather' has to know H and W where antialias=True; 'matmul' has not")
        return partial(_crop, partial(matmul, special=special_pixels))
    ways: dict[str, dict[str, Callable[..., jax.Array]]] = {
        "gather": {"cpu": gather_on_cpu, "default": gather},
        "matmul": {"tpu": partial(matmul, special=special_pixels), "default": partial(matmul, special=gather)},
        "auto": {"cpu": gather_on_cpu, "tpu": partial(matmul, special=special_pixels), "default": gather},
    }

    def crop(images: jax.Array, boxes: jax.Array, **settings: Any) -> jax.Array:
        of_platforms = {name: partial(_crop, way, **settings) for name, way in ways[implementation].items()}
        return lax.platform_dependent(images, boxes, **of_platforms)

    return crop


def _crop(
    sample: Callable[..., jax.Array],
    images: jax.Array,
    boxes: jax.Array,
    *,
    size: tuple[int, int],
    padding: str,
    fill_value: float,
    antialias: bool,
) -> jax.Array:
    """Boxes [B, K, 4] of images [B, H, W, C] -> [B, K, *size, C] in the coordinates' dtype."""
    axes = []
    for pixels, outputs in zip(images.shape[1:3], size, strict=True):
        if not antialias:
            taps = 2
        elif isinstance(pixels, int):
            taps = max(math.ceil(2.0 * pixels / outputs), 2)
        else:
            taps = 2 * pixels // outputs + 2
        axes.append(Axis(pixels, outputs, taps, padding))
    y, x = (
        jax.vmap(jax.vmap(partial(triangles, axis=axis, antialias=antialias)))(boxes[..., i], boxes[..., i + 2])
        for i, axis in enumerate(axes)
    )
    out = sample(images, *y, *x, tuple(axes))
    if padding == "constant" and fill_value != 0.0:
        rows, columns = (jnp.sum(taps_of_boxes(*at, axis)[1], axis=-2) for at, axis in zip((y, x), axes, strict=True))
        beyond = (1.0 - rows[..., :, None] * columns[..., None, :])[..., None]
        out += fill_value * beyond if math.isfinite(fill_value) else jnp.where(beyond > 0, fill_value, 0.0)
    return out


def _nearest(images, boxes, *, size, padding, fill_value, antialias):
    """As `_crop`, without weights."""
    boxes = lax.stop_gradient(boxes)
    found, inside = [], []
    for i, (pixels, outputs) in enumerate(zip(images.shape[1:3], size, strict=True)):
        axis = Axis(pixels, outputs, 1, padding)
        of_box = jax.vmap(jax.vmap(partial(triangles, axis=axis, antialias=False)))
        count = number(pixels, boxes.dtype)
        places = jnp.clip(jnp.floor(of_box(boxes[..., i], boxes[..., i + 2])[0] + 0.5), -1.0, count)
        inside.append((places >= 0) & (places < count))
        found.append(jnp.clip(places, 0, count - 1).astype(jnp.int32))
    rows, columns = (partial(jnp.take, axis=axis, mode="clip") for axis in (0, 1))
    out = of_each_box(lambda image, at: columns(rows(image, at[0]), at[1]), images, tuple(found))
    if padding == "constant":
        there = (inside[0][..., :, None] & inside[1][..., None, :])[..., None]
        out = jnp.where(there, out, jnp.asarray(fill_value, out.dtype))
    return out
