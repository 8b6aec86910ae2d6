"""Inception-v3 without its classifiers: images `[B, H, W, 3]` to the feature maps of Mixed_6e or Mixed_7c.

The network that WS-DAN and many before it used. Most convolutions are not padded, so maps are a little smaller than the
stride says: 299 pixels give 17x17 features of 768 channels (Mixed_6e) and 8x8 of 2048 (Mixed_7c). Names are
torchvision's, which timm has too: `Mixed_5b/branch5x5_1/conv`.

References: Szegedy et al., Rethinking the Inception Architecture, arXiv:1512.00567; torchvision.models.inception.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2f_jax.layers.conv import Conv, PaddingLike, max_pool
from c2f_jax.layers.norm import BatchNorm

# A convolution of a branch: its name, channels, kernel, stride and padding.
Layer = tuple[str, int, int | tuple[int, int], int, PaddingLike]
ROW, COLUMN = ((1, 7), (0, 3)), ((7, 1), (3, 0))  # kernel and padding of 7x7, taken apart


class ConvNorm(nn.Module):
    """Convolution, batch norm, relu."""

    features: int
    kernel_size: int | tuple[int, int]
    strides: int
    padding: PaddingLike
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.features, self.kernel_size, strides=self.strides, padding=self.padding, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x))


class Mixed(nn.Module):
    """Branches side by side, their channels one after the other.

    Attributes:
        branches: of convolutions, one after the other; where several layers stand for one, they are side by side.
        pool: channels of the branch of a 3x3 average, or 0: a 3x3 maximum at stride 2, without a convolution.
        layer: `ConvNorm` with its convolution and norm.
    """

    branches: Sequence[Sequence[Any]]
    pool: int
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = []
        for branch in self.branches:
            y = x
            for step in branch:
                forks = [step] if isinstance(step[0], str) else step
                ends = [self.layer(*numbers, name=name)(y) for name, *numbers in forks]
                y = jnp.concatenate(ends, axis=-1) if len(ends) > 1 else ends[0]
            outputs.append(y)
        if self.pool:
            outputs.append(self.layer(self.pool, 1, 1, 0, name="branch_pool")(average_3x3(x)))
        else:
            outputs.append(_max_pool(x))
        return jnp.concatenate(outputs, axis=-1)


def average_3x3(x: jax.Array) -> jax.Array:
    """Means of 3x3 pixels [B, H, W, C], where zeros lie beyond the edge and count: PyTorch's `avg_pool2d`."""
    return nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)), count_include_pad=True)


def _max_pool(x: jax.Array) -> jax.Array:
    return max_pool(x, (3, 3), strides=(2, 2), padding=((0, 0), (0, 0)))


def _a(pool: int) -> tuple[list[list[Any]], int]:
    return [
        [("branch1x1", 64, 1, 1, 0)],
        [("branch5x5_1", 48, 1, 1, 0), ("branch5x5_2", 64, 5, 1, 2)],
        [("branch3x3dbl_1", 64, 1, 1, 0), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 1, 1)],
    ], pool


def _b() -> tuple[list[list[Any]], int]:
    return [
        [("branch3x3", 384, 3, 2, 0)],
        [("branch3x3dbl_1", 64, 1, 1, 0), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 2, 0)],
    ], 0


def _c(width: int) -> tuple[list[list[Any]], int]:
    def layer(name: str, features: int, taken_apart: Any) -> Layer:
        return name, features, taken_apart[0], 1, taken_apart[1]

    return [
        [("branch1x1", 192, 1, 1, 0)],
        [("branch7x7_1", width, 1, 1, 0), layer("branch7x7_2", width, ROW), layer("branch7x7_3", 192, COLUMN)],
        [
            ("branch7x7dbl_1", width, 1, 1, 0),
            layer("branch7x7dbl_2", width, COLUMN),
            layer("branch7x7dbl_3", width, ROW),
            layer("branch7x7dbl_4", width, COLUMN),
            layer("branch7x7dbl_5", 192, ROW),
        ],
    ], 192


def _d() -> tuple[list[list[Any]], int]:
    return [
        [("branch3x3_1", 192, 1, 1, 0), ("branch3x3_2", 320, 3, 2, 0)],
        [
            ("branch7x7x3_1", 192, 1, 1, 0),
            ("branch7x7x3_2", 192, ROW[0], 1, ROW[1]),
            ("branch7x7x3_3", 192, COLUMN[0], 1, COLUMN[1]),
            ("branch7x7x3_4", 192, 3, 2, 0),
        ],
    ], 0


def _e() -> tuple[list[list[Any]], int]:
    def apart(name: str) -> list[Layer]:
        return [(f"{name}a", 384, (1, 3), 1, (0, 1)), (f"{name}b", 384, (3, 1), 1, (1, 0))]

    return [
        [("branch1x1", 320, 1, 1, 0)],
        [("branch3x3_1", 384, 1, 1, 0), apart("branch3x3_2")],
        [("branch3x3dbl_1", 448, 1, 1, 0), ("branch3x3dbl_2", 384, 3, 1, 1), apart("branch3x3dbl_3")],
    ], 192


STEM = (
    ("Conv2d_1a_3x3", 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 64, 3, 1, 1),
    "pool",
    ("Conv2d_3b_1x1", 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 192, 3, 1, 0),
    "pool",
)
BLOCKS = {
    **{"Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _b(), "Mixed_6b": _c(128)},
    **{"Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _d(), "Mixed_7b": _e()},
    "Mixed_7c": _e(),
}


class InceptionV3(nn.Module):
    """Inception-v3 as a feature extractor, without its auxiliary classifier.

    Attributes:
      last: "Mixed_7c" (about 32 pixels per feature) or "Mixed_6e" (about 16; the three blocks after it are not there).
      remat: compute each block anew for the gradient, instead of keeping what is in it.
      dtype: compute dtype; parameters and batch statistics stay float32.
      axis_name: the mapped axis over which batch statistics are averaged under `pmap`; None under `jit`.
    """

    last: str = "Mixed_7c"
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, 3]` (normalised floats, 75 pixels or more) to feature maps `[B, H', W', N]` of `dtype`.

        Args:
          x: images.
          train: normalise by this batch's statistics and update the running ones (collection `batch_stats`);
            otherwise use the running ones.
        """
        layer = functools.partial(
            ConvNorm,
            conv=functools.partial(Conv, dtype=self.dtype),
            norm=functools.partial(
                BatchNorm, use_running_average=not train, epsilon=1e-3, dtype=self.dtype, axis_name=self.axis_name
            ),
        )
        for step in STEM:
            x = _max_pool(x) if isinstance(step, str) else layer(*step[1:], name=step[0])(x)
        mixed = nn.remat(Mixed) if self.remat else Mixed
        for name, (branches, pool) in BLOCKS.items():
            x = mixed(branches, pool, layer, name=name)(x)
            if name == self.last:
                return x
        raise ValueError(f"last must be one of {', '.join(BLOCKS)}, got {self.last!r}")
