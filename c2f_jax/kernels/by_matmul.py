"""The crop by a matrix per axis: images [B, H, W, C] under triangles along both axes."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from c2f_jax.kernels.taps import Axis, taps_of_boxes, weight_derivatives


def matmul(images, y, y_radius, x, x_radius, axes, *, special):
    """As `_sample`, by two products; for hardware where products are cheap and gathers are not.

    A product meets all pixels, and 0 times what is not finite is NaN: such pixels are left to `special`.
    """
    rows = _matrix(*taps_of_boxes(y, y_radius, axes[0]), axes[0])
    columns = _matrix(*taps_of_boxes(x, x_radius, axes[1]), axes[1])
    # Float32 products on TPU would be made of bfloat16 passes otherwise.
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    finite = _finite_part(images) if floating else images
    out = product("bkih,bhwc->bkiwc", rows, finite.astype(rows.dtype))
    out = product("bkjw,bkiwc->bkijc", columns, out)
    if floating:
        images = lax.stop_gradient(images)
        rest = jnp.where(jnp.isfinite(images), jnp.zeros_like(images), images)
        out += special(rest, y, y_radius, x, x_radius, axes)
    return out


def _matrix(index: jax.Array, weight: jax.Array, axis: Axis) -> jax.Array:
    """Taps [..., taps, outputs] as matrices [..., outputs, pixels]."""
    hit = index[..., None] == jnp.arange(axis.pixels, dtype=index.dtype)
    return jnp.sum(jnp.where(hit, weight[..., None], jnp.zeros((), weight.dtype)), axis=-3)


@jax.custom_jvp
def _finite_part(images):
    """0 in place of what is not finite, with the derivative of all."""
    return jnp.where(jnp.isfinite(images), images, jnp.zeros_like(images))


_finite_part.defjvps(lambda dot, out, images: dot)


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def special_pixels(images, y, y_radius, x, x_radius, axes):
    """As `_sample`, of images that are 0, infinite or NaN: products that count what is met, which are exact in bfloat16
    and so cost a sixth of those above."""
    taps = taps_of_boxes(y, y_radius, axes[0]), taps_of_boxes(x, x_radius, axes[1])
    counts = [(index, weight != 0) for index, weight in taps]
    unknown = jnp.isnan(images)
    up, down = _met((images > 0) | unknown, counts, axes), _met((images < 0) | unknown, counts, axes)
    inf = jnp.asarray(jnp.inf, y.dtype)
    return jnp.where(up & down, inf - inf, jnp.where(up, inf, jnp.where(down, -inf, jnp.zeros_like(inf))))


@partial(special_pixels.defjvp, symbolic_zeros=True)
def _special_jvp(axes, primals, tangents):
    """NaN for boxes that move where a tap that counts, or begins to, is not finite."""
    images, y, y_radius, x, x_radius = primals
    out = special_pixels(*primals, axes)
    moves = [None if type(dot) is SymbolicZero else dot for dot in tangents[1:]]
    if all(dot is None for dot in moves):
        return out, jnp.zeros_like(out)
    counts = []
    for axis, at in ((axes[0], (y, y_radius)), (axes[1], (x, x_radius))):
        index, weight = taps_of_boxes(*at, axis)
        counts.append((index, (weight != 0) | (next(weight_derivatives(*at, axis)) != 0)))
    axes_of = ((3, 4), (2, 3, 4), (2, 4), (2, 3, 4))  # what [B, K, h, w, C] has beside y, its radius, x and its radius
    moved = [jnp.expand_dims(dot, at) for dot, at in zip(moves, axes_of, strict=True) if dot is not None]
    nan = jnp.asarray(jnp.nan, out.dtype)
    return out, jnp.where(_met(images != 0, counts, axes), nan, jnp.zeros_like(nan)) * functools.reduce(jnp.add, moved)


def _met(pixels, counts, axes):
    """Which samples [B, K, h, w, C] meet one of those pixels [B, H, W, C] with a tap that counts."""
    rows, columns = (
        _matrix(index, hit.astype(jnp.bfloat16), axis) for (index, hit), axis in zip(counts, axes, strict=True)
    )
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    met = product("bkih,bhwc->bkiwc", rows, pixels.astype(jnp.bfloat16)) > 0
    return product("bkjw,bkiwc->bkijc", columns, met.astype(jnp.bfloat16)) > 0
