"""The one convolution used everywhere: PyTorch's padding, flax's parameters, a fast formulation for each platform.

Images are `[B, H, W, C]`, kernels `[kh, kw, C_in / groups, C_out]` (HWIO). On TPU and GPU this is always
`lax.conv_general_dilated`. XLA's CPU back end runs most kinds of convolution, or their gradients, several times slower
than the same sums written otherwise: see `cpu`. The platform is chosen when the program is lowered, not when it is
traced, so one traced program can be exported for several platforms.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from c2f_jax.layers import cpu
from c2f_jax.layers.cpu import Padding, Pair, native_conv2d

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal with variance 2 / (kh * kw * C_out): keeps the gradient's variance through relu.

References: He et al., Delving Deep into Rectifiers, arXiv:1502.01852; torchvision's ResNet (`mode="fan_out"`).
"""

PATCH_PRODUCT_MAX_WIDTH = 3 * 3 * 16
"""Largest kh * kw * C_in for which CPU gathers patches and multiplies; beyond it the copies cost more than they save.

Measured on 2 cores at batch 64, 3x3, forward and backward: 3 channels 1.3 to 3 times faster, 16 channels 1.6 times,
32 channels half as fast. A 7x7 stem on RGB (147) is slower too.
"""

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


def conv2d(x: jax.Array, kernel: jax.Array, *, strides: Pair, padding: Padding, groups: int = 1) -> jax.Array:
    """Cross-correlates images with a kernel; zeros outside the image.

    Differentiable in reverse mode, to any order.

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
    if groups == 1:
        as_product = kh == kw == 1 or kh * kw * in_features <= PATCH_PRODUCT_MAX_WIDTH
        on_cpu = cpu.patch_product if as_product else cpu.dense
    elif in_features == 1 and groups == features:
        on_cpu = cpu.depthwise
    else:
        return native_conv2d(x, kernel, strides, padding, groups)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: on_cpu(x, kernel, strides, padding),
        default=lambda x, kernel: native_conv2d(x, kernel, strides, padding, groups),
    )


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, **settings: Any) -> Any:
    """`lax.dot_general` for `flax.linen.Dense`: rows x [..., C_in] by a kernel [C_in, C_out]."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=cpu.product,
        default=lambda x, kernel: lax.dot_general(x, kernel, dimension_numbers, precision=precision, **settings),
    )


def scaled(x: jax.Array, factors: jax.Array) -> jax.Array:
    """x [..., C] times a factor per channel [C], of x's dtype. Reverse mode only."""
    return lax.platform_dependent(x, factors.astype(x.dtype), cpu=cpu.scaled, default=jnp.multiply)


def max_pool(x: jax.Array, window: Pair, *, strides: Pair, padding: Padding) -> jax.Array:
    """The largest value of each window [B, H, W, C]; what lies beyond the image never is. Reverse mode only."""
    return lax.platform_dependent(
        x,
        cpu=lambda x: cpu.max_pool(x, window, strides, padding),
        default=lambda x: nn.max_pool(x, window, strides=strides, padding=padding),
    )


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
