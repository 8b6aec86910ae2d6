"""The crop by gathering taps: images [B, H, W, C] under triangles along both axes."""

import functools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType

from c2f_jax.kernels.taps import Axis, number, taps_of_boxes, weight_derivatives

CACHE = 1 << 18  # bytes; from here on crops are made in turn. A core has 1 to 2 MiB of its own, for several arrays.
TURNS = jax.__version_info__ >= (0, 10)  # before, a loop that a rule for derivatives makes can not be transposed


LEAST = 2.0**-60  # in place of a weight of 0, which would make NaN of an infinity; it changes no other sum


def _aimed(index: jax.Array, counts: jax.Array, axis: Axis, images: jax.Array) -> jax.Array:
    """So that taps that do not count read what the first one reads, or nothing: what they meet may not be finite."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        return index
    # The first tap lies under the triangle, so it counts wherever one does; but for what lies beyond a constant image.
    instead = number(axis.pixels, index.dtype) if axis.padding == "constant" else index[..., :1, :]
    return jnp.where(counts, index, instead)


def _not_zero(weight: jax.Array, axis: Axis, images: jax.Array) -> jax.Array:
    return (
        jnp.maximum(weight, LEAST)
        if jnp.issubdtype(images.dtype, jnp.floating) and axis.padding != "constant"
        else weight
    )


def _along(axis: int, image: jax.Array, index: jax.Array, weight: jax.Array, padding: str) -> jax.Array:
    """The sum over taps [taps, outputs] along an axis of image [., ., C]; what lies beyond a "constant" one is 0."""
    how: dict[str, Any] = {"mode": "fill", "fill_value": 0} if padding == "constant" else {"mode": "clip"}
    terms = []
    for i, w in zip(index, weight, strict=True):
        read = jnp.take(image, i, axis=axis, **how)
        terms.append(jnp.expand_dims(w, (1 - axis, 2)) * read.astype(w.dtype))
    return lax.optimization_barrier(functools.reduce(jnp.add, terms))


_rows = partial(_along, 0)  # image [H, W, C], index and weight [taps, outputs] -> [outputs, W, C]
_columns = partial(_along, 1)  # rows [outputs, W, C], index and weight [taps, outputs'] -> [outputs, outputs', C]


def _sample(images, y, y_radius, x, x_radius, axes):
    """images [B, H, W, C] under the triangles at all pairs of y [B, K, h] and x [B, K, w] -> [B, K, h, w, C]."""
    taps = []
    for axis, at in ((axes[0], (y, y_radius)), (axes[1], (x, x_radius))):
        index, weight = taps_of_boxes(*at, axis)
        taps.append((_aimed(index, weight != 0, axis, images), _not_zero(weight, axis, images)))
    rows, columns = (partial(along, padding=axes[0].padding) for along in (_rows, _columns))
    return of_each_box(lambda image, at: columns(rows(image, *at[0]), *at[1]), images, taps)


def _sample_jvp(axes, primals, tangents, *, in_turn):
    images, y, y_radius, x, x_radius = primals
    images_dot, *dots = (None if type(t) is SymbolicZero else t for t in tangents)
    out = _sample(images, y, y_radius, x, x_radius, axes)
    if images_dot is None and all(dot is None for dot in dots):
        return out, jnp.zeros_like(out)
    taps, changes = [], []
    for axis, at, moves in ((axes[0], (y, y_radius), dots[:2]), (axes[1], (x, x_radius), dots[2:])):
        index, weight = taps_of_boxes(*at, axis)
        weights = [
            None if dot is None else change for dot, change in zip(moves, weight_derivatives(*at, axis), strict=True)
        ]
        counts = functools.reduce(jnp.logical_or, [w != 0 for w in weights if w is not None], weight != 0)
        # One index for all of them, so that each pixel is read once.
        taps.append((_aimed(index, counts, axis, images), _not_zero(weight, axis, images)))
        changes.append(weights)
    # Reverse mode computes again what it needs, box by box, rather than keep it for all of them.
    change = jax.checkpoint(lambda image, box: _change(axes[0].padding, *image, *box), prevent_cse=False)
    rows = axes[0].outputs * axes[1].pixels * images.shape[-1]  # numbers between the two passes of one crop
    in_turn = in_turn and TURNS and isinstance(rows, int) and rows * out.dtype.itemsize >= CACHE
    return out, of_each_box(change, (images, images_dot), (taps, changes, dots), in_turn=in_turn)


gather = jax.custom_jvp(_sample, nondiff_argnums=(5,))
gather.defjvp(partial(_sample_jvp, in_turn=False), symbolic_zeros=True)
gather_on_cpu = jax.custom_jvp(_sample, nondiff_argnums=(5,))
gather_on_cpu.defjvp(partial(_sample_jvp, in_turn=True), symbolic_zeros=True)


def of_each_box(function, images, boxes, *, in_turn=False):
    """function(image, box) for trees of arrays [B, ...] and [B, K, ...] -> [B, K, ...]."""
    by_image, by_box = jax.vmap, jax.vmap
    if in_turn:
        # Of the mesh around, not of the machine: a program does not depend on where it was traced.
        mesh = jax.sharding.get_abstract_mesh()
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        if AxisType.Explicit not in kinds.values():
            devices = math.prod(size for name, size in mesh.shape.items() if kinds[name] == AxisType.Auto)
            by_image, by_box = partial(_in_turn, devices=devices), partial(_in_turn, devices=1)
    if jax.tree.leaves(boxes)[0].shape[1] == 1:  # XLA copies arrays for axes of 1 that change places
        return jnp.expand_dims(by_image(function)(images, jax.tree.map(lambda a: jnp.squeeze(a, 1), boxes)), 1)
    return by_image(lambda image, boxes: by_box(lambda box: function(image, box))(boxes))(images, boxes)


def _in_turn(function, *, devices):
    """`jax.vmap`, one after the other: what lies between one step of `function` and the next then stays in cache.

    Where a batch lies on several devices, they take turns side by side, each with its own share.
    """

    def mapped(*arguments):
        count = jax.tree.leaves(arguments)[0].shape[0]
        groups = math.gcd(count, devices) if isinstance(count, int) else 1
        if groups == count:
            return jax.vmap(function)(*arguments)
        if groups == 1:  # apart, because XLA copies arrays for axes of 1 that change places
            return lax.map(lambda turn: function(*turn), arguments)
        split = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(groups, -1, *a.shape[1:]), 0, 1), arguments)
        out = lax.map(lambda turn: jax.vmap(function)(*turn), split)
        return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(count, *a.shape[2:]), out)

    return mapped


def _change(padding, image, image_dot, taps, changes, dots):
    """One crop's tangent [h, w, C], linear in `image_dot` and `dots`; None for what does not move.

    The derivatives by position and radius are samples too, with other weights at the same taps. Left to itself, reverse
    mode would scatter the cotangent over whole rows first, which costs several times as much.
    """
    along_rows, along_columns = (partial(along, padding=padding) for along in (_rows, _columns))
    rows, columns = taps
    rows_changes, columns_changes = changes
    terms = []
    if image_dot is not None:
        # Columns as rows of the transposed image: in reverse mode both add contiguous rows, which CPUs do fast.
        terms.append(jnp.swapaxes(along_rows(jnp.swapaxes(along_rows(image_dot, *rows), 0, 1), *columns), 0, 1))
    for dot, weight in zip(dots[:2], rows_changes, strict=True):
        if dot is not None:
            change = along_columns(along_rows(image, rows[0], weight), *columns)
            terms.append(change * (dot[:, None, None] if dot.ndim else dot))
    moving = [(dot, weight) for dot, weight in zip(dots[2:], columns_changes, strict=True) if dot is not None]
    if moving:
        between = along_rows(image, *rows)
        if len(moving) == 1:
            ((dot, weight),) = moving
            terms.append(along_columns(between, columns[0], weight) * (dot[:, None] if dot.ndim else dot))
        else:
            # Nothing is scattered here: each tap's weight takes its own sum of products, once for both derivatives.
            terms.append(along_columns(between, columns[0], sum(weight * dot for dot, weight in moving)))
    return functools.reduce(jnp.add, terms)
