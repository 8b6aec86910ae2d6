"""The crop's two formulations, gathering taps and multiplying by matrices, with one rule for their derivatives.

A pixel counts where its weight, of all taps that read it, is not 0: value and derivative each with weights of their
own. So a NaN elsewhere in an image stays there, by either formulation.

Shapes: images [B, H, W, C], boxes [B, K], indices and weights of one crop [taps, outputs].
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from c2f_jax.kernels import _taps

CACHE = 1 << 20  # bytes between two passes. A core has 1 to 2 MiB of cache of its own, for several arrays.


class Way(NamedTuple):
    """One formulation: how a crop's rows, columns and both are sampled."""

    rows: Callable[..., jax.Array]  # image [H, W, C], index, weight -> [outputs, W, C]
    columns: Callable[..., jax.Array]  # rows [outputs, W, C], index, weight -> [outputs, outputs', C]
    spread: Callable[..., jax.Array]  # image and taps of both -> [outputs, outputs', C]; for its transpose
    taps: Callable[..., tuple[jax.Array, jax.Array]]
    in_turn: bool  # a part of the rows after another, where that keeps them in cache


def sample(way: Way, images: jax.Array, y: _taps.At, x: _taps.At, axes: tuple[_taps.Axis, _taps.Axis]) -> jax.Array:
    """Images under the triangles at all pairs of y and x -> [B, K, h, w, C] in the positions' dtype."""
    return _sample(images, y, x, way, axes)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _sample(images, y, x, way, axes):
    def one(image, at):
        rows, columns = at
        return way.columns(way.rows(image, *rows), *columns)

    return _of_each_box(one, images, (way.taps(y, axes[0]), way.taps(x, axes[1])))


def _sample_jvp(way, axes, primals, tangents):
    images, *at = primals
    images_dot, *dots = jax.tree.map(lambda t: None if type(t) is SymbolicZero else t, tangents)
    if images_dot is not None and images_dot.dtype == jax.dtypes.float0:
        images_dot = None
    out = _sample(images, *at, way, axes)
    taps = [way.taps(*pair) for pair in zip(at, axes, strict=True)]
    terms = []
    if images_dot is not None:
        # Reverse mode computes the weights again rather than keep them.
        spread = jax.checkpoint(lambda image, taps: way.spread(image, *taps), prevent_cse=False)
        terms.append(_of_each_box(spread, images_dot, taps))
    moving: list[Any] = [
        [(dot, change) for dot, change in zip(dots[i], _weight_derivatives(way, at[i], axis), strict=True)]
        for i, axis in enumerate(axes)
    ]
    moving = [[(dot, change) for dot, change in axis if dot is not None] for axis in moving]
    if any(moving):
        rows = _rows_at_a_time(way, images, at[0][0], axes)
        terms.append(_moved(way, images, taps, moving[0], moving[1], rows))
    return out, functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(out)


_sample.defjvp(_sample_jvp, symbolic_zeros=True)


def _weight_derivatives(way, at, axis):
    """Of the taps' weights, by position (each output's depend on its own alone) and by radius."""
    for i in range(len(at)):
        direction = tuple(jnp.ones_like(a) if i == j else jnp.zeros_like(a) for j, a in enumerate(at))
        yield jax.jvp(lambda *at: way.taps(at, axis)[1], at, direction)[1]


def _of_each_box(function, images, boxes):
    """function(image, box) for images [B, ...] and trees of arrays [B, K, ...] -> [B, K, ...]."""
    return jax.vmap(lambda image, boxes: jax.vmap(lambda box: function(image, box))(boxes))(images, boxes)


# --- The tangent of boxes that move. ---


