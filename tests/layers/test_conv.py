"""Conv against `lax.conv_general_dilated`, against a loop over output pixels, and the choice it makes per platform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from c2f_jax.layers.conv import Conv, conv2d, dot_general, he_normal_fan_out, scaled

# (kernel_size, strides, padding, input channels, groups), at an odd, non-square image size.
RESNET = [
    (7, 2, 3, 3, 1),
    (3, 2, 1, 3, 1),
    (3, 1, 1, 16, 1),
    (3, 2, 1, 16, 1),
    (3, 1, 1, 32, 1),
    (3, 2, 1, 32, 1),
    (1, 1, 0, 8, 1),
    (1, 2, 0, 8, 1),
]
UNEVEN = [
    ((1, 3), (2, 1), ((0, 2), (1, 0)), 3, 1),
    (2, 3, (1, 0), 2, 1),
    (1, 1, 2, 8, 1),
    ((5, 7), (1, 3), ((0, 2), (3, 1)), 5, 1),
    (3, 2, 1, 8, 4),
    (5, 1, 2, 8, 8),
    (1, 1, 0, 8, 2),
]
FEATURES = 16
DEPTHWISE = [
    (3, 1, 1, FEATURES, FEATURES),
    (3, 2, 1, FEATURES, FEATURES),
    (5, 1, 2, FEATURES, FEATURES),
    (5, 2, ((1, 2), (1, 2)), FEATURES, FEATURES),
    ((1, 3), (2, 1), ((0, 2), (1, 0)), FEATURES, FEATURES),
    # Pixels that no window sees, and windows that see no pixel.
    (2, 3, 0, FEATURES, FEATURES),
    (2, 1, 3, FEATURES, FEATURES),
    # So many pixels that the gradient by the kernel goes tile by tile.
    (7, 1, 3, FEATURES, FEATURES),
    (7, 2, ((3, 2), (1, 3)), FEATURES, FEATURES),
    ((6, 5), (1, 3), ((0, 2), (5, 1)), FEATURES, FEATURES),
]
CASES = RESNET + UNEVEN + DEPTHWISE


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def pads(value):
    return tuple(p if isinstance(p, tuple) else (p, p) for p in pair(value))


def example(kernel_size, in_features, groups):
    """A double-precision image batch [2, 13, 11, C] and kernel."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(*pair(kernel_size), in_features // groups, FEATURES))
    return rng.normal(size=(2, 13, 11, in_features)), kernel


def module(kernel_size, strides, padding, groups, **options):
    return Conv(FEATURES, kernel_size, strides=strides, padding=padding, groups=groups, **options)


def convolution_by_loop(image, kernel, strides, padding, groups):
    """The definition: each output number is a sum over the window its pixel sees, zeros outside the image."""
    (kh, kw, group_features, features), (sy, sx), (rows, columns) = kernel.shape, pair(strides), pads(padding)
    batch, height, width, _ = image.shape
    out_height = (height + sum(rows) - kh) // sy + 1
    out_width = (width + sum(columns) - kw) // sx + 1
    out = np.zeros((batch, out_height, out_width, features))
    for f in range(features):
        first_channel = f // (features // groups) * group_features
        for y in range(out_height):
            for x in range(out_width):
                for i in range(kh):
                    for j in range(kw):
                        row, column = y * sy - rows[0] + i, x * sx - columns[0] + j
                        if 0 <= row < height and 0 <= column < width:
                            seen = image[:, row, column, first_channel : first_channel + group_features]
                            out[:, y, x, f] += seen @ kernel[i, j, :, f]
    return out


@pytest.mark.parametrize(("kernel_size", "strides", "padding", "in_features", "groups"), CASES)
def test_equals_the_definition(kernel_size, strides, padding, in_features, groups):
    image, kernel = example(kernel_size, in_features, groups)
    expected = convolution_by_loop(image, kernel, strides, padding, groups)
    with jax.enable_x64(True):
        out = module(kernel_size, strides, padding, groups).apply({"params": {"kernel": kernel}}, jnp.asarray(image))
        assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("kernel_size", "strides", "padding", "in_features", "groups"), CASES)
