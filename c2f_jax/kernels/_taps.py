"""Where the outputs of a crop look, and with which weights: a few pixels ("taps") along each axis, by position.

Shapes below: boxes [B, K], outputs n, taps t. Nothing here depends on an image's values.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

At = tuple[jax.Array, ...]  # (positions [B, K, n] in pixels,), and the triangles' radius [B, K] where antialiased


class Axis(NamedTuple):
    """What is known of an axis before any box is."""

    pixels: Any  # int, or a symbolic dimension of `jax.export`
    outputs: int
    padding: str
    antialias: bool

    @property
    def taps(self) -> Any:
        """How many pixels the widest triangle covers: that of a box as long as the image."""
        if not self.antialias:
            return 2
        if isinstance(self.pixels, int):
            return math.ceil(2.0 * max(self.pixels / self.outputs, 1.0))
        return 2 - (-2 * self.pixels) // self.outputs

    def length(self, dtype: Any) -> Any:
        """`pixels` to compute with."""
        return self.pixels if isinstance(self.pixels, int) else jnp.asarray(self.pixels).astype(dtype)

    def rounding(self, dtype: Any) -> Any:
        """How far rounding alone can move a position, in pixels."""
        return 4.0 * float(jnp.finfo(dtype).eps) * self.length(dtype)


@jax.custom_jvp
def _snap(positions: jax.Array, rounding: jax.Array | float) -> jax.Array:
    """Positions within a rounding error of a pixel's centre are there.

    So whether a pixel has a weight, and which side a derivative is from, does not depend on how a compiler rounds.
    """
    whole = jnp.round(positions)
    return jnp.where(jnp.abs(positions - whole) <= rounding, whole, positions)


@_snap.defjvp
def _snap_jvp(primals, tangents):
    return _snap(*primals), tangents[0]


def places(lo: jax.Array, hi: jax.Array, axis: Axis) -> At:
    """From a box's two sides [B, K]; exact for the full box at equal size."""
    length = axis.length(lo.dtype)
    step = (hi - lo) * (length / axis.outputs)
    start = lo * length + 0.5 * step - 0.5
    positions = start[..., None] + step[..., None] * jnp.arange(axis.outputs, dtype=lo.dtype)
    if axis.padding == "symmetric":
        distance = jnp.mod(positions + 0.5, 2.0 * length)
        positions = jnp.where(distance > length, 2.0 * length - distance, distance) - 0.5
    elif axis.padding == "reflect":
        last = jnp.maximum(jnp.asarray(length - 1, lo.dtype), 1.0)
        distance = jnp.mod(positions, 2.0 * last)
        positions = jnp.where(distance > last, 2.0 * last - distance, distance)
    positions = _snap(positions, axis.rounding(lo.dtype))
    if not axis.antialias:
        return (positions,)
    reduction, widest = jnp.abs(step), jnp.maximum(jnp.asarray(length / axis.outputs, lo.dtype), 1.0)
    # Inclusive, so that the derivative at a reduction of just 1, and at the full image, is that of a real box.
    inside = (reduction >= 1.0) & (reduction <= widest)
    return positions, jnp.where(inside, reduction, jnp.clip(reduction, 1.0, widest))


@jax.custom_jvp
def _triangle(distance: jax.Array, radius: jax.Array, rounding: jax.Array | float) -> jax.Array:
    """max(0, 1 - |distance| / radius), with the derivatives from the right where it has a kink."""
    inside = jnp.abs(distance) < radius - rounding
    return jnp.where(inside, 1.0 - jnp.abs(distance) / radius, jnp.where(distance == distance, 0.0, distance))


@_triangle.defjvp
def _triangle_jvp(primals, tangents):
    (distance, radius, rounding), (distance_dot, radius_dot, _) = primals, tangents
    rising = (distance >= -radius - rounding) & (distance < -rounding)
    falling = (distance >= -rounding) & (distance < radius - rounding)
    slope = (rising.astype(distance.dtype) - falling.astype(distance.dtype)) / radius
    widening = jnp.where(rising | falling, jnp.abs(distance), 0.0) / jnp.square(radius)
    return _triangle(distance, radius, rounding), slope * distance_dot + widening * radius_dot


def _first_pixel(left: jax.Array) -> jax.Array:
    """floor(left) + 1: the first pixel under a triangle that begins at `left`, without derivative.

    As the maximum of two candidates, because XLA may compute an elementwise expression once for the indices and once
    more for the weights, and round it differently: a sample next to a pixel's centre would then read one pixel and
    weigh another. It does not compute a reduction twice.
    """
    left = lax.stop_gradient(left)[..., None]
    near = jnp.floor(left) + jnp.arange(2, dtype=left.dtype)
    return jnp.max(jnp.where(near <= left, near, -jnp.inf), axis=-1) + 1.0


