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
    # One axis of images, one of their boxes.
    flat = images.reshape(math.prod(leading), *images.shape[-3:])
    per_image = boxes.reshape(len(flat), math.prod(boxes.shape[len(leading) : -1]), 4)
    settings: dict[str, Any] = {"size": size, "padding": padding, "fill_value": fill_value, "antialias": antialias}
    gather: Callable[..., jax.Array] = partial(_crop, _gather, **settings)
    gather_on_cpu: Callable[..., jax.Array] = partial(_crop, _gather_on_cpu, **settings)
    matmul: Callable[..., jax.Array] = partial(_crop, _matmul, **settings)
    if method == "matmul":
        out = matmul(flat, per_image)
    elif method == "gather":
        out = lax.platform_dependent(flat, per_image, cpu=gather_on_cpu, default=gather)
    else:
        out = lax.platform_dependent(flat, per_image, cpu=gather_on_cpu, tpu=matmul, default=gather)
    return out.reshape(*boxes.shape[:-1], *out.shape[2:]).astype(out_dtype)


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
        taps = math.ceil(2.0 * _widest(pixels, outputs)) if antialias else 2
        axes.append(_Axis(pixels, outputs, taps, padding))
    triangles = []
    for i, axis in enumerate(axes):
        of_box = jax.vmap(jax.vmap(partial(_triangles, axis=axis, antialias=antialias)))
        triangles.append(of_box(boxes[..., i], boxes[..., i + 2]))
    y, x = triangles
    out = sample(images, *y, *x, tuple(axes))
    if padding == "constant" and fill_value != 0.0:
        rows, columns = (jnp.sum(_taps_of_boxes(*at, axis)[1], axis=-2) for at, axis in zip((y, x), axes, strict=True))
        out += fill_value * (1.0 - rows[..., :, None] * columns[..., None, :])[..., None]
    return out


def _taps_of_boxes(positions: jax.Array, radius: jax.Array, axis: _Axis) -> tuple[jax.Array, jax.Array]:
    """`_taps` for positions [B, K, outputs] and radii [B, K]: [B, K, taps, outputs]."""
    return jax.vmap(jax.vmap(partial(_taps, axis=axis)))(positions, radius)


# --- By gathering taps. ---

CACHE = 1 << 20  # bytes; from here on crops are made in turn. A core has 1 to 2 MiB of its own, for several arrays.


def _rows(image: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """image [H, W, C], index and weight [taps, outputs] -> [outputs, W, C]."""
    terms = [w[:, None, None] * jnp.take(image, i, axis=0, mode="clip") for i, w in zip(index, weight, strict=True)]
    return lax.optimization_barrier(functools.reduce(jnp.add, terms))


def _columns(rows: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """rows [outputs, W, C], index and weight [taps, outputs'] -> [outputs, outputs', C]."""
    terms = [w[None, :, None] * jnp.take(rows, i, axis=1, mode="clip") for i, w in zip(index, weight, strict=True)]
    return lax.optimization_barrier(functools.reduce(jnp.add, terms))


def _sample(images, y, y_radius, x, x_radius, axes):
    """images [B, H, W, C] under the triangles at all pairs of y [B, K, h] and x [B, K, w] -> [B, K, h, w, C]."""
    taps = _taps_of_boxes(y, y_radius, axes[0]), _taps_of_boxes(x, x_radius, axes[1])
    return _of_each_box(lambda image, at: _columns(_rows(image, *at[0]), *at[1]), images, taps)


def _sample_jvp(axes, primals, tangents, *, in_turn):
    images, y, y_radius, x, x_radius = primals
    images_dot, *dots = (None if type(t) is SymbolicZero else t for t in tangents)
    out = _sample(images, y, y_radius, x, x_radius, axes)
    if images_dot is None and all(dot is None for dot in dots):
        return out, jnp.zeros_like(out)
    taps = _taps_of_boxes(y, y_radius, axes[0]), _taps_of_boxes(x, x_radius, axes[1])
    changes = (*_weight_derivatives(y, y_radius, axes[0]), *_weight_derivatives(x, x_radius, axes[1]))
    changes = tuple(None if dot is None else change for dot, change in zip(dots, changes, strict=True))
    # Reverse mode computes again what it needs, box by box, rather than keep it for all of them.
    change = jax.checkpoint(lambda image, box: _change(*image, *box), prevent_cse=False)
    rows = axes[0].outputs * axes[1].pixels * images.shape[-1]  # numbers between the two passes of one crop
    in_turn = in_turn and rows * out.dtype.itemsize >= CACHE
    return out, _of_each_box(change, (images, images_dot), (taps, changes, tuple(dots)), in_turn=in_turn)


_gather = jax.custom_jvp(_sample, nondiff_argnums=(5,))
_gather.defjvp(partial(_sample_jvp, in_turn=False), symbolic_zeros=True)
_gather_on_cpu = jax.custom_jvp(_sample, nondiff_argnums=(5,))
_gather_on_cpu.defjvp(partial(_sample_jvp, in_turn=True), symbolic_zeros=True)


def _of_each_box(function, images, boxes, *, in_turn=False):
    """function(image, box) for trees of arrays [B, ...] and [B, K, ...] -> [B, K, ...]."""
    mapped = _in_turn if in_turn else jax.vmap
    return mapped(lambda image, boxes: mapped(lambda box: function(image, box))(boxes))(images, boxes)


def _in_turn(function):
    """`jax.vmap`, one after the other: what lies between one step of `function` and the next then stays in cache.

    Where a batch lies on several devices, they take turns side by side, each with its own share.
    """

    def mapped(*arguments):
        count = jax.tree.leaves(arguments)[0].shape[0]
        devices = math.gcd(count, jax.device_count())
        if devices == count:
            return jax.vmap(function)(*arguments)
        split = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(devices, -1, *a.shape[1:]), 0, 1), arguments)
        out = lax.map(lambda turn: jax.vmap(function)(*turn), split)
        return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(count, *a.shape[2:]), out)

    return mapped


