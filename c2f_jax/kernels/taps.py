"""Where the outputs of a crop look along an axis, and with which weights."""

import operator
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax


def size_of(output_size: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, int]:
    """(height, width), of one number or of two."""
    try:
        sides: tuple[Any, ...] = tuple(output_size)  # type: ignore[arg-type]
    except TypeError:
        sides = (output_size, output_size)
    try:
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"output_size must be a positive int or (height, width), got {output_size!r}")
    return height, width


class Axis(NamedTuple):
    """What is known of an axis before any box is. Pixels, and with them taps, may be symbolic."""

    pixels: int
    outputs: int
    taps: int  # how many pixels the widest triangle covers
    padding: str

    @property
    def pair(self) -> bool:
        """Whether two taps do, whose weights need no triangle."""
        return isinstance(self.taps, int) and self.taps == 2


def number(size: int, dtype: Any) -> Any:
    """A size to calculate with, where it may be symbolic."""
    return size if isinstance(size, int) else jnp.asarray(size).astype(dtype)


def _at_least(least: float, number: Any) -> Any:
    return jnp.maximum(number, least) if isinstance(number, jax.Array) else max(number, least)


def triangles(lo: jax.Array, hi: jax.Array, axis: Axis, antialias: bool) -> tuple[jax.Array, jax.Array]:
    """(positions [outputs] in pixels of the input, radius [] of the triangle); exact for the full box at equal size."""
    pixels = number(axis.pixels, lo.dtype)
    step = (hi - lo) * (pixels / axis.outputs)
    positions = lo * pixels + 0.5 * step - 0.5 + step * jnp.arange(axis.outputs, dtype=lo.dtype)
    if axis.padding == "symmetric":
        distance = jnp.mod(positions + 0.5, 2.0 * pixels)
        positions = jnp.where(distance > pixels, 2.0 * pixels - distance, distance) - 0.5
    elif axis.padding == "reflect":
        last = _at_least(1, pixels - 1)
        distance = jnp.mod(positions, 2.0 * last)
        positions = jnp.where(distance > last, 2.0 * last - distance, distance)
    radius = jnp.ones_like(lo)
    if antialias:
        reduction = jnp.abs(step)
        widest = _at_least(1.0, pixels / axis.outputs)  # that of a box as long as the image
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


def _taps(positions: jax.Array, radius: jax.Array, axis: Axis) -> tuple[jax.Array, jax.Array]:
    """The pixels under each output's triangle: indices and weights, both [taps, outputs].

    The weights sum to 1; with padding "constant" those of pixels beyond the image are 0, and the sum is less.
    """
    pixels, taps = number(axis.pixels, positions.dtype), number(axis.taps, positions.dtype)
    cut = axis.padding == "edge" and not axis.pair
    if cut:
        # Within half a pixel of the edge, what the triangle covers of the image is that edge's pixel and those inside.
        inside = (positions >= -0.5) & (positions <= pixels - 0.5)
        positions = jnp.where(inside, positions, jnp.clip(lax.stop_gradient(positions), -0.5, pixels - 0.5))
    else:
        # Far outside is as good as just outside, and fits an integer.
        positions = jnp.clip(positions, -1.0 - taps, pixels + taps)
    first = _first_pixel(positions - radius)
    index = first.astype(jnp.int32) + jnp.arange(axis.taps, dtype=jnp.int32)[:, None]
    pixels = number(axis.pixels, jnp.int32)
    there = ((index >= 0) & (index < pixels)).astype(positions.dtype)
    if axis.pair:
        right = positions - first
        weight = jnp.stack([1.0 - right, right])
    else:
        place = first + jnp.arange(axis.taps, dtype=positions.dtype)[:, None]
        weight = _triangle(positions - place, radius)
        weight = weight * there if cut else weight
        weight = weight / jnp.sum(weight, axis=0)
    if axis.padding == "constant":
        weight = weight * there
    elif axis.padding == "symmetric":
        index = jnp.where(index < 0, -1 - index, jnp.where(index >= pixels, 2 * pixels - 1 - index, index))
    elif axis.padding == "reflect":
        around = jnp.mod(index, 2 * _at_least(1, pixels - 1))
        index = jnp.minimum(around, 2 * (pixels - 1) - around)
    return jnp.clip(index, 0, pixels - 1), weight


def taps_of_boxes(positions: jax.Array, radius: jax.Array, axis: Axis) -> tuple[jax.Array, jax.Array]:
    """`_taps` for positions [B, K, outputs] and radii [B, K]: [B, K, taps, outputs]."""
    return jax.vmap(jax.vmap(partial(_taps, axis=axis)))(positions, radius)


def weight_derivatives(positions: jax.Array, radius: jax.Array, axis: Axis) -> Iterator[jax.Array]:
    """Of the taps' weights, by position (each output's depend on its own alone) and by radius."""
    ones, zeros = jnp.ones_like, jnp.zeros_like
    for direction in ((ones(positions), zeros(radius)), (zeros(positions), ones(radius))):
        yield jax.jvp(lambda p, r: taps_of_boxes(p, r, axis)[1], (positions, radius), direction)[1]
