"""The one convolution used everywhere: PyTorch's padding, flax's parameters, a fast formulation for each platform.

Images are `[B, H, W, C]`, kernels `[kh, kw, C_in / groups, C_out]` (HWIO). On TPU and GPU this is always
`lax.conv_general_dilated`. On CPU, XLA runs three kinds of convolution several times slower than the same sum written
otherwise. Two are written as one matrix product: 1x1 kernels, and kernels that see very few numbers per output pixel
(a 3x3 stem on RGB). The third, depthwise, is written as one multiply-add of the shifted image for each pixel of the
kernel. The platform is chosen when the program is lowered, not when it is traced, so one traced program can be exported
for several platforms.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal with variance 2 / (kh * kw * C_out): keeps the gradient's variance through relu.

References: He et al., Delving Deep into Rectifiers, arXiv:1502.01852; torchvision's ResNet (`mode="fan_out"`).
"""

PATCH_PRODUCT_MAX_WIDTH = 3 * 3 * 16
"""Largest kh * kw * C_in for which CPU gathers patches and multiplies; beyond it the copies cost more than they save.

Measured on 2 cores at batch 64, 3x3, forward and backward: 3 channels 1.3 to 3 times faster, 16 channels 1.6 times,
32 channels half as fast. A 7x7 stem on RGB (147) is slower too.
"""

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
PaddingLike = int | Sequence[int] | Sequence[Sequence[int]] | Literal["SAME"]


def _pair(value: int | Sequence[int], name: str) -> Pair:
    """`3` or `(3, 3)` as a pair (height, width)."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise ValueError(f"{name} must be an int or two ints (height, width), got {value!r}")
    return pair


def _padding(value: PaddingLike, size: Pair, kernel_size: Pair, strides: Pair) -> Padding:
    """`1`, `(1, 1)`, `((1, 1), (1, 1))` or `"SAME"` as ((top, bottom), (left, right))."""
    if value == "SAME":
        rows, columns = lax.padtype_to_pads(size, kernel_size, strides, "SAME")
        return rows, columns
    if isinstance(value, int):
        value = (value, value)
    if isinstance(value, str) or len(value) != 2:
        raise ValueError(f'padding must be "SAME", an int, or two ints or pairs (height, width), got {value!r}')
    return _pair(value[0], "padding"), _pair(value[1], "padding")


def _native(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _patch_product(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """The same sum as `_native` (one group) as a single product `[B*H*W, kh*kw*C_in] @ [kh*kw*C_in, C_out]`."""
    kh, kw, _, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    # How many rows and columns each tap spans, from the first pixel it reads to the last.
    rows = (x.shape[1] - kh) // strides[0] * strides[0] + 1
    columns = (x.shape[2] - kw) // strides[1] * strides[1] + 1
    taps = [x[:, i : i + rows : strides[0], j : j + columns : strides[1], :] for i in range(kh) for j in range(kw)]
    patches = jnp.concatenate(taps, axis=-1)
    batch_and_pixels, width = patches.shape[:-1], patches.shape[-1]
    # Two-dimensional operands, because XLA CPU has its fast path for those.
    product = patches.reshape(-1, width) @ kernel.reshape(width, features)
    return product.reshape(*batch_and_pixels, features)


def _shifted_sum(x: jax.Array, kernel: jax.Array, strides: Pair) -> jax.Array:
    """Depthwise, without padding: each of the kernel's pixels times the image as that pixel sees it, added up."""
    kh, kw = kernel.shape[:2]
    rows, columns = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    wide = jnp.promote_types(x.dtype, jnp.float32)
    # Otherwise XLA computes what x is made of (a batch norm, say) once more for each of the kernel's pixels, a tenth
    # slower in most places of EfficientNet-Lite0.
    x = lax.optimization_barrier(x)
    terms = [
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]].astype(wide) * kernel[i, j, 0].astype(wide)
        for i, j in itertools.product(range(kh), range(kw))
    ]
    return functools.reduce(jnp.add, terms).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """The same sum as `_native` with groups = C_in = C_out, kernel `[kh, kw, 1, C]`. Reverse mode only."""
    return _shifted_sum(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel, strides)


def _depthwise_fwd(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, strides, padding), (x, kernel)