def _change(image, image_dot, taps, changes, dots):
    """One crop's tangent [h, w, C], linear in `image_dot` and `dots`; None for what does not move.

    The derivatives by position and radius are samples too, with other weights at the same taps. Left to itself, reverse
    mode would scatter the cotangent over whole rows first, which costs several times as much.
    """
    (rows_index, rows_weight), (columns_index, columns_weight) = taps
    terms = []
    if image_dot is not None:
        # Columns as rows of the transposed image: in reverse mode both add contiguous rows, which CPUs do fast.
        rows_dot = jnp.swapaxes(_rows(image_dot, rows_index, rows_weight), 0, 1)
        terms.append(jnp.swapaxes(_rows(rows_dot, columns_index, columns_weight), 0, 1))
    for dot, weight in zip(dots[:2], changes[:2], strict=True):
        if dot is not None:
            change = _columns(_rows(image, rows_index, weight), columns_index, columns_weight)
            terms.append(change * (dot[:, None, None] if dot.ndim else dot))
    along_columns = [(dot, weight) for dot, weight in zip(dots[2:], changes[2:], strict=True) if dot is not None]
    if along_columns:
        rows = _rows(image, rows_index, rows_weight)
        if len(along_columns) == 1:
            ((dot, weight),) = along_columns
            terms.append(_columns(rows, columns_index, weight) * (dot[:, None] if dot.ndim else dot))
        else:
            # Nothing is scattered here: each tap's weight takes its own sum of products, once for both derivatives.
            terms.append(_columns(rows, columns_index, sum(weight * dot for dot, weight in along_columns)))
    return functools.reduce(jnp.add, terms)


def _weight_derivatives(positions, radius, axis):
    """Of the taps' weights, by position (each output's depend on its own alone) and by radius."""
    ones, zeros = jnp.ones_like, jnp.zeros_like
    for direction in ((ones(positions), zeros(radius)), (zeros(positions), ones(radius))):
        yield jax.jvp(lambda p, r: _taps_of_boxes(p, r, axis)[1], (positions, radius), direction)[1]


# --- By a matrix per axis. ---


def _matmul(images, y, y_radius, x, x_radius, axes):
    """As `_sample`, by two products; for hardware where products are cheap and gathers are not."""
    rows = _matrix(*_taps_of_boxes(y, y_radius, axes[0]), axes[0].pixels)
    columns = _matrix(*_taps_of_boxes(x, x_radius, axes[1]), axes[1].pixels)
    dtype = jnp.promote_types(rows.dtype, images.dtype)
    # Float32 products on TPU would be made of bfloat16 passes otherwise.
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    out = product("bkih,bhwc->bkiwc", rows.astype(dtype), images.astype(dtype))
    return product("bkjw,bkiwc->bkijc", columns.astype(dtype), out)


def _matrix(index: jax.Array, weight: jax.Array, pixels: int) -> jax.Array:
    """Taps [..., taps, outputs] as matrices [..., outputs, pixels]."""
    hit = index[..., None] == jnp.arange(pixels, dtype=index.dtype)
    return jnp.sum(jnp.where(hit, weight[..., None], 0.0), axis=-3)
