"""Every backbone by name gives the output stride it is asked for, or says what it can."""

import jax
import jax.numpy as jnp
import pytest

from c2f_jax.models.backbones import BACKBONES


def side(name, size, **options):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    backbone = BACKBONES[name](dtype=jnp.float32, axis_name=None, **options)
    out, _ = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), image)
    return out.shape[1]


@pytest.mark.parametrize("name", BACKBONES)
def test_output_stride(name):
    own, others = (8, []) if name == "resnet10_small" else (32, [16])
    assert side(name, 128) == side(name, 128, output_stride=0) == side(name, 128, output_stride=own) == 128 // own
    for stride in others:
        assert side(name, 128, output_stride=stride) == 128 // stride


@pytest.mark.parametrize(
    ("name", "asked", "supported"),
    [("resnet10_small", 16, "8"), ("resnet50", 8, "32 or 16"), ("efficientnet_lite0", 4, "32 or 16")],
)
def test_refuses_other_strides(name, asked, supported):
    with pytest.raises(ValueError, match=f"{name} has output stride {supported} .*got {asked}"):
        BACKBONES[name](dtype=jnp.float32, axis_name=None, output_stride=asked)
