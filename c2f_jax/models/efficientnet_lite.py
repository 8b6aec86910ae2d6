"""EfficientNet-Lite without its classifier: images `[B, H, W, 3]` to the last feature map `[B, H', W', 1280]`.

EfficientNet-B0 for small devices: ReLU6 for swish, no squeeze-and-excitation, and a stem and head of fixed width.
Padding is TensorFlow's SAME and batch norm's epsilon 1e-3, as the published weights were trained with; those weights
expect images `(uint8 - 127) / 128`.

Names follow timm's keys (`tf_efficientnet_lite0`) one by one:

| timm                                       | here                             |
|--------------------------------------------|----------------------------------|
| `conv_stem`, `bn1`, `conv_head`, `bn2`     | the same                         |
| `blocks.0.0.conv_dw` (separable)           | `blocks_0_0/conv_dw`             |
| `blocks.2.1.conv_pwl` (inverted residual)  | `blocks_2_1/conv_pwl`            |

References: Tan and Le, EfficientNet, arXiv:1905.11946; Sandler et al., MobileNetV2, arXiv:1801.04381 (the block);
tensorflow/tpu, models/official/efficientnet/lite.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2f_jax.layers.conv import Conv
from c2f_jax.layers.drop_path import DropPath, rising
from c2f_jax.layers.norm import BatchNorm

# Per stage: expansion, output channels, blocks, stride of the first block, kernel size (table 1 of the paper).
LITE0_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)

# The fan-out of one channel's filter is kh * kw; `fan_in` reads that off a depthwise kernel [kh, kw, 1, C].
depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DepthwiseSeparable(nn.Module):
    """Depthwise, then 1x1: `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), features]`."""

    features: int
    kernel_size: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _depthwise(x, self.kernel_size, self.stride, self.conv)
        y = nn.relu6(self.norm(name="bn1")(y))
        return self.norm(name="bn2")(self.conv(self.features, 1, name="conv_pw")(y))


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise, 1x1 down: `[B, H, W, C]` to `[B, H', W', features]`."""

    features: int
    kernel_size: int
    stride: int
    expansion: int
    drop_path: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(x.shape[-1] * self.expansion, 1, name="conv_pw")(x)
        y = nn.relu6(self.norm(name="bn1")(y))
        y = _depthwise(y, self.kernel_size, self.stride, self.conv)
        y = nn.relu6(self.norm(name="bn2")(y))
        y = self.norm(name="bn3")(self.conv(self.features, 1, name="conv_pwl")(y))
        if self.stride > 1 or x.shape[-1] != self.features:
            return y
        return x + DropPath(self.drop_path, name="drop_path")(y)


def _depthwise(x: jax.Array, kernel_size: int, stride: int, conv: Callable[..., nn.Module]) -> jax.Array:
    channels = x.shape[-1]
    return conv(channels, kernel_size, strides=stride, groups=channels, kernel_init=depthwise_init, name="conv_dw")(x)


def scaled_stages(width: float, depth: float) -> tuple[tuple[int, int, int, int, int], ...]:
    """Lite0's stages with `width` times as many channels (multiples of 8) and `depth` times as many blocks, rounded up.

    The first and the last stage keep their number of blocks, as the stem and the head keep their width.
    """
    last = len(LITE0_STAGES) - 1
    return tuple(
        (expansion, _to_eights(width * features), count if i in (0, last) else math.ceil(depth * count), stride, kernel)
        for i, (expansion, features, count, stride, kernel) in enumerate(LITE0_STAGES)
    )


def _to_eights(channels: float) -> int:
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest  # never more than a tenth less


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite as a feature extractor, without the dropout of its training.

    Attributes:
      width, depth: how much wider and deeper than Lite0 it is.
      drop_path: rate of stochastic depth in the last block; it rises from 0 in the first.
      remat: compute each block anew for the gradient, instead of keeping what is in it.
      output_stride: 32, or 16: the last block with stride 2 then runs at stride 1, with the same weights.
      dtype: compute dtype; parameters and batch statistics stay float32.
      axis_name: the mapped axis over which batch statistics are averaged under `pmap`; None under `jit`, where the
        batch is the global one already.
    """

    width: float = 1.0
    depth: float = 1.0
    drop_path: float = 0.0
    remat: bool = False
    output_stride: int = 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, 3]` (normalised floats) to feature maps `[B, H', W', 1280]` of `dtype`, before any pooling.

        Args:
          x: images.
          train: normalise by this batch's statistics and update the running ones (collection `batch_stats`);
            otherwise use the running ones.
        """
        if self.output_stride not in (16, 32):
            raise ValueError(f"output_stride must be 32 or 16, got {self.output_stride}")
        conv = functools.partial(Conv, padding="SAME", dtype=self.dtype)
        norm = functools.partial(
            BatchNorm, use_running_average=not train, epsilon=1e-3, dtype=self.dtype, axis_name=self.axis_name
        )
        x = nn.relu6(norm(name="bn1")(conv(32, 3, strides=2, name="conv_stem")(x)))
        stages, stride_so_far = scaled_stages(self.width, self.depth), 2
        rates = iter(rising(self.drop_path, sum(count for _, _, count, _, _ in stages)))
        again = nn.remat if self.remat else lambda kind: kind
        separable: Any = again(DepthwiseSeparable)
        inverted: Any = again(InvertedResidual)
        for stage, (expansion, features, count, stride, kernel_size) in enumerate(stages):
            if stride_so_far == self.output_stride:
                stride = 1
            stride_so_far *= stride
            for index in range(count):
                step, name, rate = stride if index == 0 else 1, f"blocks_{stage}_{index}", next(rates)
                if expansion == 1:
                    block: nn.Module = separable(features, kernel_size, step, conv, norm, name=name)
                else:
                    block = inverted(features, kernel_size, step, expansion, rate, conv, norm, name=name)
                x = block(x)
        return nn.relu6(norm(name="bn2")(conv(1280, 1, name="conv_head")(x)))