def _depthwise_bwd(
    strides: Pair, padding: Padding, saved: tuple[jax.Array, jax.Array], out_bar: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    kh, kw, _, features = kernel.shape

    # By x: the cotangent, with zeros where strides left pixels out, seen by the kernel turned round.
    edges = []
    for axis in (0, 1):
        before = kernel.shape[axis] - 1 - padding[axis][0]
        spread = (out_bar.shape[axis + 1] - 1) * strides[axis] + 1
        edges.append((before, x.shape[axis + 1] + padding[axis][0] - spread, strides[axis] - 1))
    zero = jnp.zeros((), out_bar.dtype)
    x_bar = _shifted_sum(lax.pad(out_bar, zero, ((0, 0, 0), *edges, (0, 0, 0))), kernel[::-1, ::-1], (1, 1))

    # By the kernel: a loop over its pixels; XLA runs that many sums at once in one program several times slower.
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    size = (x.shape[0], padded.shape[1] - kh + 1, padded.shape[2] - kw + 1, features)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def pixel_bar(place: jax.Array) -> jax.Array:
        seen = lax.dynamic_slice(padded, (0, place // kw, place % kw, 0), size)[:, :: strides[0], :: strides[1]]
        return jnp.sum(seen.astype(wide) * out_bar.astype(wide), axis=(1, 2))

    # Over images only after the loop: where these lie on several devices, they communicate once.
    kernel_bar = jnp.sum(lax.map(pixel_bar, jnp.arange(kh * kw)), axis=1)
    return x_bar, kernel_bar.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def conv2d(x: jax.Array, kernel: jax.Array, *, strides: Pair, padding: Padding, groups: int = 1) -> jax.Array:
    """Cross-correlates images with a kernel; zeros outside the image.

    Differentiable in reverse mode; forward mode too unless it is depthwise (groups = C_in = C_out).

    Args:
      x: `[B, H, W, C_in]`.
      kernel: `[kh, kw, C_in / groups, C_out]`, of x's dtype.
      strides: (vertical, horizontal) step in pixels.
      padding: ((top, bottom), (left, right)) zeros in pixels.
      groups: channels are split into this many groups that do not see one another.

    Returns:
      `[B, (H + top + bottom - kh) // stride + 1, ..., C_out]`, of x's dtype.
    """
    kh, kw, in_features, features = kernel.shape
    if groups == 1 and (kh == kw == 1 or kh * kw * in_features <= PATCH_PRODUCT_MAX_WIDTH):
        return lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: _patch_product(x, kernel, strides, padding),
            default=lambda x, kernel: _native(x, kernel, strides, padding, groups),
        )
    if in_features == 1 and groups == features:
        return lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: _depthwise(x, kernel, strides, padding),
            default=lambda x, kernel: _native(x, kernel, strides, padding, groups),
        )
    return _native(x, kernel, strides, padding, groups)


class Conv(nn.Module):
    """A two-dimensional convolution: `[B, H, W, C_in]` to `[B, H', W', features]`.

    Parameters are named and laid out as in `flax.linen.Conv` (`kernel` HWIO, `bias`), kept in float32.

    Attributes:
      features: output channels.
      kernel_size: int or (height, width).
      strides: int or (vertical, horizontal).
      padding: zeros on each side, as in PyTorch: int, (height, width), or ((top, bottom), (left, right)); or "SAME",
        TensorFlow's rule: what makes the output `ceil(H / stride)` high, the odd one below and to the right, so that at
        stride 2 it depends on whether H is even.
      groups: number of channel groups (`feature_group_count`); `groups=C_in` is a depthwise convolution.
      use_bias: whether to add a learned bias.
      dtype: compute dtype; None takes the dtype that image and kernel promote to.
      param_dtype: dtype of the parameters.
      kernel_init: initialiser of the kernel.

    Raises:
      ValueError: for an image that is not rank 4, or channels that `groups` does not divide.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: PaddingLike = 0
    groups: int = 1
    use_bias: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = he_normal_fan_out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4:
            raise ValueError(f"Conv takes images [B, H, W, C], got shape {x.shape}")
        in_features = x.shape[-1]
        if in_features % self.groups or self.features % self.groups:
            raise ValueError(
                f"groups must divide input and output channels, got {in_features} and {self.features} in {self.groups}"
            )
        kernel_size, strides = _pair(self.kernel_size, "kernel_size"), _pair(self.strides, "strides")
        padding = _padding(self.padding, (x.shape[1], x.shape[2]), kernel_size, strides)
        kernel_shape = (*kernel_size, in_features // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, kernel_shape, self.param_dtype)
        bias = (
            self.param("bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
            if self.use_bias
            else None
        )
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv2d(x, kernel, strides=strides, padding=padding, groups=self.groups)
        return y if bias is None else y + bias
