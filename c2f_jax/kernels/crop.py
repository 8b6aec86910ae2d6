"""The differentiable bilinear crop.

Output pixel i of an axis with n pixels looks at ``position = lo * N + (i + 1/2) (hi - lo) N / n - 1/2`` of the N input
pixels, whose centres are at 0, 1, ...: half-pixel centres, boxes measured at pixel edges (torch's
``align_corners=False``). It takes the pixels under a triangle: two of them, or as many as an output pixel covers when
antialiased. Two ways to compute the same: gather these taps, or multiply by a matrix that holds their weights.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

PADDINGS = ("edge", "constant", "reflect")
METHODS = ("auto", "gather", "matmul")


def crop_and_resize(
    images: jax.Array,
    boxes: jax.Array,
    output_size: int | Sequence[int],
    *,
    padding: str = "edge",
    fill_value: float = 0.0,
    antialias: bool = False,
    method: str = "auto",
) -> jax.Array:
    """Crops boxes out of images and resizes them, differentiable in the image and in the box.

    The result is linear in the image's pixels and piecewise linear in the box (piecewise rational where antialiased).
    Its derivative in the box is exact; where it jumps (a sample on a pixel's centre) it is the one from the right (as
    seen in the mirror beyond the image with padding "reflect"), and 0 beyond the image with padding "edge".
    Forward and reverse mode, and second derivatives across image and box. Finite for boxes without area, mirrored, or
    outside the image.

    Args:
        images: [..., H, W, C], floating or integer; integers are read as they are and come out as floats.
        boxes: [..., 4] with the leading axes of the images, or [..., K, 4] for K crops of each image, which is not
            copied for it. Fractions of the image at pixel edges, [ymin, xmin, ymax, xmax]; min > max mirrors.
        output_size: S, or (height, width).
        padding: what lies beyond the image: "edge" repeats its last pixel, "constant" is `fill_value` (blended over
            one pixel, as torch's "zeros"), "reflect" mirrors about the last pixel's outer edge.
        fill_value: of padding "constant".
        antialias: where the crop is larger than the output, average over as much of it as an output pixel covers, as
            `jax.image.scale_and_translate` does. Without it a reduction of more than about 2 aliases. A side longer
            than the image is averaged as one of the image's length; with padding "edge" an average counts the pixels
            inside the image alone.
        method: "gather" the taps of each axis, or "matmul" with their weights. "auto" takes the faster one for the
            platform that the program is compiled for.

    Returns:
        [..., S, S, C] or [..., K, S, S, C]; of the images' dtype if that is floating, else of the boxes'. Coordinates
        are computed in float32 or wider.

    Raises:
        ValueError: for shapes that do not fit, or an unknown padding or method.

    References:
        Jaderberg et al., Spatial Transformer Networks, arXiv:1506.02025.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> image = jnp.arange(16.0).reshape(4, 4, 1)
        >>> crop_and_resize(image, jnp.array([0.25, 0.25, 0.75, 0.75]), 2)[..., 0].tolist()
        [[5.0, 6.0], [9.0, 10.0]]
        >>> box_gradient = jax.grad(lambda box: crop_and_resize(image, box, 2).sum())
        >>> box_gradient(jnp.array([0.3, 0.3, 0.7, 0.7])).round(3).tolist()
        [32.0, 8.0, 32.0, 8.0]
    """
    if images.ndim < 3:
        raise ValueError(f"images must be [..., H, W, C], got shape {images.shape}")
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [..., 4], got shape {boxes.shape}")
    leading = images.shape[:-3]
    if boxes.shape[: len(leading)] != leading or boxes.ndim - 1 - len(leading) not in (0, 1):
        raise ValueError(
            f"boxes must be [*images.shape[:-3], 4] or [*images.shape[:-3], K, 4], "
            f"got boxes {boxes.shape} for images {images.shape}"
        )
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {PADDINGS}, got {padding!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    sides = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    size = tuple(operator.index(side) for side in sides)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"output_size must be a positive int or (height, width), got {output_size!r}")

    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    out_dtype = boxes.dtype
    if jnp.issubdtype(images.dtype, jnp.floating):
        boxes, out_dtype = boxes.astype(jnp.promote_types(boxes.dtype, images.dtype)), images.dtype
    settings: dict[str, Any] = {"size": size, "padding": padding, "fill_value": fill_value, "antialias": antialias}
    gather: Callable[..., jax.Array] = partial(_crop, _gather, **settings)
    matmul: Callable[..., jax.Array] = partial(_crop, _matmul, **settings)

    def crop(image: jax.Array, box: jax.Array) -> jax.Array:
        if method == "auto":
            return lax.platform_dependent(image, box, tpu=matmul, default=gather)
        return gather(image, box) if method == "gather" else matmul(image, box)

    if boxes.ndim - 1 > len(leading):
        crop = jax.vmap(crop, in_axes=(None, 0))
    for _ in leading:
        crop = jax.vmap(crop)
    return crop(images, boxes).astype(out_dtype)


# --- Where the outputs look, and with which weights. ---


class _Axis(NamedTuple):
    """What is known of an axis before any box is."""

    pixels: int
    outputs: int
    taps: int  # how many pixels the widest triangle covers
    padding: str


def _widest(pixels: int, outputs: int) -> float:
    """The largest radius there is: that of a box as long as the image."""
    return max(pixels / outputs, 1.0)


def _triangles(lo: jax.Array, hi: jax.Array, axis: _Axis, antialias: bool) -> tuple[jax.Array, jax.Array]:
    """(positions [outputs] in pixels of the input, radius [] of the triangle); exact for the full box at equal size."""
    step = (hi - lo) * (axis.pixels / axis.outputs)
    start = lo * axis.pixels + 0.5 * step - 0.5
    positions = start + step * jnp.arange(axis.outputs, dtype=lo.dtype)
    if axis.padding == "reflect":
        distance = jnp.mod(positions + 0.5, 2.0 * axis.pixels)
        positions = jnp.where(distance > axis.pixels, 2.0 * axis.pixels - distance, distance) - 0.5
    radius = jnp.ones((), lo.dtype)
    if antialias:
        reduction, widest = jnp.abs(step), _widest(axis.pixels, axis.outputs)
        # Inclusive, so that the derivative at a reduction of just 1, and at the full image, is that of a real box.
        radius = jnp.where((reduction >= 1.0) & (reduction <= widest), reduction, jnp.clip(reduction, 1.0, widest))
    return positions, radius


@jax.custom_jvp
def _triangle(distance: jax.Array, radius: jax.Array) -> jax.Array:
    """max(0, 1 - |distance| / radius), with the derivatives from the right where it has a kink."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance) / radius)


@_triangle.defjvp
def _triangle_jvp(primals, tangents):
    (distance, radius), (distance_dot, radius_dot) = primals, tangents
    rising = (distance >= -radius) & (distance < 0)
    falling = (distance >= 0) & (distance < radius)
    slope = (rising.astype(distance.dtype) - falling.astype(distance.dtype)) / radius
    widening = jnp.where(rising | falling, jnp.abs(distance), 0.0) / jnp.square(radius)
    return _triangle(distance, radius), slope * distance_dot + widening * radius_dot


def _first_pixel(left: jax.Array) -> jax.Array:
    """floor(left) + 1: the first pixel under a triangle that begins at `left`, without derivative.

    As the maximum of two candidates, because XLA may compute an elementwise expression once for the indices and once
    more for the weights, and round it differently: a sample next to a pixel's centre would then read one pixel and
    weigh another. It does not compute a reduction twice.
    """
    left = lax.stop_gradient(left)[:, None]
    near = jnp.floor(left) + jnp.arange(2, dtype=left.dtype)
    return jnp.max(jnp.where(near <= left, near, -jnp.inf), axis=1) + 1.0


def _taps(positions: jax.Array, radius: jax.Array, axis: _Axis) -> tuple[jax.Array, jax.Array]:
    """The pixels under each output's triangle: indices and weights, both [taps, outputs].

    The weights sum to 1; with padding "constant" those of pixels beyond the image are 0, and the sum is less.
    """
    cut = axis.padding == "edge" and axis.taps > 2
    if cut:
        # Within half a pixel of the edge, what the triangle covers of the image is that edge's pixel and those inside.
        inside = (positions >= -0.5) & (positions <= axis.pixels - 0.5)
        positions = jnp.where(inside, positions, jnp.clip(lax.stop_gradient(positions), -0.5, axis.pixels - 0.5))
    else:
        # Far outside is as good as just outside, and fits an integer.
        positions = jnp.clip(positions, -1.0 - axis.taps, axis.pixels + axis.taps)
    first = _first_pixel(positions - radius)
    index = first.astype(jnp.int32) + jnp.arange(axis.taps, dtype=jnp.int32)[:, None]
    there = ((index >= 0) & (index < axis.pixels)).astype(positions.dtype)
    if axis.taps == 2:
        right = positions - first
        weight = jnp.stack([1.0 - right, right])
    else:
        place = first + jnp.arange(axis.taps, dtype=positions.dtype)[:, None]
        weight = _triangle(positions - place, radius)
        weight = weight * there if cut else weight
        weight = weight / jnp.sum(weight, axis=0)
    if axis.padding == "constant":
        weight = weight * there
    elif axis.padding == "reflect":
        index = jnp.where(index < 0, -1 - index, jnp.where(index >= axis.pixels, 2 * axis.pixels - 1 - index, index))
    return jnp.clip(index, 0, axis.pixels - 1), weight


def _crop(
    sample: Callable[..., jax.Array],
    image: jax.Array,
    box: jax.Array,
    *,
    size: tuple[int, int],
    padding: str,
    fill_value: float,
    antialias: bool,
) -> jax.Array:
    """One box [4] of one image [H, W, C] -> [*size, C] in the coordinates' dtype."""
    axes = []
    for pixels, outputs in zip(image.shape[:2], size, strict=True):
        taps = math.ceil(2.0 * _widest(pixels, outputs)) if antialias else 2
        axes.append(_Axis(pixels, outputs, taps, padding))
    y, x = (_triangles(box[i], box[i + 2], axis, antialias) for i, axis in enumerate(axes))
    out = sample(image, *y, *x, tuple(axes))
    if padding == "constant" and fill_value != 0.0:
        rows, columns = (jnp.sum(_taps(*at, axis)[1], axis=0) for at, axis in zip((y, x), axes, strict=True))
        out += fill_value * (1.0 - rows[:, None] * columns[None, :])[..., None]
    return out


# --- By gathering taps. ---


def _rows(image: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """image [H, W, C], index and weight [taps, outputs] -> [outputs, W, C]."""
    terms = [w[:, None, None] * jnp.take(image, i, axis=0, mode="clip") for i, w in zip(index, weight, strict=True)]
    return lax.optimization_barrier(functools.reduce(jnp.add, terms))


def _columns(rows: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """rows [outputs, W, C], index and weight [taps, outputs'] -> [outputs, outputs', C]."""
    terms = [w[None, :, None] * jnp.take(rows, i, axis=1, mode="clip") for i, w in zip(index, weight, strict=True)]
    return lax.optimization_barrier(functools.reduce(jnp.add, terms))


def _sample(image, y, y_radius, x, x_radius, axes):
    """image [H, W, C] under the triangles at all pairs of y [h] and x [w] -> [h, w, C]."""
    rows_index, rows_weight = _taps(y, y_radius, axes[0])
    columns_index, columns_weight = _taps(x, x_radius, axes[1])
    return _columns(_rows(image, rows_index, rows_weight), columns_index, columns_weight)


_gather = jax.custom_jvp(_sample, nondiff_argnums=(5,))


def _weight_derivatives(positions, radius, axis):
    """Of the taps' weights, by position (each output's depend on its own alone) and by radius."""
    ones, zeros = jnp.ones_like, jnp.zeros_like
    for direction in ((ones(positions), zeros(radius)), (zeros(positions), ones(radius))):
        yield jax.jvp(lambda p, r: _taps(p, r, axis)[1], (positions, radius), direction)[1]


@partial(_gather.defjvp, symbolic_zeros=True)
def _gather_jvp(axes, primals, tangents):
    # The derivatives by position and radius are samples too, with other weights at the same taps. Left to itself,
    # reverse mode would scatter the cotangent over whole rows first, which costs several times as much.
    image, y, y_radius, x, x_radius = primals
    image_dot, *at_dot = (None if type(t) is SymbolicZero else t for t in tangents)
    rows_index, rows_weight = _taps(y, y_radius, axes[0])
    columns_index, columns_weight = _taps(x, x_radius, axes[1])
    rows = _rows(image, rows_index, rows_weight)
    out = _columns(rows, columns_index, columns_weight)
    out_dot = jnp.zeros_like(out)
    if image_dot is not None:
        # Columns as rows of the transposed image: in reverse mode both add contiguous rows, which CPUs do fast.
        rows_dot = jnp.swapaxes(_rows(image_dot, rows_index, rows_weight), 0, 1)
        out_dot += jnp.swapaxes(_rows(rows_dot, columns_index, columns_weight), 0, 1)
    for dot, weight in zip(at_dot[:2], _weight_derivatives(y, y_radius, axes[0]), strict=True):
        if dot is not None:
            change = _columns(_rows(image, rows_index, weight), columns_index, columns_weight)
            out_dot += change * (dot[:, None, None] if dot.ndim else dot)
    for dot, weight in zip(at_dot[2:], _weight_derivatives(x, x_radius, axes[1]), strict=True):
        if dot is not None:
            out_dot += _columns(rows, columns_index, weight) * (dot[:, None] if dot.ndim else dot)
    return out, out_dot


# --- By a matrix per axis. ---


def _matmul(image, y, y_radius, x, x_radius, axes):
    """As `_sample`, by two products; for hardware where products are cheap and gathers are not."""
    rows = _matrix(*_taps(y, y_radius, axes[0]), axes[0].pixels)
    columns = _matrix(*_taps(x, x_radius, axes[1]), axes[1].pixels)
    dtype = jnp.promote_types(rows.dtype, image.dtype)
    # Float32 products on TPU would be made of bfloat16 passes otherwise.
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    out = product("ih,hwc->iwc", rows.astype(dtype), image.astype(dtype))
    return product("jw,iwc->ijc", columns.astype(dtype), out)


def _matrix(index: jax.Array, weight: jax.Array, pixels: int) -> jax.Array:
    """Taps [taps, outputs] as a matrix [outputs, pixels]."""
    hit = index[..., None] == jnp.arange(pixels, dtype=index.dtype)
    return jnp.sum(jnp.where(hit, weight[..., None], 0.0), axis=0)
