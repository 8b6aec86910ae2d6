"""ResNet and ResNeXt without their classifier: images `[B, H, W, 3]` to the last feature map `[B, H', W', N]`.

Strides and padding are torchvision's, so converted weights give torchvision's features: zeros on both sides of every
convolution (3x3 pads 1, the 7x7 stem pads 3), a 3x3 stride-2 max-pool padded by 1, and the stride of a bottleneck in
its 3x3 ("v1.5"). 'SAME' padding, which pads only below and to the right when the stride is 2, would shift every map.

Names follow torchvision's keys one by one:

| torchvision               | here                                           |
|---------------------------|------------------------------------------------|
| `conv1`, `bn1`            | `conv1`, `bn1`                                 |
| `layer2.0.conv1`          | `layer2_0/conv1`                               |
| `layer2.0.bn3`            | `layer2_0/bn3`                                 |
| `layer2.0.downsample.0`   | `layer2_0/downsample_conv`                     |
| `layer2.0.downsample.1`   | `layer2_0/downsample_bn`                       |

References: He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385; Xie et al., Aggregated Residual
Transformations, arXiv:1611.05431 (ResNeXt); torchvision.models.resnet.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2f_jax.layers.conv import Conv, max_pool
from c2f_jax.layers.norm import BatchNorm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), width]`."""

    width: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    groups: int = 1  # of the 3x3 convolutions; a basic block has no other number
    width_per_group: int = 64

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.width, 3, strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.width, 3, padding=1, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=nn.initializers.zeros_init())(y)
        return nn.relu(y + _shortcut(x, self.width, self.stride, self.conv, self.norm))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut: `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), 4 * width]`.

    With `groups` it is ResNeXt's: the 3x3 convolution then is `width * width_per_group / 64 * groups` wide.
    """

    width: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    groups: int = 1
    width_per_group: int = 64

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, inner = self.width * self.expansion, self.width * self.width_per_group // 64 * self.groups
        y = self.conv(inner, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(inner, 3, strides=self.stride, padding=1, groups=self.groups, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(features, 1, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=nn.initializers.zeros_init())(y)
        return nn.relu(y + _shortcut(x, features, self.stride, self.conv, self.norm))


def _shortcut(
    x: jax.Array, features: int, stride: int, conv: Callable[..., nn.Module], norm: Callable[..., nn.Module]
) -> jax.Array:
    """The identity where shapes agree, else a projection (option B of the paper)."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return norm(name="downsample_bn")(conv(features, 1, strides=stride, name="downsample_conv")(x))


class ResNet(nn.Module):
    """A residual feature extractor; the depths are in `c2f_jax.models.backbones`.

    The last batch-norm scale of every block starts at zero, so that a fresh network begins as its shortcuts
    (Goyal et al., arXiv:1706.02677, section 5.1).

    Attributes:
      block: `BasicBlock` or `Bottleneck`.
      block_counts: blocks in layer1, layer2, ...
      widths: width of each group's 3x3 convolutions; a bottleneck group has 4 times as many output channels.
      group_strides: stride of each group's first block.
      groups, width_per_group: of the bottlenecks' 3x3 convolutions, ResNeXt's "32x4d"; 1 and 64 are a ResNet.
      stem_width: channels after the first convolution.
      stem_kernel: size of the first convolution (stride 2, padded by half its size).
      stem_pool: whether a 3x3 stride-2 max-pool follows.
      remat: compute each block anew for the gradient, instead of keeping what is in it.
      dtype: compute dtype; parameters and batch statistics stay float32.
      axis_name: the mapped axis over which batch statistics are averaged under `pmap`; None under `jit`, where the
        batch is the global one already.
    """

    block: type[BasicBlock] | type[Bottleneck]
    block_counts: Sequence[int]
    widths: Sequence[int] = (64, 128, 256, 512)
    group_strides: Sequence[int] = (1, 2, 2, 2)
    groups: int = 1
    width_per_group: int = 64
    stem_width: int = 64
    stem_kernel: int = 7
    stem_pool: bool = True
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, 3]` (normalised floats) to feature maps `[B, H', W', N]` of `dtype`, before any pooling.

        Args:
          x: images.
          train: normalise by this batch's statistics and update the running ones (collection `batch_stats`);
            otherwise use the running ones.
        """
        if not len(self.block_counts) == len(self.widths) == len(self.group_strides):
            raise ValueError(
                "block_counts, widths and group_strides need one entry per group, got "
                f"{self.block_counts}, {self.widths}, {self.group_strides}"
            )
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name)
        x = conv(self.stem_width, self.stem_kernel, strides=2, padding=self.stem_kernel // 2, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        if self.stem_pool:
            x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        groups = zip(self.block_counts, self.widths, self.group_strides, strict=True)
        block = functools.partial(
            nn.remat(self.block) if self.remat else self.block,
            conv=conv,
            norm=norm,
            groups=self.groups,
            width_per_group=self.width_per_group,
        )
        for group, (count, width, stride) in enumerate(groups, start=1):
            for index in range(count):
                x = block(width, stride if index == 0 else 1, name=f"layer{group}_{index}")(x)
        return x