def _rows_at_a_time(way, images, y, axes):
    """How many output rows of all crops fit into the cache between two passes; all of them where that is not known."""
    _, _, columns, channels = images.shape
    outputs = axes[0].outputs
    if not way.in_turn or not isinstance(columns, int):
        return outputs
    crops = [count for count in y.shape[:2] if isinstance(count, int)]
    row = functools.reduce(int.__mul__, crops, columns * channels * y.dtype.itemsize)
    most = max(CACHE // max(row, 1), 1)
    if most >= outputs:
        return outputs
    return next((rows for rows in range(most, most // 2, -1) if outputs % rows == 0), most)


def _moved(way, images, taps, y_moves, x_moves, rows):
    """Tangents [B, K, h, w, C]; moves are pairs of a tangent ([B, K, n] or [B, K]) and the weights' derivative."""
    # Reverse mode computes again what it needs, rather than keep it.
    change = jax.checkpoint(partial(_change, way), prevent_cse=False)

    dots = [[dot for dot, _ in moves] for moves in (y_moves, x_moves)]
    fixed = images, taps, [[change for _, change in moves] for moves in (y_moves, x_moves)]

    def part(choose, fixed, dots):
        """The tangent of some of the output rows; a radius belongs to all of them."""
        images, ((index, weight), x_taps), (y_changes, x_changes) = fixed
        y_dots = [choose(dot) if dot.ndim == 3 else dot for dot in dots[0]]
        moves = [(y_dots, [choose(a) for a in y_changes]), (dots[1], x_changes)]
        pairs = [list(zip(*of_axis, strict=True)) for of_axis in moves]
        return _of_each_box(change, images, ((choose(index), choose(weight)), x_taps, *pairs))

    outputs = taps[0][0].shape[-1]
    whole = outputs - outputs % rows
    if rows == outputs:
        return part(lambda a: a, fixed, dots)

    def turn(start):
        return part(lambda a: lax.dynamic_slice_in_dim(a, start, rows, axis=-1), fixed, dots)

    turns = lax.map(turn, jnp.arange(0, whole, rows))  # [turns, B, K, rows, w, C]
    out = jnp.moveaxis(turns, 0, 2)
    out = out.reshape(*out.shape[:2], whole, *out.shape[4:])
    if whole == outputs:
        return out
    return jnp.concatenate([out, part(lambda a: a[..., whole:], fixed, dots)], axis=2)


def _change(way, image, box):
    """One crop's tangent [h, w, C].

    The derivatives by position and radius are samples too, with other weights at the same taps. Left to itself, reverse
    mode would scatter the cotangent over whole rows first, which costs several times as much.
    """
    (rows_index, rows_weight), (columns_index, columns_weight), y_moves, x_moves = box
    terms = []
    for dot, weight in y_moves:
        change = way.columns(way.rows(image, rows_index, weight), columns_index, columns_weight)
        terms.append(change * (dot[:, None, None] if dot.ndim else dot))
    if x_moves:
        rows = way.rows(image, rows_index, rows_weight)
        for dot, weight in x_moves:
            terms.append(way.columns(rows, columns_index, weight) * (dot[:, None] if dot.ndim else dot))
    return functools.reduce(jnp.add, terms)


# --- What both are made of. ---


def linear(plain, safe, transpose, image, shape, weights):
    """safe(image) of that shape, linear to JAX: `transpose` is its transpose, `plain` has its other derivatives.

    `plain` is the same function without the care for what is not finite, which JAX can not see to be linear, or whose
    derivative in a weight of 0 would be lost. out = safe(image) solves the triangular system (u, v - plain(u)) =
    (image, 0) for v = out: a solver is the one linear operation for which JAX takes code for value and transpose.
    """

    # 1, but a function of all weights: where one of them moves, JAX asks that the whole system does.
    one = jnp.where(False, sum(weight[0, 0] for weight in weights), 1.0)

    def system(unknown):
        return one * unknown[0], one * unknown[1] - plain(unknown[0])

    def solve(_, known):
        return known[0], known[1] + safe(known[0])

    def transpose_solve(_, known):
        return known[0] + transpose(known[1]), known[1]

    # Zeros, but linear in the image too: JAX transposes a solver in all that it solves for.
    zeros = jnp.where(False, jnp.broadcast_to(image[:1, :1], shape), 0.0)
    same, out = lax.custom_linear_solve(system, (image, zeros), solve, transpose_solve)
    # Before jax 0.10 each part of the solution has to have a cotangent.
    return out + jnp.where(False, jnp.broadcast_to(same[:1, :1], shape), 0.0)


@jax.custom_jvp
def times(weight: jax.Array, pixels: jax.Array) -> jax.Array:
    """weight * pixels, and 0 where the weight is, whatever the pixel; the derivative in the weight is the pixel."""
    return jnp.where(weight != 0, weight * pixels, 0.0)


@times.defjvp
def _times_jvp(primals, tangents):
    (weight, pixels), (weight_dot, pixels_dot) = primals, tangents
    return times(weight, pixels), weight_dot * pixels + times(weight, pixels_dot)


# --- By gathering taps. ---


def _gathered(image, index, weight, *, axis, product=times):
    """The taps' weighted sum along an axis (0 or 1) of [H, W, C]."""
    along = (slice(None), None, None) if axis == 0 else (None, slice(None), None)
    terms = []
    for i, w in zip(index, weight, strict=True):
        terms.append(product(w[along], jnp.take(image, i, axis=axis, mode="clip").astype(w.dtype)))
    return lax.optimization_barrier(functools.reduce(jnp.add, terms))


def _spread_by_rows(image, rows, columns):
    def spread(product, image):
        # Columns as rows of the transposed image: in reverse mode both add contiguous rows, which CPUs do fast.
        out = jnp.swapaxes(_gathered(image, *rows, axis=0, product=product), 0, 1)
        return jnp.swapaxes(_gathered(out, *columns, axis=0, product=product), 0, 1)

    safe, plain = partial(spread, times), partial(spread, jnp.multiply)

    def transpose(cotangent):
        return jax.linear_transpose(safe, image)(cotangent)[0]

    image = image.astype(rows[1].dtype)
    shape = (rows[0].shape[1], columns[0].shape[1], image.shape[2])
    return linear(plain, safe, transpose, image, shape, (rows[1], columns[1]))


def _merged_taps(at, axis):
    index, weight = _taps.taps(at, axis)
    return (
        (index, weight)
        if axis.padding == "constant" or (axis.padding == "edge" and axis.antialias)
        else (_taps.merged(index, weight))
    )


GATHER = Way(partial(_gathered, axis=0), partial(_gathered, axis=1), _spread_by_rows, _merged_taps, in_turn=False)
# Before jax 0.10 a loop is not transposed in what it closes over, in the order that this one does.
GATHER_ON_CPU = GATHER._replace(in_turn=jax.__version_info__ >= (0, 10))


# --- By a matrix per axis; for hardware where products are cheap and gathers are not. ---


def _dense_taps(at, axis):
    """Taps as they come, and their number: every row of a matrix collects what belongs to a pixel."""
    index, weight = _taps.taps(at, axis)
    hit = index[..., None] == jnp.arange(axis.pixels, dtype=index.dtype)
    return index, jnp.sum(jnp.where(hit, weight[..., None], 0.0), axis=-3)


def _dot(matrix, values):
    # Float32 products on TPU would be made of bfloat16 passes otherwise.
    return jnp.tensordot(matrix, values, 1, precision=lax.Precision.HIGHEST)


def _product(matrix, values):
    """matrix [n, N] times values [N, ...], where 0 times NaN or infinity is 0.

    What is not finite is counted apart: by sums of ones, exact in the fastest product that there is.
    """
    total = _dot(matrix, jnp.where(jnp.isfinite(values), values, 0.0))
    nan = jnp.isnan(values)
    up, down = (((values == sign * jnp.inf) | nan).astype(values.dtype) for sign in (1, -1))
    signs = jnp.concatenate([matrix > 0, matrix < 0], axis=1).astype(values.dtype)
    to_plus, to_minus = (jnp.tensordot(signs, jnp.concatenate(of, axis=0), 1) for of in ((up, down), (down, up)))
    return total + jnp.where(to_plus > 0, jnp.inf, 0.0) - jnp.where(to_minus > 0, jnp.inf, 0.0)


def _rows_by_product(image, _, matrix, *, product=_product):
    if not jnp.issubdtype(image.dtype, jnp.floating):
        product = _dot  # integers are finite
    return product(matrix, image.astype(matrix.dtype))


def _columns_by_product(rows, _, matrix, *, product=_product):
    return jnp.swapaxes(product(matrix, jnp.swapaxes(rows, 0, 1)), 0, 1)


def _spread_by_product(image, rows, columns):
    (_, rows), (_, columns) = rows, columns

    def spread(product, rows, columns, image):
        return _columns_by_product(product(rows, image), None, columns, product=product)

    def transpose(cotangent):
        # Columns first, as the transpose of gathering has it: a box that is not finite makes weights that are not.
        return _product(rows.T, _columns_by_product(cotangent, None, columns.T))

    image = image.astype(rows.dtype)
    plain, safe = partial(spread, _dot, rows, columns), partial(spread, _product, rows, columns)
    shape = (rows.shape[0], columns.shape[0], image.shape[2])
    return linear(plain, safe, transpose, image, shape, (rows, columns))


MATMUL = Way(_rows_by_product, _columns_by_product, _spread_by_product, _dense_taps, in_turn=False)
