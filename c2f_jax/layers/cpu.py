"""Convolutions and the max-pool as XLA's CPU back end runs them fast; chosen in `conv`, native everywhere else.

Each equals its native counterpart in value and gradient. Measured on two cores against XLA's own:

* 1x1, and kernels that see very few numbers per output pixel: one matrix product, 2 to 6 times as fast.
* Depthwise: a multiply-add of the shifted image for each pixel of the kernel, 20 to 60 times; its gradient by the
  kernel a reduction with many results, 4 to 6 times as fast as a sum for each; of kernels with more than 25 pixels tile
  by tile of the cotangent, 2.6 to 2.9 times as fast as that (0.75 on 7x7 maps), and 7 times in the step of ConvNeXt.
* Products and factors per channel of residual networks: gradients in a loop, which reads its cotangent from memory.
  XLA's fusion, which no optimisation barrier keeps back, would compute the sum of all that the blocks above have added
  once more in each of them: 1.1 of the 2.9 seconds of a ViT-S/16's step.
* Gradient by the image at strides above 1: image pixels fall into phases, each of them an ordinary convolution; XLA
  spreads the cotangent with zeros between and multiplies these.
* Dense, gradient by the kernel on large maps: a product per image and pixel of the kernel, 2 to 4 times; for a wide
  kernel on few channels (a 7x7 stem) a product per image and row of the kernel, 1.9 times.
* Max-pool: comparisons of shifted images in place of a scan over windows and a scatter.

All of it partitions over the batch; gradients by the kernel add up over images last, so that devices communicate once.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def native_conv2d(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, groups: int) -> jax.Array:
    """XLA's own convolution; arguments as in `conv.conv2d`."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _padded(x: jax.Array, padding: Padding, value: float = 0.0) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)


def _taps(x: jax.Array, kernel_size: Pair, strides: Pair) -> list[jax.Array]:
    """For each of the kernel's pixels, row by row, the image as that pixel sees it; x is padded already."""
    # How many rows and columns each tap spans, from the first pixel it reads to the last.
    rows, columns = (
        (side - size) // stride * stride + 1
        for side, size, stride in zip(x.shape[1:3], kernel_size, strides, strict=True)
    )
    return [
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]]
        for i, j in itertools.product(*map(range, kernel_size))
    ]


# --- The gradient by the image: each image pixel hears of the output pixels whose windows it lies in. ---


class _Phase(NamedTuple):
    """The image pixels that have one place in the grid of strides.

    `rows` and `columns` are the kernel's pixels that they are seen by, and `edges` what has to be added to (or taken
    from) the cotangent, so that these, turned round, run over it once.
    """

    rows: slice
    columns: slice
    kernel_size: Pair
    edges: Sequence[tuple[int, int, int]]


def _phases(
    kernel_size: Sequence[int], strides: Pair, padding: Padding, size: Sequence[int], out_size: Sequence[int]
) -> Iterator[_Phase]:
    """All of them, row by row."""
    for place in itertools.product(*map(range, strides)):
        seen_by = [len(range(start, k, stride)) for start, k, stride in zip(place, kernel_size, strides, strict=True)]
        edges = []
        for axis in (0, 1):
            first, last = _span(strides[axis], padding[axis][0], size[axis])
            edges.append((seen_by[axis] - 1 - first, last - out_size[axis], 0))
        rows, columns = (slice(start, None, stride) for start, stride in zip(place, strides, strict=True))
        yield _Phase(rows, columns, (seen_by[0], seen_by[1]), ((0, 0, 0), *edges, (0, 0, 0)))


def _span(stride: int, before: int, size: int) -> Pair:
    """Which multiples of the stride the image's pixels lie in: the first, and one after the last."""
    return before // stride, -(-(before + size) // stride)


def _interleave(parts: Sequence[jax.Array | None], strides: Pair, padding: Padding, size: Sequence[int]) -> jax.Array:
    """The image [B, *size, C] whose phases these are, row by row; None where no window sees a phase."""
    some = next(part for part in parts if part is not None)
    phases = [jnp.zeros_like(some) if part is None else part for part in parts]
    columns = [jnp.stack(phases[i : i + strides[1]], axis=3) for i in range(0, len(phases), strides[1])]
    image = jnp.stack(columns, axis=2)
    batch, rows, _, columns_of_phase, _, channels = image.shape
    image = image.reshape(batch, rows * strides[0], columns_of_phase * strides[1], channels)
    top, left = (padding[axis][0] % strides[axis] for axis in (0, 1))
    return image[:, top : top + size[0], left : left + size[1]]


