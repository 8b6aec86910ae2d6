"""EfficientNet-Lite0 has timm's parameters, and with the published weights the published model's answers."""

import functools
import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from safetensors.numpy import save_file

from c2f_jax.layers.conv import Conv
from c2f_jax.layers.norm import BatchNorm
from c2f_jax.models.backbones import BACKBONES
from c2f_jax.models.efficientnet_lite import EfficientNetLite, InvertedResidual
from c2f_jax.models.pretrained import load_pretrained, read_weights

WEIGHTS_DIR = os.environ.get("C2F_WEIGHTS_DIR")


def abstract_variables(backbone, size=64):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), image)


def test_as_many_parameters_as_published():
    variables = abstract_variables(EfficientNetLite())
    # 4.652.008 with the classifier of 1000 classes.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 4_652_008 - 1281 * 1000
    assert set(variables["params"]) == {"conv_stem", "bn1", "conv_head", "bn2"} | {
        f"blocks_{stage}_{block}" for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(count)
    }


def test_stride_16_keeps_the_parameters_and_doubles_the_map():
    small, large = (EfficientNetLite(output_stride=stride) for stride in (32, 16))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, *map(abstract_variables, (small, large))))
    for size, side in ((224, 7), (97, 4)):
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        for backbone, expected in ((small, side), (large, -(-size // 16))):
            apply = lambda v, x, backbone=backbone: backbone.apply(v, x, train=False)  # noqa: E731
            assert jax.eval_shape(apply, abstract_variables(small), image).shape == (1, expected, expected, 1280)


def test_refuses_other_strides():
    with pytest.raises(ValueError, match="output_stride must be 32 or 16, got 8"):
        abstract_variables(EfficientNetLite(output_stride=8))


def test_fresh_depthwise_kernels_keep_the_signal():
    norm = functools.partial(BatchNorm, use_running_average=True)
    block = InvertedResidual(
        192,
        kernel_size=5,
        stride=1,
        expansion=6,
        drop_path=0.0,
        conv=functools.partial(Conv, padding="SAME"),
        norm=norm,
    )
    kernel = block.init(jax.random.key(0), jnp.zeros((1, 5, 5, 192)))["params"]["conv_dw"]["kernel"]
    # 28800 normal numbers, each channel's 25 with variance 2 / 25.
    assert kernel.shape == (5, 5, 1, 1152) and np.std(kernel) == pytest.approx(np.sqrt(2 / 25), rel=0.03)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_each_platform(platform):
    backbone = EfficientNetLite(dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    f = jax.jit(lambda v, x: backbone.apply(v, x, train=False))
    text = export.export(f, platforms=[platform])(abstract_variables(backbone), images).mlir_module()
    # A stem, 15 + 16 1x1 convolutions in 16 blocks, as many depthwise ones as blocks, and a head; on CPU none is left.
    assert text.count("stablehlo.convolution") == (0 if platform == "cpu" else 1 + 31 + 16 + 1)


@pytest.mark.skipif(
    WEIGHTS_DIR is None,
    reason="set C2F_WEIGHTS_DIR to the folder of efficientnet_lite{0,1,2}_{imagenet.safetensors,reference.npz}",
)
@pytest.mark.parametrize(
    ("name", "size"), [("efficientnet_lite0", 224), ("efficientnet_lite1", 240), ("efficientnet_lite2", 260)]
)
def test_published_weights_give_the_published_answers(name, size, tmp_path):
    """Of the model that the answers are from, whose paddings are those of its own image size whatever it is shown."""
    folder = Path(WEIGHTS_DIR)
    published = read_weights(str(folder / f"{name}_imagenet.safetensors"))
    weights = {key: in_its_shape(array, name) for key, array in published.items()}
    source = str(tmp_path / "weights.safetensors")
    save_file(weights, source)
    reference = np.load(folder / f"{name}_reference.npz")
    backbone = BACKBONES[name](dtype=jnp.float32, axis_name=None)
    variables = load_pretrained(source, name, abstract_variables(backbone))

    images = (np.float32(reference["images"]) - 127) / 128
    with nn.intercept_methods(padded_for(size)):
        feature_maps = jax.jit(lambda v, x: backbone.apply(v, x, train=False))(variables, images)
    assert feature_maps.shape == (2, 7, 7, 1280)
    feature_mean = np.mean(feature_maps, axis=(1, 2))
    np.testing.assert_allclose(feature_mean, reference["feature_mean"], rtol=0, atol=1e-4)

    logits = feature_mean @ weights["classifier.weight"].T + weights["classifier.bias"]
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(np.argmax(logits, axis=1), [285, 967])  # Egyptian cat, espresso


def in_its_shape(array: np.ndarray, name: str) -> np.ndarray:
    """Lite1's and Lite2's files have TensorFlow's order in memory (HWIO, IO) under PyTorch's shapes (OIHW, OI)."""
    if name == "efficientnet_lite0" or array.ndim < 2:
        return array
    order = (2, 3, 1, 0) if array.ndim == 4 else (1, 0)
    return np.ascontiguousarray(array.reshape([array.shape[axis] for axis in order]).transpose(np.argsort(order)))


def padded_for(size: int):
    """Strided depthwise convolutions padded as SAME pads maps of images of `size` pixels."""
    sides = {}  # of a view of 224 pixels -> of one of `size`
    for _ in range(5):
        sides[224 >> len(sides)] = size
        size = -(-size // 2)

    def pad(call, args, kwargs, context):
        module = context.module
        if not (isinstance(module, Conv) and module.name == "conv_dw" and module.strides == 2):
            return call(*args, **kwargs)
        (x,), kernel = args, module.variables["params"]["kernel"]
        side, length = sides[x.shape[1]], kernel.shape[0]
        total = (-(-side // 2) - 1) * 2 + length - side
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            [(total // 2, total - total // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )

    return pad
