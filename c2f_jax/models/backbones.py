"""Every feature extractor by name: `BACKBONES["resnet50"](dtype=jnp.float32, axis_name=None)`.

A backbone is a module called as `backbone(images, train=...)`: images `[B, H, W, 3]` to feature maps `[B, H', W', N]`.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn

from c2f_jax.models.convnext import ConvNeXt
from c2f_jax.models.efficientnet_lite import EfficientNetLite
from c2f_jax.models.inception import InceptionV3
from c2f_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from c2f_jax.models.vit import VisionTransformer

# Output stride -> the settings that give it; the backbone's own comes first.
_LITE_STRIDES: dict[int, dict[str, Any]] = {32: {}, 16: {"output_stride": 16}}
_RESNET_STRIDES: dict[int, dict[str, Any]] = {32: {}, 16: {"group_strides": (1, 2, 2, 1)}}

_Entry = tuple[Callable[..., nn.Module], dict[int, dict[str, Any]]]


def _lite(width: float, depth: float) -> _Entry:
    return functools.partial(EfficientNetLite, width=width, depth=depth), _LITE_STRIDES


def _resnet(block: type[BasicBlock] | type[Bottleneck], *counts: int, **settings: Any) -> _Entry:
    return functools.partial(ResNet, block, block_counts=counts, **settings), _RESNET_STRIDES


def _convnext(depth: int, width: int, version: int) -> _Entry:
    widths = tuple(width * 2**stage for stage in range(4))
    network = functools.partial(ConvNeXt, depths=(3, 3, depth, 3), widths=widths, version=version)
    return network, _LITE_STRIDES


_VIT_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads
_CLIP: dict[str, Any] = {"pre_norm": True, "epsilon": 1e-5}
_DINOV2: dict[str, Any] = {"layer_scale": 1e-5}
_DINOV3: dict[str, Any] = {"positions": "rotary", "registers": 4, "qkv_bias": False, "epsilon": 1e-5, **_DINOV2}


def _vit(size: str, patch: int, **settings: Any) -> _Entry:
    width, depth, heads = _VIT_SIZES[size]
    network = functools.partial(VisionTransformer, width=width, depth=depth, heads=heads, patch=patch, **settings)
    return network, {patch: {}}


_CONSTRUCTORS: dict[str, _Entry] = {
    "efficientnet_lite0": _lite(1.0, 1.0),
    "efficientnet_lite1": _lite(1.0, 1.1),
    "efficientnet_lite2": _lite(1.1, 1.2),
    "efficientnet_lite3": _lite(1.2, 1.4),
    "efficientnet_lite4": _lite(1.4, 1.8),
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
    "resnet18": _resnet(BasicBlock, 2, 2, 2, 2),
    "resnet34": _resnet(BasicBlock, 3, 4, 6, 3),
    "resnet50": _resnet(Bottleneck, 3, 4, 6, 3),
    "resnet101": _resnet(Bottleneck, 3, 4, 23, 3),
    "resnet152": _resnet(Bottleneck, 3, 8, 36, 3),
    "resnext50_32x4d": _resnet(Bottleneck, 3, 4, 6, 3, groups=32, width_per_group=4),
    "resnext101_32x8d": _resnet(Bottleneck, 3, 4, 23, 3, groups=32, width_per_group=8),
    "inception_v3": (InceptionV3, {32: {}, 16: {"last": "Mixed_6e"}}),
    "convnext_tiny": _convnext(9, 96, 1),
    "convnext_small": _convnext(27, 96, 1),
    "convnext_base": _convnext(27, 128, 1),
    "convnextv2_tiny": _convnext(9, 96, 2),
    "convnextv2_base": _convnext(27, 128, 2),
    # timm's names, without the size of the images, which is that of the views.
    **{f"vit_{size}_patch16": _vit(size, 16) for size in _VIT_SIZES},
    **{f"vit_{size}_patch14_dinov2": _vit(size, 14, **_DINOV2) for size in _VIT_SIZES},
    **{
        f"vit_{size}_patch14_reg4_dinov2": _vit(size, 14, registers=4, positions="patches", **_DINOV2)
        for size in _VIT_SIZES
    },
    **{f"vit_{size}_patch16_dinov3": _vit(size, 16, **_DINOV3) for size in _VIT_SIZES},
    "vit_base_patch16_clip": _vit("base", 16, **_CLIP),
    "vit_base_patch16_clip_quickgelu": _vit("base", 16, quick_gelu=True, **_CLIP),
    "vit_large_patch14_clip": _vit("large", 14, **_CLIP),
    "vit_large_patch14_clip_quickgelu": _vit("large", 14, quick_gelu=True, **_CLIP),
}


def _make(name: str, *, output_stride: int = 0, drop_path: float = 0.0, **settings: Any) -> nn.Module:
    constructor, strides = _CONSTRUCTORS[name]
    if output_stride not in (0, *strides):
        supported = " or ".join(str(stride) for stride in strides)
        raise ValueError(f"{name} has output stride {supported} (0: {next(iter(strides))}), got {output_stride}")
    if drop_path:
        if not has_drop_path(name):
            raise ValueError(f"{name} has no stochastic depth, got drop_path={drop_path}")
        settings["drop_path"] = drop_path
    return constructor(**{**strides.get(output_stride, {}), **settings})


def has_drop_path(name: str) -> bool:
    """Whether the architecture has stochastic depth."""
    return name.startswith(("efficientnet_lite", "convnext", "vit_"))


def output_strides(name: str) -> tuple[int, ...]:
    """Pixels of the view per pixel of the feature map that the backbone `name` can have; its own comes first."""
    return tuple(_CONSTRUCTORS[name][1])


def patch_of(name: str) -> int:
    """The side of the patches that views of the backbone `name` must be made of; 1 where any size will do."""
    return output_strides(name)[0] if name.startswith("vit_") else 1


def smallest_view(name: str, output_stride: int) -> int:
    """The side of the smallest view of which the backbone `name` makes a feature. output_stride: 0 for its own."""
    if name == "inception_v3":
        return 43 if output_stride == 16 else 75  # most of its convolutions are not padded
    return output_stride or output_strides(name)[0]


BACKBONES: dict[str, Callable[..., nn.Module]] = {name: functools.partial(_make, name) for name in _CONSTRUCTORS}
"""Name to constructor with keyword arguments `dtype` (compute dtype), `axis_name` (see `ResNet`), `output_stride`
(pixels of the image per feature, 0 for the backbone's own), `drop_path` (rate of stochastic depth) and `remat` (keep no
block's inside for the gradient); ValueError where it has no such stride, or no stochastic depth."""

_STEM = re.compile(r"(conv1|bn1|conv_stem|stem_.*|Conv2d_.*|patch_embed_proj|.*_token|pos_embed|norm_pre)")
_LAST = re.compile(r"(conv_head|bn2|norm)")


def layer_numbers(paths: Iterable[tuple[str, ...]]) -> list[int]:
    """For each parameter of a backbone how many layers come before its own: 0 for the stem, then block after block.

    Args:
        paths: of all its parameters, as ("layer1_0", "conv1", "kernel").
    """

    def block(path: tuple[str, ...]) -> tuple[int, str, tuple[int, ...]]:
        top = path[0]
        if _STEM.fullmatch(top):
            return 0, "", ()
        if _LAST.fullmatch(top):
            return 2, "", ()
        if top.startswith("stages_") and path[1].startswith("blocks_"):
            top += path[1].removeprefix("blocks")
        elif top.startswith("stages_"):  # what leads into a stage belongs to its first block
            top += "_0"
        kind = "Mixed" if top.startswith("Mixed") else ""
        return 1, kind and top, tuple(int(number) for number in re.findall(r"\d+", top))

    found = [block(tuple(path)) for path in paths]
    order = {name: number for number, name in enumerate(sorted(set(found)))}
    return [order[name] for name in found]