def test_values_and_gradients_equal_lax(kernel_size, strides, padding, in_features, groups, jit):
    image, kernel = example(kernel_size, in_features, groups)

    def ours(image, kernel):
        return module(kernel_size, strides, padding, groups).apply({"params": {"kernel": kernel}}, image)

    def theirs(image, kernel):
        return lax.conv_general_dilated(
            image,
            kernel,
            pair(strides),
            pads(padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def value_and_gradients(f):
        def run(image, kernel):
            out, vjp = jax.vjp(f, image, kernel)
            return out, *vjp(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

        return jax.jit(run) if jit else run

    with jax.enable_x64(True):
        ours_all = value_and_gradients(ours)(jnp.asarray(image), jnp.asarray(kernel))
        theirs_all = value_and_gradients(theirs)(jnp.asarray(image), jnp.asarray(kernel))
        for mine, reference in zip(ours_all, theirs_all, strict=True):
            np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-11)
            assert np.abs(reference).max() > 0.1


def lowered(platform, kernel_size, in_features, groups=1):
    image, kernel = example(kernel_size, in_features, groups)
    f = jax.jit(lambda x, k: conv2d(x, k, strides=(2, 2), padding=((1, 1), (1, 1)), groups=groups))
    return export.export(f, platforms=[platform])(jnp.float32(image), jnp.float32(kernel)).mlir_module()


@pytest.mark.parametrize(
    ("kernel_size", "in_features", "groups", "product_on_cpu"),
    [(1, 64, 1, True), (3, 3, 1, True), (3, 16, 1, True), (3, 32, 1, False), (7, 3, 1, False), (1, 8, 2, False)],
)
def test_each_platform_gets_its_formulation(kernel_size, in_features, groups, product_on_cpu):
    for platform in ("cpu", "cuda", "tpu"):
        text = lowered(platform, kernel_size, in_features, groups)
        product = product_on_cpu and platform == "cpu"
        assert ("stablehlo.dot_general" in text) == product, platform
        assert ("stablehlo.convolution" in text) == (not product), platform


def test_depthwise_is_a_convolution_everywhere_but_on_cpu():
    image, kernel = (jnp.float32(a) for a in example(3, FEATURES, FEATURES))
    depthwise = partial(conv2d, strides=(2, 2), padding=((1, 1), (1, 1)), groups=FEATURES)

    def gradients(image, kernel):
        return jax.grad(lambda x, k: jnp.sum(depthwise(x, k) ** 2), argnums=(0, 1))(image, kernel)

    for platform in ("cpu", "cuda", "tpu"):
        forward = export.export(jax.jit(depthwise), platforms=[platform])(image, kernel).mlir_module()
        assert forward.count("stablehlo.convolution") == (platform != "cpu")
        backward = export.export(jax.jit(gradients), platforms=[platform])(image, kernel).mlir_module()
        assert backward.count("stablehlo.convolution") == 3 * (platform != "cpu")
    everywhere = export.export(jax.jit(gradients), platforms=["cpu", "cuda", "tpu"])(image, kernel)
    for mine, reference in zip(everywhere.call(image, kernel), jax.jit(gradients)(image, kernel), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=1e-5)


def test_second_derivatives_of_depthwise():
    image, kernel = example(3, FEATURES, FEATURES)
    with jax.enable_x64(True):
        f = partial(conv2d, strides=(2, 2), padding=((0, 1), (1, 1)), groups=FEATURES)
        check_grads(lambda x, k: jnp.sin(f(x, k)), (jnp.asarray(image[:1, :4, :5]), jnp.asarray(kernel)), 2, ["rev"])


@pytest.mark.parametrize("spread", ["jit", "pmap"])
@pytest.mark.parametrize("size", [3, 7])
def test_depthwise_spreads_over_the_batch(size, spread):
    rng = np.random.default_rng(0)
    images, kernel = (np.float32(rng.normal(size=shape)) for shape in ((8, 6, 5, FEATURES), (size, size, 1, FEATURES)))
    depthwise = partial(conv2d, strides=(2, 2), padding=2 * [2 * [size // 2]], groups=FEATURES)

    def value_and_gradients(images, kernel):
        out, vjp = jax.vjp(depthwise, images, kernel)
        return out, *vjp(jnp.cos(out))

    expected = jax.jit(value_and_gradients)(images, kernel)
    if spread == "pmap":
        parts = jax.pmap(value_and_gradients, in_axes=(0, None))(images.reshape(4, 2, 6, 5, FEATURES), kernel)
        got = [np.concatenate(parts[0]), np.concatenate(parts[1]), np.sum(parts[2], axis=0)]
    else:
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
        on_devices = jax.device_put(images, split), jax.device_put(kernel, whole)
        assert "all-" not in jax.jit(depthwise).lower(*on_devices).compile().as_text()
        got = jax.jit(value_and_gradients)(*on_devices)
        assert got[0].sharding.is_equivalent_to(split, 4) and got[1].sharding.is_equivalent_to(split, 4)
    for mine, reference in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=1e-4)


ROWS = (((2,), (0,)), ((), ()))  # what `flax.linen.Dense` asks for


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (partial(dot_general, dimension_numbers=ROWS), jnp.matmul, (6, 8)),
        (partial(dot_general, dimension_numbers=ROWS), jnp.matmul, (6, 5)),
        (scaled, jnp.multiply, (6,)),
        (scaled, jnp.multiply, (5,)),
    ],
)
def test_products_of_a_layer_have_their_plain_gradients(ours, theirs, shape):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, 4, shape[0])), rng.normal(size=shape)

    def value_and_gradients(f, x, kernel):
        out, vjp = jax.vjp(f, x, kernel)
        return out, *vjp(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    with jax.enable_x64(True):
        found, wanted = (jax.jit(partial(value_and_gradients, f))(x, kernel) for f in (ours, theirs))
    for mine, reference in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-12)
        assert np.abs(reference).max() > 0.1
    half = [jnp.asarray(value, jnp.bfloat16) for value in (x, kernel)]
    for mine, reference in zip(value_and_gradients(ours, *half), wanted, strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(mine), reference, rtol=0, atol=0.03 * np.abs(reference).max())
    for platform in ("cpu", "cuda", "tpu"):
        gradients = jax.jit(lambda x, kernel: jax.vjp(ours, x, kernel)[1](ours(x, kernel)))
        text = export.export(gradients, platforms=[platform])(*half).mlir_module()
        assert ("stablehlo.while" in text) == (platform == "cpu")