def _raw(at: At, axis: Axis) -> tuple[jax.Array, jax.Array]:
    """The pixels under each output's triangle, those beyond the image too: indices and weights, [B, K, t, n]."""
    positions, dtype = at[0], at[0].dtype
    length, taps = axis.length(dtype), axis.taps
    beyond = axis.length(dtype) + taps if isinstance(taps, int) else 4.0 * length + 4.0
    if axis.antialias and axis.padding == "edge":
        # Within half a pixel of the edge, what the triangle covers of the image is that edge's pixel and those inside.
        inside = (positions >= -0.5) & (positions <= length - 0.5)
        positions = jnp.where(inside, positions, jnp.clip(lax.stop_gradient(positions), -0.5, length - 0.5))
    else:
        # Far outside is as good as just outside, and fits an integer.
        positions = jnp.clip(positions, -1.0 - taps if isinstance(taps, int) else -beyond, beyond)
    radius = at[1][..., None] if axis.antialias else jnp.ones((), dtype)
    left = positions - radius
    first = _first_pixel(_snap(left, axis.rounding(dtype)) if axis.antialias else left)
    first = jnp.maximum(first, -2.0 * beyond)  # where a box has a NaN: an integer all the same
    index = first.astype(jnp.int32)[..., None, :] + jnp.arange(taps, dtype=jnp.int32)[:, None]
    if not axis.antialias:
        right = positions - first
        return index, jnp.stack([1.0 - right, right], axis=-2)
    place = first[..., None, :] + jnp.arange(taps, dtype=dtype)[:, None]
    weight = _triangle(positions[..., None, :] - place, radius[..., None, :], axis.rounding(dtype))
    if axis.padding == "edge":
        weight = weight * _there(index, axis).astype(dtype)
    return index, weight / jnp.sum(weight, axis=-2, keepdims=True)


def _there(index: jax.Array, axis: Axis) -> jax.Array:
    return (index >= 0) & (index < axis.length(index.dtype))


def taps(at: At, axis: Axis) -> tuple[jax.Array, jax.Array]:
    """The pixels that each output reads, and their weights: [B, K, t, n], indices inside the image.

    The weights sum to 1; with padding "constant" those of pixels beyond the image are 0, and the sum is less.
    """
    index, weight = _raw(at, axis)
    last = axis.length(index.dtype) - 1
    if axis.padding == "constant":
        weight = weight * _there(index, axis).astype(weight.dtype)
    elif axis.padding == "symmetric":
        index = jnp.mod(index, 2 * last + 2)
        index = jnp.minimum(index, 2 * last + 1 - index)
    elif axis.padding == "reflect":
        index = jnp.mod(index, jnp.maximum(2 * last, 1))
        index = jnp.minimum(index, jnp.maximum(2 * last, 1) - index)
    return jnp.clip(index, 0, last), weight


def merged(index: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`taps` with all of a pixel's weight at its first tap, and none at others.

    Beyond the image several taps can read the same pixel, and their derivatives cancel.
    """
    count = index.shape[-2]
    same = index[..., :, None, :] == index[..., None, :, :]
    earlier = jnp.any(same & jnp.tril(jnp.ones((count, count), bool), -1)[..., None], axis=-2)
    total = jnp.sum(jnp.where(same, weight[..., None, :, :], 0.0), axis=-2)
    return index, jnp.where(earlier, 0.0, total)


def outside(at: At, axis: Axis) -> jax.Array:
    """The weight that lies beyond the image, [B, K, n]; exactly 0 where none does."""
    index, weight = _raw(at, axis)
    return jnp.sum(jnp.where(_there(index, axis), 0.0, weight), axis=-2)


def nearest(at: At, axis: Axis) -> tuple[jax.Array, jax.Array]:
    """The pixel that each position is in (between two, the later one) and whether it is in the image: [B, K, n]."""
    positions, dtype = at[0], at[0].dtype
    edge = _snap(jnp.clip(positions, -2.0, axis.length(dtype) + 1.0) + 0.5, axis.rounding(dtype))
    index = jnp.where(edge == edge, jnp.floor(edge), -2.0).astype(jnp.int32)
    there = _there(index, axis)
    return jnp.clip(index, 0, axis.length(index.dtype) - 1), there