def _image_gradient(
    correlate: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    out_bar: jax.Array,
    strides: Pair,
    padding: Padding,
) -> jax.Array:
    """`correlate`: (cotangent with its edges, part of the kernel turned round) -> a phase; no padding, no strides."""
    size, out_size, zero = x.shape[1:3], out_bar.shape[1:3], jnp.zeros((), out_bar.dtype)
    parts: list[jax.Array | None] = []
    for phase in _phases(kernel.shape[:2], strides, padding, size, out_size):
        if 0 in phase.kernel_size:
            parts.append(None)
            continue
        part = kernel[phase.rows, phase.columns]
        parts.append(correlate(lax.pad(out_bar, zero, phase.edges), part[::-1, ::-1]))
    return _interleave(parts, strides, padding, size)


# --- One product. ---


def patch_product(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """The same sum as `native_conv2d` (one group) as a single product `[B*H*W, kh*kw*C_in] @ [kh*kw*C_in, C_out]`."""
    kh, kw, _, features = kernel.shape
    patches = jnp.concatenate(_taps(_padded(x, padding), (kh, kw), strides), axis=-1)
    batch_and_pixels, width = patches.shape[:-1], patches.shape[-1]
    # Two-dimensional operands, because XLA CPU has its fast path for those.
    product = patches.reshape(-1, width) @ kernel.reshape(width, features)
    return product.reshape(*batch_and_pixels, features)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, [..., C_in] by [C_in, C_out], with a gradient of our own. Reverse mode only."""
    return x @ kernel


def _product_fwd(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_bwd(saved, out_bar):
    x, kernel = saved
    channels, features = kernel.shape
    rows, bar = x.reshape(-1, channels), out_bar.reshape(-1, features)
    parts = 2 if features % 2 == 0 else 1

    # In a loop, because what a loop reads is in memory. A product turns the cotangent round, and XLA CPU computes what
    # that is made of in the same go: in a residual network the sum of all that blocks above have added, block by block.
    def columns(part: jax.Array) -> jax.Array:
        shown = lax.dynamic_slice_in_dim(bar, part * (features // parts), features // parts, axis=1)
        return jnp.einsum("rf,rc->fc", shown, rows)

    turned = lax.map(columns, jnp.arange(parts)).reshape(features, channels)
    return out_bar @ kernel.T, turned.T


product.defvjp(_product_fwd, _product_bwd)


@jax.custom_vjp
def scaled(x: jax.Array, factors: jax.Array) -> jax.Array:
    """x [..., C] times a factor per channel [C] of its dtype, with a gradient of our own. Reverse mode only."""
    return x * factors


def _scaled_fwd(x, factors):
    return scaled(x, factors), (x, factors)


def _scaled_bwd(saved, out_bar):
    x, factors = saved
    (channels,) = factors.shape
    parts = 2 if channels % 2 == 0 else 1

    def sums(part: jax.Array) -> jax.Array:  # in a loop for the same reason
        shown, bar = (
            lax.dynamic_slice_in_dim(value, part * (channels // parts), channels // parts, axis=-1)
            for value in (x, out_bar)
        )
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.sum(shown.astype(wide) * bar.astype(wide), axis=range(x.ndim - 1))

    return out_bar * factors, lax.map(sums, jnp.arange(parts)).reshape(channels).astype(factors.dtype)


scaled.defvjp(_scaled_fwd, _scaled_bwd)


# --- Depthwise. ---


def _shifted_sum(x: jax.Array, kernel: jax.Array, strides: Pair) -> jax.Array:
    """Depthwise, without padding: each of the kernel's pixels times the image as that pixel sees it, added up."""
    kh, kw, _, features = kernel.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    # Otherwise XLA computes what x is made of (a batch norm, say) once more for each of the kernel's pixels, a tenth
    # slower in most places of EfficientNet-Lite0.
    x = lax.optimization_barrier(x)
    weights = kernel.reshape(-1, features).astype(wide)
    terms = [image.astype(wide) * weight for image, weight in zip(_taps(x, (kh, kw), strides), weights, strict=True)]
    return functools.reduce(jnp.add, terms).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """The same sum as `native_conv2d` with groups = C_in = C_out, kernel `[kh, kw, 1, C]`. Reverse mode only."""
    return _shifted_sum(_padded(x, padding), kernel, strides)


def _sums(images: Sequence[jax.Array]) -> jax.Array:
    """The channels' sums over images, rows and columns: k times [B, H, W, C] -> [k, C]."""
    zeros = [jnp.zeros((), image.dtype) for image in images]
    sums = lax.reduce(images, zeros, lambda a, b: [u + v for u, v in zip(a, b, strict=True)], (1, 2))
    return jnp.sum(jnp.stack(lax.optimization_barrier(sums)), axis=1)


def _depthwise_fwd(x, kernel, strides, padding):
    return depthwise(x, kernel, strides, padding), (x, kernel)


def _depthwise_bwd(strides, padding, saved, out_bar):
    x, kernel = saved
    correlate = functools.partial(_shifted_sum, strides=(1, 1))
    x_bar = _image_gradient(correlate, x, kernel, out_bar, strides, padding)

    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded, out_bar = lax.optimization_barrier((_padded(x, padding).astype(wide), out_bar.astype(wide)))
    many = kernel.shape[0] * kernel.shape[1] > 25
    by = _depthwise_kernel_gradient_by_tiles if many else _depthwise_kernel_gradient_by_taps
    return x_bar, by(padded, out_bar, kernel.shape[:2], strides).reshape(kernel.shape).astype(kernel.dtype)


def _depthwise_kernel_gradient_by_taps(padded, out_bar, kernel_size, strides):
    # One reduction reads image and cotangent once for all of the kernel's pixels.
    # It runs over rows and columns alone, because XLA CPU spreads over cores and vectors what stays.
    return _sums([image * out_bar for image in _taps(padded, kernel_size, strides)])


def _depthwise_kernel_gradient_by_tiles(padded, out_bar, kernel_size, strides):
    # Of many pixels such a reduction is slow, and XLA CPU computes what image and cotangent are made of again for each.
    # The other way round: for each pixel of a tile of the cotangent, that pixel times the window it looks through,
    # added up. What a loop reads, it reads from memory.
    batch, *size, channels = out_bar.shape
    counts = [max(2, -(-side // 7)) for side in size]
    tile = [-(-side // count) for side, count in zip(size, counts, strict=True)]
    whole = [side * count for side, count in zip(tile, counts, strict=True)]
    seen = [(side - 1) * stride + k for side, stride, k in zip(whole, strides, kernel_size, strict=True)]
    out_bar = _padded(out_bar, ((0, whole[0] - size[0]), (0, whole[1] - size[1])))
    padded = _padded(padded, ((0, max(0, seen[0] - padded.shape[1])), (0, max(0, seen[1] - padded.shape[2]))))
    windows = [(side - 1) * stride + k for side, stride, k in zip(tile, strides, kernel_size, strict=True)]

    def add_tile(sums: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        row, column = number // counts[1] * tile[0], number % counts[1] * tile[1]
        bar = lax.dynamic_slice(out_bar, (0, row, column, 0), (batch, *tile, channels))
        place = (0, row * strides[0], column * strides[1], 0)
        image = lax.dynamic_slice(padded, place, (batch, *windows, channels))
        for i, j in itertools.product(*map(range, tile)):
            top, left = i * strides[0], j * strides[1]
            window = image[:, top : top + kernel_size[0], left : left + kernel_size[1]]
            sums = sums + window * bar[:, i : i + 1, j : j + 1]
        return sums, None

    zeros = jnp.zeros((batch, *kernel_size, channels), out_bar.dtype)
    sums, _ = lax.scan(add_tile, zeros, jnp.arange(counts[0] * counts[1]))
    return jnp.sum(sums, axis=0)


depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


# --- Dense. ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """`native_conv2d` (one group) with gradients of our own. Reverse mode only."""
    return native_conv2d(x, kernel, strides, padding, 1)


def _dense_fwd(x, kernel, strides, padding):
    return dense(x, kernel, strides, padding), (x, kernel)


def _dense_bwd(strides, padding, saved, out_bar):
    x, kernel = saved

    def correlate(shown: jax.Array, part: jax.Array) -> jax.Array:
        part = jnp.swapaxes(part, 2, 3)
        if part.shape[:2] == (1, 1):
            return patch_product(shown, part, (1, 1), ((0, 0), (0, 0)))
        return native_conv2d(shown, part, (1, 1), ((0, 0), (0, 0)), 1)

    x_bar = _image_gradient(correlate, x, kernel, out_bar, strides, padding)
    pixels, (channels, features) = out_bar.shape[1] * out_bar.shape[2], kernel.shape[2:]
    if pixels >= 2 * max(channels, features) and features >= 16:
        by_products = _kernel_gradient_by_pixels if channels >= 16 else _kernel_gradient_by_rows
        return x_bar, by_products(x, kernel, out_bar, strides, padding)
    # On small maps what such products write would be more than what they read.
    _, by_kernel = jax.vjp(lambda kernel: native_conv2d(x, kernel, strides, padding, 1), kernel)
    return x_bar, *by_kernel(out_bar)


def _kernel_gradient_by_pixels(x, kernel, out_bar, strides, padding):
    (kh, kw, channels, features), (batch, rows, columns, _) = kernel.shape, out_bar.shape
    # Turned once for all products; in a product, XLA CPU would do it for each, and slower.
    turned = lax.optimization_barrier(jnp.swapaxes(out_bar.reshape(batch, rows * columns, features), 1, 2))
    padded = lax.optimization_barrier(_padded(x, padding))
    spans = ((rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1)

    def by_pixel(place: jax.Array) -> jax.Array:
        seen = lax.dynamic_slice(padded, (0, place // kw, place % kw, 0), (batch, *spans, channels))
        seen = seen[:, :: strides[0], :: strides[1]].reshape(batch, rows * columns, channels)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.einsum("bfp,bpc->bfc", turned, lax.optimization_barrier(seen), preferred_element_type=wide)

    # A loop, because side by side these products want all their copies of the image at once.
    kernel_bar = jnp.sum(lax.map(by_pixel, jnp.arange(kh * kw)), axis=1)
    return jnp.swapaxes(kernel_bar, 1, 2).reshape(kernel.shape).astype(kernel.dtype)


def _kernel_gradient_by_rows(x, kernel, out_bar, strides, padding):
    (kh, kw, channels, features), (batch, rows, columns, _) = kernel.shape, out_bar.shape
    padded = lax.optimization_barrier(_padded(x, padding))
    # For few channels a product per pixel of the kernel is narrow: what a row of the kernel sees is put side by side.
    wide = lax.optimization_barrier(jnp.concatenate(_taps(padded, (1, kw), (1, strides[1])), axis=-1))
    out_bar = out_bar.reshape(batch, rows * columns, features)

    def by_row(row: jax.Array) -> jax.Array:
        span = (batch, (rows - 1) * strides[0] + 1, columns, kw * channels)
        seen = lax.dynamic_slice(wide, (0, row, 0, 0), span)[:, :: strides[0]].reshape(batch, rows * columns, -1)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.einsum("bpc,bpf->bcf", lax.optimization_barrier(seen), out_bar, preferred_element_type=dtype)

    kernel_bar = jnp.sum(lax.map(by_row, jnp.arange(kh)), axis=1)
    return kernel_bar.reshape(kernel.shape).astype(kernel.dtype)


dense.defvjp(_dense_fwd, _dense_bwd)


# --- The max-pool. ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: Pair, strides: Pair, padding: Padding) -> jax.Array:
    """As `flax.linen.max_pool`; the gradient goes to the first of equal maxima, row by row. Reverse mode only."""
    return functools.reduce(jnp.maximum, _taps(_padded(x, padding, -jnp.inf), window, strides))


def _max_pool_fwd(x, window, strides, padding):
    taps = _taps(lax.optimization_barrier(_padded(x, padding, -jnp.inf)), window, strides)
    best, winner = taps[0], jnp.zeros(taps[0].shape, jnp.int8)
    for number, tap in enumerate(taps[1:], start=1):
        better = (tap > best) | jnp.isnan(tap)
        best, winner = jnp.where(better, tap, best), jnp.where(better, jnp.int8(number), winner)
    return best, (x, winner)


def _max_pool_bwd(window, strides, padding, saved, out_bar):
    x, winner = saved
    size, numbers = x.shape[1:3], [[i * window[1] + j for j in range(window[1])] for i in range(window[0])]
    parts: list[jax.Array | None] = []
    for phase in _phases(window, strides, padding, size, out_bar.shape[1:3]):
        if 0 in phase.kernel_size:
            parts.append(None)
            continue
        chosen = [row[phase.columns][::-1] for row in numbers[phase.rows][::-1]]
        shown = lax.pad(out_bar, jnp.zeros((), out_bar.dtype), phase.edges)
        by_number = lax.pad(winner, jnp.int8(-1), phase.edges)
        shown, by_number = lax.optimization_barrier((shown, by_number))
        seen = zip(_taps(shown, phase.kernel_size, (1, 1)), _taps(by_number, phase.kernel_size, (1, 1)), strict=True)
        terms = [
            jnp.where(who == number, bar, 0) for number, (bar, who) in zip(itertools.chain(*chosen), seen, strict=True)
        ]
        parts.append(functools.reduce(jnp.add, terms))
    return (_interleave(parts, strides, padding, size),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
