"""ConvNeXt, v1 and v2, without its classifier: images `[B, H, W, 3]` to the last feature map `[B, H', W', N]`.

The map is what timm's `forward_features` gives. The layer norm that published classifiers have after the average over
the map (`head.norm`) is the classifier's.

Names follow timm's keys one by one: `stages.2.downsample.1` is `stages_2/downsample_1`, `stages.0.blocks.1.mlp.fc1` is
`stages_0/blocks_1/mlp/fc1`.

References: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545; Woo et al., ConvNeXt V2, arXiv:2301.00808.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2f_jax.layers.conv import Conv, scaled
from c2f_jax.layers.drop_path import DropPath, rising
from c2f_jax.layers.norm import LayerNorm

small_normal = nn.initializers.truncated_normal(0.02)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt v2's: `x + bias + weight * x * n / mean(n)` with n each channel's norm over the image. [B, H, W, C]

    The norm is that of float32 or wider; its square root has a finite gradient at zero.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        weight = self.param("weight", nn.initializers.zeros, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        squares = jnp.sum(wide * wide, axis=(1, 2), keepdims=True)
        some = squares > 0
        norm = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)
        share = norm / (jnp.mean(norm, axis=-1, keepdims=True) + self.epsilon)
        return (wide + bias + weight * (wide * share)).astype(x.dtype)


class Mlp(nn.Module):
    """Linear to four times the channels, GELU, in v2 the global response norm, linear back."""

    response_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        x = nn.Dense(4 * features, dtype=self.dtype, kernel_init=small_normal, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=False)
        if self.response_norm:
            x = GlobalResponseNorm(name="grn")(x)
        return nn.Dense(features, dtype=self.dtype, kernel_init=small_normal, name="fc2")(x)


class Block(nn.Module):
    """7x7 depthwise, layer norm, `Mlp`, in v1 a factor per channel, and the shortcut: `[B, H, W, C]` to the same."""

    version: int
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        conv = Conv(features, 7, padding=3, groups=features, use_bias=True, dtype=self.dtype, name="conv_dw")
        y = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(conv(x))
        y = Mlp(self.version == 2, self.dtype, name="mlp")(y)
        if self.version == 1:
            gamma = self.param("gamma", nn.initializers.constant(1e-6), (features,), jnp.float32)
            y = scaled(y, gamma)
        return x + DropPath(self.drop_path, name="drop_path")(y)


class Stage(nn.Module):
    """Blocks, and before them a layer norm and a 2x2 convolution of that stride (0: neither)."""

    features: int
    stride: int
    drop_path: Sequence[float]  # of each block
    block: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.stride:
            x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="downsample_0")(x)
            # At stride 1 the same convolution sees each pixel with those right of and below it, zeros at the edge.
            padding = ((0, 0), (0, 0)) if self.stride == 2 else ((0, 1), (0, 1))
            x = Conv(
                self.features, 2, strides=self.stride, padding=padding, use_bias=True, dtype=self.dtype,
                kernel_init=small_normal, name="downsample_1",
            )(x)  # fmt: skip
        for index, rate in enumerate(self.drop_path):
            x = self.block(drop_path=rate, name=f"blocks_{index}")(x)
        return x


class ConvNeXt(nn.Module):
    """ConvNeXt as a feature extractor. It has no batch norm: training and testing are the same, and `train` is ignored.

    Attributes:
      depths, widths: blocks and channels of each stage.
      version: 1, with a learned factor per channel, or 2, with the global response norm.
      drop_path: rate of stochastic depth in the last block; it rises from 0 in the first.
      remat: compute each block anew for the gradient, instead of keeping what is in it.
      output_stride: 32, or 16: the last 2x2 convolution then runs at stride 1, with the same weights.
      dtype: compute dtype; parameters stay float32.
      axis_name: as other backbones have it; of no use here.
    """

    depths: Sequence[int]
    widths: Sequence[int]
    version: int = 1
    drop_path: float = 0.0
    remat: bool = False
    output_stride: int = 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, 3]` (normalised floats) to feature maps `[B, H // 32, W // 32, N]` of `dtype`."""
        if self.output_stride not in (16, 32):
            raise ValueError(f"output_stride must be 32 or 16, got {self.output_stride}")
        x = Conv(
            self.widths[0], 4, strides=4, use_bias=True, dtype=self.dtype, kernel_init=small_normal, name="stem_0"
        )(x)
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="stem_1")(x)
        last, rates = len(self.depths) - 1, iter(rising(self.drop_path, sum(self.depths)))
        block = functools.partial(nn.remat(Block) if self.remat else Block, version=self.version, dtype=self.dtype)
        for index, (depth, features) in enumerate(zip(self.depths, self.widths, strict=True)):
            stride = 0 if index == 0 else 1 if index == last and self.output_stride == 16 else 2
            stage = Stage(
                features, stride, [next(rates) for _ in range(depth)], block, self.dtype, name=f"stages_{index}"
            )
            x = stage(x)
        return x
