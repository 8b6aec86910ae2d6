"""Every backbone by name: as many parameters as published, the output stride it is asked for, or what it can."""

import jax
import jax.numpy as jnp
import pytest

from c2f_jax.models.backbones import BACKBONES, output_strides, patch_of, smallest_view

# As published, with a classifier of 1000 classes where there is one; (parameters, width of what is classified).
PUBLISHED = {
    **{"efficientnet_lite0": (4_652_008, 1280), "efficientnet_lite1": (5_416_680, 1280)},
    **{"efficientnet_lite2": (6_092_072, 1280), "efficientnet_lite3": (8_197_096, 1280)},
    **{"efficientnet_lite4": (13_006_568, 1280), "resnet18": (11_689_512, 512), "resnet34": (21_797_672, 512)},
    **{"resnet50": (25_557_032, 2048), "resnet101": (44_549_160, 2048), "resnet152": (60_192_808, 2048)},
    **{"resnext50_32x4d": (25_028_904, 2048), "resnext101_32x8d": (88_791_336, 2048)},
    **{"inception_v3": (23_834_568, 2048)},
    **{"convnext_tiny": (28_589_128, 768), "convnext_small": (50_223_688, 768), "convnext_base": (88_591_464, 1024)},
    **{"convnextv2_tiny": (28_635_496, 768), "convnextv2_base": (88_717_800, 1024)},
    **{"vit_small_patch16": (22_050_664, 384), "vit_base_patch16": (86_567_656, 768)},
    **{"vit_large_patch16": (304_326_632, 1024)},
    **{"vit_small_patch14_dinov2": (22_056_192, 0), "vit_base_patch14_dinov2": (86_579_712, 0)},
    **{"vit_large_patch14_dinov2": (304_367_616, 0), "vit_small_patch14_reg4_dinov2": (22_057_344, 0)},
    **{"vit_base_patch14_reg4_dinov2": (86_582_016, 0), "vit_large_patch14_reg4_dinov2": (304_370_688, 0)},
    **{"vit_small_patch16_dinov3": (21_586_944, 0), "vit_base_patch16_dinov3": (85_641_216, 0)},
    **{"vit_large_patch16_dinov3": (303_079_424, 0)},
    **{f"vit_base_patch16_clip{kind}": (86_568_424, 768) for kind in ("", "_quickgelu")},
    **{f"vit_large_patch14_clip{kind}": (304_204_776, 1024) for kind in ("", "_quickgelu")},
}
VITS = [name for name in BACKBONES if name.startswith("vit_")]


def shapes(name, size, **options):
    """(shape of the feature maps, parameters) of an image of that size."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    backbone = BACKBONES[name](dtype=jnp.float32, axis_name=None, **options)
    out, variables = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), image)
    return out.shape, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", BACKBONES)
def test_full_size(name):
    size = {"inception_v3": 299}.get(name, 518 if "dinov2" in name else 224)
    (_, rows, columns, _), parameters = shapes(name, size)
    own = output_strides(name)[0]
    assert rows == columns == (8 if name == "inception_v3" else size // own)
    if name != "resnet10_small":
        published, width = PUBLISHED[name]
        classifier = 1000 * (width + 1) if width else 0
        assert parameters == published - classifier - (2 * width if name.startswith("convnext") else 0)  # and its norm


@pytest.mark.parametrize(
    "name", ["efficientnet_lite2", "resnet18", "resnext50_32x4d", "convnextv2_tiny", "inception_v3"]
)
def test_stride_16(name):
    (_, rows, columns, _), _ = shapes(name, 128, output_stride=16)
    assert rows == columns == (6 if name == "inception_v3" else 8)


@pytest.mark.parametrize(
    ("name", "stride", "features"),
    [("inception_v3", 32, 2048), ("inception_v3", 16, 768), ("vit_small_patch16", 0, 384)],
)
def test_the_smallest_view_has_one_feature(name, stride, features):
    size = smallest_view(name, stride)
    assert shapes(name, size, output_stride=stride)[0] == (1, 1, 1, features)
    try:
        less = shapes(name, size - 1, output_stride=stride)[0]
    except (ValueError, TypeError, ZeroDivisionError):
        return
    assert 0 in less


def test_patches():
    assert patch_of("resnet50") == 1
    assert {patch_of(name) for name in VITS} == {14, 16} and all(f"patch{patch_of(name)}" in name for name in VITS)


@pytest.mark.parametrize(
    ("name", "asked", "supported"),
    [
        ("resnet10_small", 16, "8"),
        ("resnet50", 8, "32 or 16"),
        ("efficientnet_lite0", 4, "32 or 16"),
        ("vit_small_patch14_dinov2", 16, "14"),
    ],
)
def test_refuses_other_strides(name, asked, supported):
    with pytest.raises(ValueError, match=f"{name} has output stride {supported} .*got {asked}"):
        BACKBONES[name](dtype=jnp.float32, axis_name=None, output_stride=asked)
