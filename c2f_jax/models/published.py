"""Published weights of the backbones: where they are, whose, and what images they expect.

What is in this table comes from timm 1.0.31's own list, but for EfficientNet-Lite's mean and deviation, which are those
of its authors (timm rounds them to 127.5). `docs/backbones.md` is written from it.
"""

from typing import NamedTuple

Triple = tuple[float, float, float]


class Values(NamedTuple):
    """What `(pixel - mean) / std` takes, in grey levels of 0 to 255, for red, green and blue."""

    mean: Triple
    std: Triple


IMAGENET = Values((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
INCEPTION = Values((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
CLIP = Values((122.771, 116.746, 104.094), (68.501, 66.632, 70.323))
LITE = Values((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


class Published(NamedTuple):
    """Weights on the Hugging Face hub.

    Attributes:
        source: what `model.pretrained` takes; with a revision where one was verified.
        licence: as its publisher names it.
        size: side of the images that they were trained with last, in pixels.
        values: of these images.
    """

    source: str
    licence: str
    size: int
    values: Values


def _timm(name: str, licence: str, size: int = 224, values: Values = IMAGENET) -> Published:
    return Published(f"hf://timm/{name}", licence, size, values)


_APACHE, _BSD, _NOT_COMMERCIAL, _DINOV3 = "Apache-2.0", "BSD-3-Clause", "CC-BY-NC-4.0", "DINOv3 License"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    **{
        f"efficientnet_lite{number}": (_timm(f"tf_efficientnet_lite{number}.in1k", _APACHE, size, LITE),)
        for number, size in enumerate((224, 240, 260, 300, 380))
    },
    **{
        f"resnet{depth}": (
            _timm(f"resnet{depth}.a1_in1k", _APACHE),
            _timm(
                f"resnet{depth}.tv_in1k" + ("@78f3ecfdb38e06d9b8397f662e7ab8fee96026fa" if depth == 50 else ""), _BSD
            ),
        )
        for depth in (18, 34, 50, 101, 152)
    },
    "resnext50_32x4d": (_timm("resnext50_32x4d.a1_in1k", _APACHE), _timm("resnext50_32x4d.tv_in1k", _BSD)),
    "resnext101_32x8d": (
        _timm("resnext101_32x8d.tv_in1k", _BSD),
        _timm("resnext101_32x8d.fb_swsl_ig1b_ft_in1k", _NOT_COMMERCIAL),
    ),
    "inception_v3": (
        _timm("inception_v3.tv_in1k", _APACHE, 299, INCEPTION),
        _timm("inception_v3.gluon_in1k", _APACHE, 299),
    ),
    **{
        f"convnext_{size}": (
            _timm(f"convnext_{size}.fb_in22k_ft_in1k", _APACHE),
            _timm(f"convnext_{size}.fb_in22k", _APACHE),
            _timm(f"convnext_{size}.dinov3_lvd1689m", _DINOV3),
        )
        for size in ("tiny", "small", "base")
    },
    **{
        f"convnextv2_{size}": (_timm(f"convnextv2_{size}.fcmae_ft_in22k_in1k", _NOT_COMMERCIAL),)
        for size in ("tiny", "base")
    },
    **{
        f"vit_{size}_patch16": (
            _timm(f"vit_{size}_patch16_224.augreg_in21k", _APACHE, 224, INCEPTION),
            _timm(f"vit_{size}_patch16_224.augreg_in21k_ft_in1k", _APACHE, 224, INCEPTION),
            *([_timm(f"vit_{size}_patch16_224.dino", _APACHE)] if size != "large" else []),
        )
        for size in ("small", "base", "large")
    },
    **{
        f"vit_{size}_{form}": (_timm(f"vit_{size}_{form}.{tag}", licence, pixels),)
        for size in ("small", "base", "large")
        for form, tag, licence, pixels in (
            ("patch14_dinov2", "lvd142m", _APACHE, 518),
            ("patch14_reg4_dinov2", "lvd142m", _APACHE, 518),
            ("patch16_dinov3", "lvd1689m", _DINOV3, 256),
        )
    },
    "vit_base_patch16_clip": (_timm("vit_base_patch16_clip_224.laion2b", _APACHE, 224, CLIP),),
    "vit_base_patch16_clip_quickgelu": (_timm("vit_base_patch16_clip_224.openai", _APACHE, 224, CLIP),),
    # LAION trained this one with other values than its sisters.
    "vit_large_patch14_clip": (_timm("vit_large_patch14_clip_224.laion2b", _APACHE, 224, INCEPTION),),
    "vit_large_patch14_clip_quickgelu": (_timm("vit_large_patch14_clip_224.openai", _APACHE, 224, CLIP),),
}


def values_of(source: str) -> Values | None:
    """What images weights expect, by the table. source: as in `model.pretrained`, with or without a revision."""
    for row in (row for rows in PUBLISHED.values() for row in rows):
        if row.source.partition("@")[0] == source.partition("@")[0]:
            return row.values
    return None


def values_of_all(backbone_name: str) -> Values | None:
    """What all weights that the table has for a backbone expect; None where they differ or there are none."""
    known = {row.values for row in PUBLISHED.get(backbone_name, ())}
    return known.pop() if len(known) == 1 else None
