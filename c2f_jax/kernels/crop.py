"""The differentiable crop, its inverse, and which of its outputs lie beyond the image.

Output pixel i of an axis with n pixels looks at ``position = lo * N + (i + 1/2) (hi - lo) N / n - 1/2`` of the N input
pixels, whose centres are at 0, 1, ...: half-pixel centres, boxes measured at pixel edges (torch's
``align_corners=False``). It takes the pixels under a triangle: two of them, or as many as an output pixel covers when
antialiased. Two ways to compute the same: gather these taps, or multiply by a matrix that holds their weights.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from c2f_jax.kernels import _sample, _taps
from c2f_jax.kernels._sharding import by_the_compiler
from c2f_jax.kernels.boxes import invert, ordered

PADDINGS = ("edge", "constant", "symmetric", "reflect")
METHODS = ("linear", "nearest")
IMPLEMENTATIONS = ("auto", "gather", "matmul")
# What others call them.
ALIASES = {
    "border": "edge",
    "zeros": "constant",
    "reflection": "symmetric",
    "bilinear": "linear",
    "lanczos3": "linear with antialias=True",
    "cubic": "linear with antialias=True",
}


def crop_and_resize(
    images: ArrayLike,
    boxes: ArrayLike | Sequence[Any],
    output_size: int | Sequence[int],
    *,
    method: str = "linear",
    padding: str = "edge",
    fill_value: float = 0.0,
    antialias: bool = False,
    gradient_blur: float = 0.0,
    implementation: str = "auto",
) -> jax.Array:
    """Crops boxes out of images and resizes them, differentiable in the image and in the box.

    The result is linear in the image's pixels and piecewise linear in the box (piecewise rational where antialiased).
    Its derivative in the box is exact; where it jumps (a sample on a pixel's centre) it is the one from the right (as
    seen in the mirror beyond the image with padding "symmetric" or "reflect"), and 0 beyond the image with "edge".
    Forward and reverse mode, and second derivatives across image and box. Finite for boxes without area, mirrored, or
    outside the image. A pixel without weight in an output does not matter to it, be it NaN or infinite; the same holds
    for derivatives, with the derivatives' weights, and on every platform.

    Args:
        images: [..., H, W, C], floating, integer or bool; "linear" reads integers as they are and makes floats of them.
        boxes: [..., 4] with the leading axes of the images, or [..., K, 4] for K crops of each image, which is not
            copied for it. Fractions of the image at pixel edges, [ymin, xmin, ymax, xmax]; min > max mirrors.
        output_size: S, or (height, width).
        method: "linear", or "nearest" for labels and masks: copies of the pixels that samples fall into (the later one
            between two), of the images' own dtype; no gradient in the box.
        padding: what lies beyond the image, in NumPy's words: "edge" repeats its last pixel, "constant" is
            `fill_value` (blended over one pixel, as torch's "zeros"), "symmetric" mirrors about the last pixel's outer
            edge, "reflect" about its centre.
        fill_value: of padding "constant".
        antialias: where the crop is larger than the output, average over as much of it as an output pixel covers, as
            `jax.image.scale_and_translate` does. Without it a reduction of more than about 2 aliases. A side longer
            than the image is averaged as one of the image's length; with padding "edge" an average counts the pixels
            inside the image alone.
        gradient_blur: if more than 0, the derivative in the box is that of a crop from an image blurred by about so
            many of its pixels: not the exact one, but one that holds as far. Values and the derivative in the image
            stay those of the sharp crop.
        implementation: of "linear": "gather" the taps of each axis, or "matmul" with their weights. "auto" takes the
            faster one for the platform that the program is compiled for.

    Returns:
        [..., S, S, C] or [..., K, S, S, C]; of the images' dtype if that is floating or the method is "nearest", else
        float32, or float64 for float64 boxes. Coordinates are computed in float32 or wider.

    Raises:
        ValueError: for shapes that do not fit, complex images, or an unknown option.

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
    images, boxes = _array(images, "images"), _array(boxes, "boxes")
    if images.ndim < 3:
        raise ValueError(f"images must be [..., H, W, C], got shape {images.shape}")
    _check_boxes(boxes)
    leading = images.shape[:-3]
    if boxes.shape[: len(leading)] != leading or boxes.ndim - 1 - len(leading) not in (0, 1):
        raise ValueError(
            f"boxes must be [*images.shape[:-3], 4] or [*images.shape[:-3], K, 4], "
            f"got boxes {boxes.shape} for images {images.shape}"
        )
    _check_option("padding", padding, PADDINGS)
    _check_option("method", method, METHODS)
    _check_option("implementation", implementation, IMPLEMENTATIONS)
    size = _size(output_size)
    blur = float(gradient_blur)
    if not 0.0 <= blur < math.inf:
        raise ValueError(f"gradient_blur must be a number of pixels, 0 or more, got {gradient_blur!r}")
    symbolic = [side for side in images.shape[-3:-1] if not isinstance(side, int)]
    if antialias and symbolic:
        if implementation == "gather":
            raise ValueError(
                f"antialias with a symbolic height or width ({symbolic[0]}) has a symbolic number of taps, which can "
                'not be gathered: use implementation="matmul"'
            )
        implementation = "matmul"
    if blur and symbolic:
        raise ValueError(f"gradient_blur needs a height and width that are known, got {symbolic[0]}")

    floating = jnp.issubdtype(images.dtype, jnp.floating)
    computed = _computed(images, boxes) if floating else _computed(boxes)
    if method == "nearest":
        if antialias or blur or implementation != "auto":
            raise ValueError('method="nearest" copies pixels: it takes no antialias, gradient_blur or implementation')
        if padding == "constant" and not floating and np.asarray(fill_value).astype(images.dtype) != fill_value:
            raise ValueError(f"fill_value must be a value of the images' {images.dtype}, got {fill_value!r}")
        crop: Callable[..., jax.Array] = partial(_nearest, size=size, padding=padding, fill_value=fill_value)
    else:
        settings: dict[str, Any] = {"size": size, "padding": padding, "fill_value": float(fill_value)}
        settings |= {"antialias": antialias, "implementation": implementation}
        crop = partial(_blurred, blur=blur, **settings) if blur else partial(_crop, **settings)
    each = boxes.ndim - 1 - len(leading)  # boxes of an image: 1 where there is an axis of them

    def crops(images: jax.Array, boxes: jax.Array) -> jax.Array:
        if images.ndim > 4:
            return jax.vmap(crops)(images, boxes)
        boxes = boxes.astype(computed)
        boxes = boxes if each else boxes[..., None, :]
        out = crop(images, boxes) if images.ndim == 4 else crop(images[None], boxes[None])[0]
        return out if each else jnp.squeeze(out, axis=-4)

    of_result = [[(0, i), (1, i)] for i in range(len(leading))] + [[(1, boxes.ndim - 2)]] * each
    out = by_the_compiler(crops, (images, boxes), [*of_result, [], [], [(0, images.ndim - 1)]])
    return out.astype(images.dtype) if floating else out


def paste(
    views: ArrayLike,
    boxes: ArrayLike | Sequence[Any],
    output_size: int | Sequence[int],
    *,
    antialias: bool = False,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Puts views back where they were cropped from: the inverse of a crop, differentiable in view and box.

    ``background * (1 - mask) + image * mask`` shows the views in an image. The mask is the share of each pixel that the
    box covers, so it has a gradient in the box; what `image` holds where the mask is 0 is the view's edge, repeated.

    Args:
        views: [..., h, w, C].
        boxes: [..., 4], where each view lies in its image; min > max as it was cropped, mirrored. A side of less than
            1e-6 counts as one of 1e-6.
        output_size: of the image: S, or (height, width).
        antialias: average where the view is larger than its place.
        implementation: as of `crop_and_resize`.

    Returns:
        (image [..., S, S, C], mask [..., S, S, 1]), both of the dtype of the crop of such views.

    Example:
        >>> import jax.numpy as jnp
        >>> image, mask = paste(jnp.full((2, 2, 1), 7.0), [0.25, 0.25, 0.75, 0.75], 4)
        >>> (image * mask)[..., 0].astype(int).tolist()
        [[0, 0, 0, 0], [0, 7, 7, 0], [0, 7, 7, 0], [0, 0, 0, 0]]
    """
    views, boxes = _array(views, "views"), _array(boxes, "boxes")
    _check_boxes(boxes)
    if views.ndim < 3 or views.shape[:-3] != boxes.shape[:-1]:
        raise ValueError(f"views must be [*boxes.shape[:-1], h, w, C], got {views.shape} for boxes {boxes.shape}")
    size = _size(output_size)
    boxes = boxes.astype(_computed(boxes))
    image = crop_and_resize(views, invert(boxes), size, antialias=antialias, implementation=implementation)
    covered = []
    for axis, pixels in enumerate(size):
        edges = jnp.arange(pixels, dtype=boxes.dtype)
        lo, hi = (ordered(boxes)[..., i, None] * float(pixels) for i in (axis, axis + 2))
        covered.append(jnp.maximum(jnp.minimum(hi, edges + 1.0) - jnp.maximum(lo, edges), 0.0))
    mask = covered[0][..., :, None, None] * covered[1][..., None, :, None]
    return image, mask.astype(image.dtype)


def outside_mask(boxes: ArrayLike | Sequence[Any], output_size: int | Sequence[int]) -> jax.Array:
    """Which outputs of a crop look beyond the image; no gradient.

    Args:
        boxes: [..., 4].
        output_size: S, or (height, width), as of the crop.

    Returns:
        bool [..., S, S], True where an output's centre lies beyond the image, whatever the image's size.

    Example:
        >>> outside_mask([-0.5, 0.0, 0.5, 1.0], 2).tolist()
        [[True, True], [False, False]]
    """
    boxes = _array(boxes, "boxes")
    _check_boxes(boxes)
    boxes = boxes.astype(_computed(boxes))
    beyond = []
    for axis, outputs in enumerate(_size(output_size)):
        lo, hi = boxes[..., axis, None], boxes[..., axis + 2, None]
        places = lo + (hi - lo) * ((jnp.arange(outputs, dtype=boxes.dtype) + 0.5) / outputs)
        beyond.append(~((places >= 0.0) & (places <= 1.0)))
    return beyond[0][..., :, None] | beyond[1][..., None, :]


# --- What comes in. ---


def _array(values: Any, name: str) -> jax.Array:
    array = jnp.asarray(values)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must be real, got {array.dtype}: crop .real and .imag, for instance as two channels")
    return array


def _computed(*arrays: jax.Array) -> Any:
    """float64 where that goes in, else float32."""
    return jnp.float64 if any(array.dtype == jnp.float64 for array in arrays) else jnp.float32


def _check_boxes(boxes: jax.Array) -> None:
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [..., 4], got shape {boxes.shape}")


def _check_option(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value in known:
        return
    remedy = f"; that is {ALIASES[value]!r} here" if isinstance(value, str) and value in ALIASES else ""
    if name == "method" and value in IMPLEMENTATIONS:
        remedy = f"; what chooses the formulation is implementation={value!r}"
    raise ValueError(f"{name} must be one of {known}, got {value!r}{remedy}")


def _size(output_size: Any) -> tuple[int, int]:
    try:
        sides = output_size if np.ndim(output_size) else (output_size, output_size)
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"output_size must be a positive int or (height, width), not traced, got {output_size!r}")
    return height, width


# --- The crop of images [B, H, W, C] and boxes [B, K, 4]. ---


def _crop(
    images: jax.Array,
    boxes: jax.Array,
    *,
    size: tuple[int, int],
    padding: str,
    fill_value: float,
    antialias: bool,
    implementation: str,
) -> jax.Array:
    """[B, K, *size, C] in the coordinates' dtype."""
    y_axis, x_axis = (_taps.Axis(images.shape[1 + i], size[i], padding, antialias) for i in (0, 1))
    y = _taps.places(boxes[..., 0], boxes[..., 2], y_axis)
    x = _taps.places(boxes[..., 1], boxes[..., 3], x_axis)
    gather, gather_on_cpu, matmul = (
        lambda images, y, x, way=way: _sample.sample(way, images, y, x, (y_axis, x_axis))
        for way in (_sample.GATHER, _sample.GATHER_ON_CPU, _sample.MATMUL)
    )
    if implementation == "matmul":
        out = matmul(images, y, x)
    elif implementation == "gather":
        out = lax.platform_dependent(images, y, x, cpu=gather_on_cpu, default=gather)
    else:
        out = lax.platform_dependent(images, y, x, cpu=gather_on_cpu, tpu=matmul, default=gather)
    if padding == "constant" and fill_value != 0.0:
        rows, columns = _taps.outside(y, y_axis)[..., :, None], _taps.outside(x, x_axis)[..., None, :]
        outside = rows + columns - rows * columns
        if not math.isfinite(fill_value):
            outside = lax.stop_gradient(outside)
        out += _sample.times(outside, jnp.asarray(fill_value, out.dtype))[..., None]
    return out


def _blurred(images: jax.Array, boxes: jax.Array, *, blur: float, **settings: Any) -> jax.Array:
    """`_crop`, with the derivative in the boxes of a crop from the images made smaller, so that a pixel is a blur."""
    images = images.astype(boxes.dtype)
    reduced = tuple(max(1, round(side / max(blur, 1.0))) for side in images.shape[1:3])
    whole = jnp.array([[[0.0, 0.0, 1.0, 1.0]]], boxes.dtype)
    shrink: Callable[..., jax.Array] = partial(
        _crop, **{**settings, "size": reduced, "antialias": True, "padding": "edge"}
    )
    small = jax.vmap(lambda image: shrink(image[None], whole)[0, 0])(lax.stop_gradient(images))
    return _with_derivative_of(_crop(images, lax.stop_gradient(boxes), **settings), _crop(small, boxes, **settings))


def _nearest(images: jax.Array, boxes: jax.Array, size: tuple[int, int], padding: str, fill_value: float) -> jax.Array:
    """[B, K, *size, C] in the images' dtype."""
    boxes = lax.stop_gradient(boxes)
    found = []
    for i in (0, 1):
        axis = _taps.Axis(images.shape[1 + i], size[i], padding, antialias=False)
        found.append(_taps.nearest(_taps.places(boxes[..., i], boxes[..., i + 2], axis), axis))
    (rows, rows_there), (columns, columns_there) = found

    def one(image, rows, columns):
        return jnp.take(jnp.take(image, rows, axis=0, mode="clip"), columns, axis=1, mode="clip")

    out = jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)))(images, rows, columns)
    if padding != "constant":
        return out
    there = rows_there[..., :, None] & columns_there[..., None, :]
    return jnp.where(there[..., None], out, jnp.asarray(fill_value, out.dtype))


@jax.custom_jvp
def _with_derivative_of(sharp: jax.Array, blurred: jax.Array) -> jax.Array:
    """The sharp value, with the derivatives of both."""
    return sharp


@_with_derivative_of.defjvp
def _with_derivative_of_jvp(primals, tangents):
    return _with_derivative_of(*primals), tangents[0] + tangents[1]