# Image 12x13: rows need one pixel less in all than columns at stride 2, and it is taken from the top.
@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding"),
    [
        (3, 1, ((1, 1), (1, 1))),
        (3, 2, ((0, 1), (1, 1))),
        (5, 1, ((2, 2), (2, 2))),
        (5, 2, ((1, 2), (2, 2))),
        (2, 1, ((0, 1), (0, 1))),
        (1, 2, ((0, 0), (0, 0))),
        (3, 3, ((0, 0), (1, 1))),
    ],
)
@pytest.mark.parametrize("groups", [1, FEATURES])
def test_same_pads_as_tensorflow_does(kernel_size, strides, padding, groups):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 12, 13, FEATURES))
    kernel = rng.normal(size=(kernel_size, kernel_size, FEATURES // groups, FEATURES))
    expected = convolution_by_loop(image, kernel, strides, padding, groups)
    with jax.enable_x64(True):
        out = module(kernel_size, strides, "SAME", groups).apply({"params": {"kernel": kernel}}, jnp.asarray(image))
    assert out.shape == (2, -(-12 // strides), -(-13 // strides), FEATURES)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    (top, bottom), columns = padding
    if top != bottom:
        upside_down = convolution_by_loop(image, kernel, strides, ((bottom, top), columns), groups)
        assert np.abs(np.asarray(out) - upside_down).max() > 1


def test_one_program_for_all_platforms_runs_here():
    image, kernel = example(1, 8, 1)
    image, kernel = jnp.float32(image), jnp.float32(kernel)
    f = jax.jit(lambda x, k: conv2d(x, k, strides=(1, 1), padding=((0, 0), (0, 0))))
    exported = export.export(f, platforms=["cpu", "cuda", "tpu"])(image, kernel)
    # Equal up to the rounding of a sum of eight products.
    np.testing.assert_allclose(exported.call(image, kernel), image @ kernel[0, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kernel_size", "in_features"), [(1, 8), (3, 3), (3, 32)])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(kernel_size, in_features):
    image, _ = example(kernel_size, in_features, 1)
    image = jnp.float32(image)
    out, variables = module(kernel_size, 1, 1, 1, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), image)
    reference = module(kernel_size, 1, 1, 1).apply(variables, image)
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert out.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: inputs and output are each off by at most 2^-8 of numbers of size about 10.
    np.testing.assert_allclose(np.float32(out), reference, rtol=0, atol=0.1)


def test_depthwise_adds_up_bfloat16_in_float32():
    image, kernel = (jnp.asarray(a, jnp.bfloat16) for a in example(5, FEATURES, FEATURES))
    depthwise = partial(conv2d, strides=(1, 1), padding=((2, 2), (2, 2)), groups=FEATURES)
    out = jax.jit(depthwise)(image, kernel)
    assert out.dtype == jnp.bfloat16
    exact = convolution_by_loop(np.float64(image), np.float64(kernel), 1, 2, FEATURES)
    # Nothing but the result's own rounding to 8 bits, and float32's of 25 products.
    assert np.all(np.abs(np.float64(out) - exact) <= 2.0**-8 * np.abs(exact) + 1e-4)
    # In bfloat16 a sum of ones ends at 256.
    images = jnp.ones((2, 34, 34, FEATURES), jnp.bfloat16)
    kernel_gradient = jax.jit(jax.grad(lambda k: jnp.sum(depthwise(images, k)[:, 2:-2, 2:-2])))(kernel)
    assert kernel_gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(kernel_gradient), 1800)


def test_bias_is_added():
    image = jnp.float32(example(1, 8, 1)[0])
    conv = module(1, 1, 0, 1, use_bias=True)
    params = conv.init(jax.random.key(0), image)["params"]
    shifted = {**params, "bias": jnp.arange(FEATURES, dtype=jnp.float32)}
    difference = conv.apply({"params": shifted}, image) - conv.apply({"params": params}, image)
    np.testing.assert_allclose(difference, np.broadcast_to(np.arange(FEATURES), difference.shape), atol=1e-5)


def test_default_kernel_has_the_variance_of_he_fan_out():
    kernel = he_normal_fan_out(jax.random.key(0), (3, 3, 64, 128))
    # 73728 normal numbers: their standard deviation is known to 0.3 %.
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (3 * 3 * 128)), rel=0.02)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (4, 4, 3), r"\[B, H, W, C\]"),
        ({"groups": 2}, (1, 4, 4, 3), "divide"),
        ({"strides": (1, 1, 1)}, (1, 4, 4, 3), "strides must be"),
        ({"padding": "VALID"}, (1, 4, 4, 3), "padding must be"),
        ({"padding": (1, 1, 1)}, (1, 4, 4, 3), "padding must be"),
    ],
)
def test_refuses_what_it_cannot_do(options, shape, message):
    with pytest.raises(ValueError, match=message):
        Conv(FEATURES, 3, **options).init(jax.random.key(0), jnp.zeros(shape))
