"""Every feature extractor by name: `BACKBONES["resnet50"](dtype=jnp.float32, axis_name=None)`.

A backbone is a module called as `backbone(images, train=...)`: images `[B, H, W, 3]` to feature maps `[B, H', W', N]`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from c2f_jax.models.efficientnet_lite import EfficientNetLite
from c2f_jax.models.resnet import BasicBlock, Bottleneck, ResNet

# Output stride -> the settings that give it; the backbone's own comes first.
_LITE_STRIDES: dict[int, dict[str, Any]] = {32: {}, 16: {"output_stride": 16}}
_RESNET_STRIDES: dict[int, dict[str, Any]] = {32: {}, 16: {"group_strides": (1, 2, 2, 1)}}

_CONSTRUCTORS: dict[str, tuple[Callable[..., nn.Module], dict[int, dict[str, Any]]]] = {
    "efficientnet_lite0": (EfficientNetLite, _LITE_STRIDES),
    # For 64 px views on a CPU: output stride 8, so 8x8 maps of 128 channels. Strides early and a narrow stem, because
    # at this size the time goes into the large maps.
    "resnet10_small": (
        functools.partial(
            ResNet,
            BasicBlock,
            block_counts=(1, 1, 1),
            widths=(32, 64, 128),
            group_strides=(2, 2, 1),
            stem_width=16,
            stem_kernel=3,
            stem_pool=False,
        ),
        {8: {}},
    ),
    # torchvision's.
    "resnet18": (functools.partial(ResNet, BasicBlock, block_counts=(2, 2, 2, 2)), _RESNET_STRIDES),
    "resnet34": (functools.partial(ResNet, BasicBlock, block_counts=(3, 4, 6, 3)), _RESNET_STRIDES),
    "resnet50": (functools.partial(ResNet, Bottleneck, block_counts=(3, 4, 6, 3)), _RESNET_STRIDES),
    "resnet101": (functools.partial(ResNet, Bottleneck, block_counts=(3, 4, 23, 3)), _RESNET_STRIDES),
    "resnet152": (functools.partial(ResNet, Bottleneck, block_counts=(3, 8, 36, 3)), _RESNET_STRIDES),
}


def _make(name: str, *, output_stride: int = 0, **settings: Any) -> nn.Module:
    constructor, strides = _CONSTRUCTORS[name]
    if output_stride not in (0, *strides):
        supported = " or ".join(str(stride) for stride in strides)
        raise ValueError(f"{name} has output stride {supported} (0: {next(iter(strides))}), got {output_stride}")
    return constructor(**{**strides.get(output_stride, {}), **settings})


def output_strides(name: str) -> tuple[int, ...]:
    """Pixels of the view per pixel of the feature map that the backbone `name` can have; its own comes first."""
    return tuple(_CONSTRUCTORS[name][1])


BACKBONES: dict[str, Callable[..., nn.Module]] = {name: functools.partial(_make, name) for name in _CONSTRUCTORS}
"""Name to constructor with keyword arguments `dtype` (compute dtype), `axis_name` (see `ResNet`) and `output_stride`:
pixels of the image per pixel of the feature map, 0 for the backbone's own; ValueError where it has no such stride."""
