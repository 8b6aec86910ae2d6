"""The crop: its values, its derivatives, and what they are where the crop has kinks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2f_jax.kernels import by_gather, crop_and_resize, flip_horizontal, flip_vertical
from tests.kernels import make_crop_goldens, oracles, versions

PADDINGS = ("edge", "constant", "symmetric", "reflect")
# (implementation, antialias): all ways through the kernel.
WAYS = [("gather", False), ("gather", True), ("matmul", False), ("matmul", True)]

BOXES = {
    "full": [0.0, 0.0, 1.0, 1.0],
    "inside": [0.12, 0.31, 0.77, 0.83],
    "mirrored in x": [0.1, 0.9, 0.8, 0.2],
    "mirrored in y": [0.95, 0.15, 0.2, 0.7],
    "mirrored in both": [1.0, 1.0, 0.0, 0.0],
    "partly outside": [-0.4, 0.5, 0.6, 1.3],
    "mirrored and partly outside": [0.5, 1.6, 1.4, 0.3],
    "larger than the image": [-0.6, -0.3, 1.7, 1.45],
    "outside below": [1.3, 0.2, 1.9, 0.6],
    "outside left": [0.2, -3.1, 0.7, -2.2],
    "tiny": [0.4, 0.6, 0.4001, 0.6002],
    "a point": [0.37, 0.61, 0.37, 0.61],
    "a line": [0.2, 0.45, 0.9, 0.45],
}
ALL_BOXES = np.array(list(BOXES.values()), np.float32)
# For derivatives: none of the 3 x 4 samples of a 5 x 7 image lies on a pixel's centre or on the image's edge.
SMOOTH_BOXES = np.array(
    [
        [0.127, 0.311, 0.773, 0.831],
        [0.913, 0.853, 0.157, 0.233],
        [-0.413, 0.517, 0.597, 1.337],
        [0.437, 0.613, 0.4371, 0.6132],
    ]
)


def picture(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


IMAGE = picture(5, 7, 2)


@pytest.fixture
def x64():
    with versions.x64():
        yield


@cache
def jitted(size, **options):
    """Cached, so that tests that ask for the same crop share its compilation."""
    return jax.jit(lambda images, boxes: crop_and_resize(images, boxes, size, **options))


# --- Values. ---


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("implementation", "antialias"), WAYS)
def test_values(implementation, antialias, padding):
    """All boxes at once, as K crops of one image; taller than it, and narrower."""
    size, options = (9, 4), {"padding": padding, "fill_value": 0.3, "antialias": antialias}
    crops = jitted(size, implementation=implementation, **options)(IMAGE, ALL_BOXES)
    assert crops.shape == (len(BOXES), *size, 2)
    assert crops.dtype == jnp.float32
    np.testing.assert_allclose(crops, oracles.crop_and_resize(IMAGE, ALL_BOXES, size, **options), atol=1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_antialiased_strong_reduction(padding):
    """Here an output pixel covers most of the image, and the kernel reaches beyond it."""
    image, boxes = picture(9, 8, 1), ALL_BOXES[:7]
    options = {"padding": padding, "fill_value": -0.4, "antialias": True}
    crops = jitted((1, 2), **options)(image, boxes)
    np.testing.assert_allclose(crops, oracles.crop_and_resize(image, boxes, (1, 2), **options), atol=1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_antialiased_boxes_larger_than_the_image(padding):
    """Their triangles are as wide as those of a box of the image's size."""
    box = np.array([-0.9, -1.0, 1.9, 2.3], np.float32)
    options = {"padding": padding, "fill_value": 0.0, "antialias": True}
    crop = jitted((1, 1), **options)(IMAGE, box)
    np.testing.assert_allclose(crop, oracles.crop_and_resize(IMAGE, box, (1, 1), **options), atol=1e-5)


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
def test_leading_axes(implementation):
    """One box per image, K boxes per image, two leading axes."""
    images = picture(2, 5, 7, 2)
    boxes = ALL_BOXES[:6].reshape(2, 3, 4)
    crop = jitted((3, 4), implementation=implementation)
    expected = oracles.crop_and_resize(images, boxes, (3, 4))
    np.testing.assert_allclose(crop(images, boxes), expected, atol=1e-5)
    np.testing.assert_allclose(crop(images, boxes[:, 1]), expected[:, 1], atol=1e-5)
    np.testing.assert_allclose(crop(images[:, None], boxes[:, 1:2]), expected[:, 1:2], atol=1e-5)
    np.testing.assert_allclose(crop(images[:, None], boxes[:, None]), expected[:, None], atol=1e-5)


def test_one_number_is_a_square():
    np.testing.assert_array_equal(jitted(3)(IMAGE, ALL_BOXES), jitted((3, 3))(IMAGE, ALL_BOXES))


@pytest.mark.parametrize(("implementation", "antialias"), WAYS)
def test_uint8(implementation, antialias):
    """Integers are read as they are; the crop has the boxes' type."""
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 2), np.uint8)
    options = {"padding": "constant", "fill_value": 100.0, "antialias": antialias}
    crops = jitted((3, 4), implementation=implementation, **options)(image, ALL_BOXES)
    assert crops.dtype == jnp.float32
    np.testing.assert_allclose(crops, oracles.crop_and_resize(image, ALL_BOXES, (3, 4), **options), atol=2e-3)


@pytest.mark.parametrize(("dtype", "rounding"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
@pytest.mark.parametrize(("implementation", "antialias"), WAYS)
def test_half_precision_rounds_once(implementation, antialias, dtype, rounding):
    """Low-precision images are averaged in float32: the only error is the result's last rounding."""
    image = jnp.asarray(IMAGE, dtype)
    crops = jitted((3, 4), implementation=implementation, antialias=antialias)(image, ALL_BOXES)
    assert crops.dtype == dtype
    expected = oracles.crop_and_resize(image.astype(jnp.float32), ALL_BOXES, (3, 4), antialias=antialias)
    np.testing.assert_allclose(crops.astype(jnp.float32), expected, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize(("implementation", "antialias"), WAYS)
@pytest.mark.parametrize("box_dtype", [np.float64, np.float32])
def test_float64(x64, box_dtype, implementation, antialias):
    """A float64 image is computed in float64, whatever the boxes come in."""
    image = picture(5, 7, 2).astype(np.float64) / 3.0
    boxes = SMOOTH_BOXES.astype(box_dtype)
    crops = jitted((3, 4), implementation=implementation, antialias=antialias)(image, boxes)
    assert crops.dtype == jnp.float64
    expected = oracles.crop_and_resize(image, boxes, (3, 4), antialias=antialias)
    np.testing.assert_allclose(crops, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("antialias", [False, True])
def test_auto_on_cpu(antialias, padding):
    """The same to the bit as the implementation that it stands for there."""
    options = {"padding": padding, "fill_value": 0.3, "antialias": antialias}
    crops = jitted((3, 4), implementation="gather", **options)(IMAGE, ALL_BOXES)
    np.testing.assert_array_equal(jitted((3, 4), implementation="auto", **options)(IMAGE, ALL_BOXES), crops)


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
def test_values_whatever_the_compiler_fuses(implementation):
    """Samples a rounding error away from a pixel's centre, in a program that is fused and contracted another way."""
    boxes = (np.random.default_rng(0).integers(-10, 31, (300, 4)) / 20).astype(np.float32)
    lowered = jitted((9, 7), implementation=implementation).lower(IMAGE, boxes)
    expected = oracles.crop_and_resize(IMAGE, boxes, (9, 7))
    for level in (0, 3):
        options = {"xla_backend_optimization_level": level, "xla_llvm_disable_expensive_passes": level == 0}
        np.testing.assert_allclose(lowered.compile(compiler_options=options)(IMAGE, boxes), expected, atol=1e-5)


# --- Other people's crops. ---


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (9, 7)], ids=["smaller", "taller"])
def test_like_scale_and_translate(size, antialias):
    """`jax.image` and we mean the same wherever the box is inside the image."""
    boxes = np.array([BOXES["full"], BOXES["inside"], [0.4, 0.05, 0.5, 0.95]], np.float32)

    def reference(box):
        pixels = jnp.array(IMAGE.shape[:2], jnp.float32)
        scale = jnp.array(size, jnp.float32) / ((box[2:] - box[:2]) * pixels)
        translation = -box[:2] * pixels * scale
        options = {"method": "bilinear", "antialias": antialias}
        return jax.image.scale_and_translate(IMAGE, (*size, 2), (0, 1), scale, translation, **options)

    crops = jitted(size, padding="edge", antialias=antialias)(IMAGE, boxes)
    np.testing.assert_allclose(crops, jax.jit(jax.vmap(reference))(boxes), atol=2e-5)


def torch_grid(lo, hi, outputs):
    """One axis of `torch.nn.functional.affine_grid(align_corners=False)`, whose -1 and 1 are the image's edges."""
    return 2.0 * (lo + (hi - lo) * (np.arange(outputs) + 0.5) / outputs) - 1.0


TORCH_PADDINGS = make_crop_goldens.TORCH_PADDINGS


@pytest.mark.parametrize("padding", TORCH_PADDINGS)
def test_like_grid_sample_by_its_definition(padding):
    crops = jitted((3, 4), padding=padding, implementation="gather")(IMAGE, ALL_BOXES)
    for name, box, crop in zip(BOXES, BOXES.values(), crops, strict=True):
        grid = torch_grid(box[0], box[2], 3), torch_grid(box[1], box[3], 4)
        expected = oracles.grid_sample(IMAGE, *grid, TORCH_PADDINGS[padding])
        np.testing.assert_allclose(crop, expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("padding", TORCH_PADDINGS)
def test_like_torch(padding):
    torch = pytest.importorskip("torch")
    crops = jitted((3, 4), padding=padding, implementation="gather")(IMAGE, ALL_BOXES)
    for name, box, crop in zip(BOXES, BOXES.values(), crops, strict=True):
        grid = np.stack(np.meshgrid(torch_grid(box[1], box[3], 4), torch_grid(box[0], box[2], 3)), axis=-1)
        expected = torch.nn.functional.grid_sample(
            torch.from_numpy(IMAGE.transpose(2, 0, 1)[None].copy()),
            torch.from_numpy(grid[None].astype(np.float32)),
            padding_mode=TORCH_PADDINGS[padding],
            align_corners=False,
        )[0]
        np.testing.assert_allclose(crop, expected.numpy().transpose(1, 2, 0), atol=1e-5, err_msg=name)


GOLDENS = np.load(make_crop_goldens.PATH)


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
@pytest.mark.parametrize("size", make_crop_goldens.SIZES)
@pytest.mark.parametrize("padding", TORCH_PADDINGS)
def test_like_the_stored_grid_sample(x64, padding, size, implementation):
    """Values and both gradients, without torch."""
    shape = make_crop_goldens.SIZES[size]

    @jax.jit
    def everything(image, boxes):
        crops, pull = jax.vjp(jitted(shape, padding=padding, implementation=implementation), image, boxes)
        return crops, *pull(jnp.asarray(make_crop_goldens.cotangent(shape)))

    found = everything(make_crop_goldens.image(), make_crop_goldens.boxes())
    for name, values, atol in zip(("values", "image_gradient", "box_gradient"), found, (1e-9, 1e-9, 1e-8), strict=True):
        np.testing.assert_allclose(values, GOLDENS[f"grid_sample/{padding}/{size}/{name}"], atol=atol, err_msg=name)


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
@pytest.mark.parametrize("size", make_crop_goldens.SIZES)
@pytest.mark.parametrize("kind", ["plain", "antialias"])
def test_like_the_stored_scale_and_translate(x64, kind, size, implementation):
    crop = jitted(make_crop_goldens.SIZES[size], antialias=kind == "antialias", implementation=implementation)
    crops = crop(make_crop_goldens.image(), make_crop_goldens.boxes()[[0, 3]])
    np.testing.assert_allclose(crops, GOLDENS[f"scale_and_translate/{kind}/{size}/values"], atol=1e-9)


# --- Derivatives. ---


def assert_derivatives(function, arguments):
    """Forward and reverse mode, of one program, against difference quotients in a random direction."""
    rng = np.random.default_rng(7)
    direction = [rng.standard_normal(argument.shape) for argument in arguments]
    ahead, behind = (function(*[a + s * d for a, d in zip(arguments, direction, strict=True)]) for s in (1e-6, -1e-6))
    expected = jax.tree.map(lambda a, b: (a - b) / 2e-6, ahead, behind)
    weights = jax.tree.map(lambda out: rng.standard_normal(out.shape), expected)

    @jax.jit
    def both(arguments, direction):
        _, pull = jax.vjp(function, *arguments)
        return jax.jvp(function, arguments, direction)[1], pull(weights)

    forward, reverse = both(tuple(arguments), tuple(direction))
    for found, value in zip(jax.tree.leaves(forward), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)

    def product(a, b):
        return sum(np.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    np.testing.assert_allclose(product(reverse, direction), product(weights, expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("antialias", "padding"), [(False, "symmetric"), (True, "edge"), (True, "constant"), (True, "symmetric")]
)
def test_gradients(x64, antialias, padding):
    """First derivatives in image and boxes, forward and reverse; the other ways are compared with these, or with
    difference quotients, below."""
    crop = jitted((4, 5), implementation="gather", antialias=antialias, padding=padding, fill_value=0.4)
    assert_derivatives(crop, (IMAGE[..., :1].astype(np.float64), SMOOTH_BOXES))


@pytest.mark.parametrize(("implementation", "antialias"), [("gather", False), ("matmul", True)])
def test_second_gradients(x64, implementation, antialias):
    """Derivatives of both gradients in both arguments: image by box, box by image, y by x."""
    crop = jitted((4, 5), implementation=implementation, antialias=antialias, padding="constant", fill_value=0.4)
    weights = picture(4, 4, 5, 1, seed=3).astype(np.float64)

    @jax.jit
    def gradients(image, boxes):
        return jax.grad(lambda i, b: jnp.sum(weights * crop(i, b)), argnums=(0, 1))(image, boxes)

    assert_derivatives(gradients, (IMAGE[..., :1].astype(np.float64), SMOOTH_BOXES))


@pytest.mark.skipif(not by_gather.TURNS, reason="taken at once before jax 0.10")
@pytest.mark.parametrize(("crops", "antialias"), [((), False), ((5,), True)], ids=["one box", "five boxes, antialias"])
def test_derivatives_taken_crop_after_crop(x64, monkeypatch, antialias, crops):
    """As large crops are on CPU: forward, reverse and second derivatives are those of a whole batch at once."""
    rng = np.random.default_rng(5)
    images = rng.uniform(size=(6, 5, 7, 1))
    boxes = SMOOTH_BOXES[rng.integers(0, len(SMOOTH_BOXES), (6, *crops))]
    weights = rng.uniform(size=(6, *crops, 4, 5, 1))

    def derivatives():
        def loss(images, boxes):
            return jnp.sum(weights * jnp.sin(crop_and_resize(images, boxes, (4, 5), antialias=antialias)))

        def all_of_them(images, boxes):
            along = (jnp.cos(images), jnp.cos(boxes))
            return jax.jvp(jax.value_and_grad(loss, argnums=(0, 1)), (images, boxes), along)

        return jax.jit(all_of_them).lower(images, boxes).compile()

    at_once = derivatives()
    monkeypatch.setattr(by_gather, "CACHE", 0)
    in_turn = derivatives()
    assert "while" in in_turn.as_text() and in_turn.as_text().count("while") > at_once.as_text().count("while")
    for a, b in zip(jax.tree.leaves(in_turn(images, boxes)), jax.tree.leaves(at_once(images, boxes)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


# Every sample of a 4 x 5 crop of a 4 x 5 image lies on a pixel's centre, inside the image or beyond it.
KINKS = {
    "full": [0.0, 0.0, 1.0, 1.0],
    "mirrored in x": [0.0, 1.0, 1.0, 0.0],
    "mirrored in both": [1.0, 1.0, 0.0, 0.0],
    "shifted": [0.25, -0.4, 1.25, 0.6],
    "shifted and mirrored": [-0.25, 1.2, 0.75, 0.2],
    "outside": [1.25, 0.0, 2.25, 1.0],
}


@cache
def box_jacobian(**options):
    return jax.jit(jax.jacfwd(lambda image, box: crop_and_resize(image, box, image.shape[:2], **options), argnums=1))


def differences(function, box, step):
    """Difference quotients from one side, exact for a function that is linear on that side. [..., 4]."""
    columns = [(function(box + step * unit) - function(box)) / step for unit in np.eye(4)]
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("box", KINKS.values(), ids=KINKS.keys())
@pytest.mark.parametrize("implementation", ["gather", "matmul"])
@pytest.mark.parametrize("padding", ["edge", "constant"])
def test_kinks_have_the_derivative_from_the_right(x64, padding, implementation, box):
    """Floor/ceil interpolation would have 0 here, autodiff of abs or max an average of both sides."""
    image, box = picture(4, 5, 1).astype(np.float64), np.array(box)

    def expected(box):
        return oracles.crop_and_resize(image, box, (4, 5), padding=padding, fill_value=0.3)

    jacobian = box_jacobian(padding=padding, fill_value=0.3, implementation=implementation)(image, box)
    np.testing.assert_allclose(jacobian, differences(expected, box, 1e-7), atol=1e-6)


def test_kinks_have_two_sides(x64):
    """What the test above tells apart: from the left the derivative is another one."""
    image, box = picture(4, 5, 1).astype(np.float64), np.array(KINKS["full"])

    def crop(box):
        return oracles.crop_and_resize(image, box, (4, 5))

    assert np.abs(differences(crop, box, 1e-7) - differences(crop, box, -1e-7)).max() > 0.1


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
def test_kinks_when_reflected(x64, implementation):
    """Inside the image from the right, as with the other paddings; the mirrored image is seen in a mirror: from the
    left."""
    image = picture(4, 5, 1).astype(np.float64)

    def crop(box):
        return oracles.crop_and_resize(image, box, (4, 5), padding="symmetric")

    for box, side in (([0.0, 0.0, 1.0, 1.0], 1e-7), ([1.0, 1.0, 2.0, 2.0], -1e-7)):
        box = np.array(box)
        jacobian = box_jacobian(padding="symmetric", implementation=implementation)(image, box)
        np.testing.assert_allclose(jacobian, differences(crop, box, side), atol=1e-6)


@pytest.mark.parametrize("box", [[1.25, 0.1, 2.25, 0.9], [-3.3, 0.1, -0.2, 0.9], [-0.1, 0.1, -0.1, 0.9]])
@pytest.mark.parametrize("implementation", ["gather", "matmul"])
def test_no_derivative_beyond_the_edge(x64, implementation, box):
    """Rows that are all beyond the image are its last row, wherever exactly they are."""
    image = picture(4, 5, 1).astype(np.float64)
    jacobian = box_jacobian(padding="edge", fill_value=0.3, implementation=implementation)(image, np.array(box))
    np.testing.assert_array_equal(jacobian[..., 0::2], np.zeros_like(jacobian[..., 0::2]))
    assert jnp.abs(jacobian[..., 1::2]).max() > 0.1


@pytest.mark.parametrize(("padding", "antialias"), [("symmetric", False), ("constant", True)])
def test_both_methods_have_the_same_derivatives(x64, padding, antialias):
    """Of all boxes, those with kinks too, in image and box."""
    image = picture(4, 5, 1).astype(np.float64)
    boxes = np.array([*BOXES.values(), *KINKS.values(), *SMOOTH_BOXES], np.float64)
    weights = picture(len(boxes), 4, 5, 1, seed=4).astype(np.float64)

    def gradients(implementation):
        crop = jitted((4, 5), padding=padding, implementation=implementation, fill_value=0.3, antialias=antialias)

        @jax.jit
        def derivatives(image, boxes):
            return jax.vjp(crop, image, boxes)[1](weights)

        return derivatives(image, boxes)

    for gather, matmul in zip(gradients("gather"), gradients("matmul"), strict=True):
        assert jnp.abs(gather).max() > 0.1
        np.testing.assert_allclose(gather, matmul, atol=1e-10)


FAR = [[1e6, 0.0, 1e6 + 1, 1.0], [0.0, -1e9, 1.0, 1e9], [-1e9, 2.0, -1e9, 3.0], [0.5, 0.5, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("padding", "implementation", "antialias"),
    [
        ("edge", "gather", True),
        ("constant", "gather", True),
        ("symmetric", "gather", True),
        ("edge", "gather", False),
        ("symmetric", "matmul", False),
    ],
)
def test_finite_everywhere(padding, implementation, antialias):
    """Values and gradients in float32: without area, mirrored, tiny, outside, and very far outside."""
    boxes = np.concatenate([ALL_BOXES, np.array([*KINKS.values(), *FAR], np.float32)])
    crop = jitted((4, 5), padding=padding, implementation=implementation, antialias=antialias, fill_value=0.3)

    @jax.jit
    def everything(image, boxes):
        crops, pull = jax.vjp(crop, image, boxes)
        return crops, pull(jnp.ones_like(crops)), jax.jvp(crop, (image, boxes), (image, jnp.ones_like(boxes)))

    assert all(np.isfinite(values).all() for values in jax.tree.leaves(everything(IMAGE, boxes)))


@pytest.mark.parametrize(("implementation", "padding"), [("gather", "constant"), ("matmul", "edge")])
def test_integer_images_have_a_box_gradient(implementation, padding):
    """The same as that of the image as floats."""
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 2), np.uint8)
    crop = jitted((3, 4), implementation=implementation, padding=padding, fill_value=100.0)

    @jax.jit
    def gradient(image):
        return jax.grad(lambda boxes: jnp.sum(jnp.square(crop(image, boxes) / 255)))(ALL_BOXES)

    of_floats = gradient(image.astype(np.float32))
    assert jnp.abs(of_floats).max() > 1.0
    np.testing.assert_allclose(gradient(image), of_floats, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
def test_integer_images_with_a_tangent_of_their_own(implementation):
    """JAX has a type without values for it; it must not enter the derivative."""
    image, box = np.arange(70, dtype=np.uint8).reshape(5, 7, 2), ALL_BOXES[1]
    tangents = (np.zeros(image.shape, jax.dtypes.float0), jnp.array([1.0, 0.0, 1.0, 0.0]))
    _, tangent = jax.jvp(jitted((3, 4), implementation=implementation), (image, box), tangents)
    np.testing.assert_allclose(tangent, np.full((3, 4, 2), 5 * 14.0), rtol=1e-4)


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
def test_gradients_have_their_arguments_types(implementation):
    crop = jitted((3, 4), implementation=implementation)
    image, box = jnp.asarray(IMAGE, jnp.bfloat16), jnp.asarray(BOXES["inside"], jnp.float32)
    gradients = jax.jit(jax.grad(lambda i, b: crop(i, b).sum(), argnums=(0, 1)))(image, box)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32]


# --- Identities. ---

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
SIDE = st.floats(-0.75, 1.75, width=32)
any_box = st.tuples(SIDE, SIDE, SIDE, SIDE).map(lambda box: np.array(box, np.float32))
INSIDE = st.floats(0.0, 1.0, width=32)
inside_box = st.tuples(INSIDE, INSIDE, INSIDE, INSIDE).map(lambda box: np.array(box, np.float32))
ways = st.sampled_from([("gather", False), ("gather", True)])  # "matmul" has the same values, see above
paddings = st.sampled_from(PADDINGS)

CROPS = {
    (size, padding, implementation, antialias): jitted(
        size, padding=padding, implementation=implementation, antialias=antialias
    )
    for size in ((8, 6), (4, 4))
    for padding in PADDINGS
    for implementation, antialias in [("gather", False), ("gather", True)]
}


@quick
@given(seeds, paddings, ways)
def test_full_box_is_the_identity(seed, padding, way):
    image = picture(8, 6, 2, seed=seed)
    np.testing.assert_array_equal(CROPS[(8, 6), padding, *way](image, np.array([0, 0, 1, 1], np.float32)), image)


@quick
@given(st.floats(-10, 10, width=32), inside_box, paddings, ways)
def test_constant_stays_constant_inside(value, box, padding, way):
    """With padding "constant" only where no tap reaches beyond the outermost pixels' centres."""
    if padding == "constant":
        box = np.float32(0.375) + np.float32(0.25) * box
    crop = CROPS[(4, 4), padding, *way](np.full((8, 6, 2), value, np.float32), box)
    np.testing.assert_allclose(crop, np.full(crop.shape, value), rtol=1e-5, atol=1e-6)


@quick
@given(st.floats(-10, 10, width=32), any_box, st.sampled_from(["edge", "symmetric"]), ways)
def test_constant_stays_constant_anywhere(value, box, padding, way):
    crop = CROPS[(4, 4), padding, *way](np.full((8, 6, 2), value, np.float32), box)
    np.testing.assert_allclose(crop, np.full(crop.shape, value), rtol=1e-5, atol=1e-6)


@quick
@given(seeds, st.integers(0, 4), st.integers(0, 2), paddings, ways)
def test_whole_pixel_shifts_are_slices(seed, top, left, padding, way):
    image = picture(8, 6, 2, seed=seed)
    box = np.array([top / 8, left / 6, (top + 4) / 8, (left + 4) / 6], np.float32)
    expected = image[top : top + 4, left : left + 4]
    np.testing.assert_allclose(CROPS[(4, 4), padding, *way](image, box), expected, atol=2e-6)


@quick
@given(seeds, any_box, paddings, ways)
def test_flips_commute(seed, box, padding, way):
    """A mirrored box is a mirrored crop; a mirrored box in a mirrored image is the crop again."""
    image, crop = picture(8, 6, 2, seed=seed), CROPS[(4, 4), padding, *way]
    expected = crop(image, box)
    np.testing.assert_allclose(crop(image, flip_horizontal(box)), expected[:, ::-1], atol=2e-5)
    np.testing.assert_allclose(crop(image, flip_vertical(box)), expected[::-1], atol=2e-5)
    np.testing.assert_allclose(crop(image, box[[2, 1, 0, 3]]), expected[::-1], atol=2e-5)
    mirrored = np.array([box[0], 1 - box[1], box[2], 1 - box[3]], np.float32)
    np.testing.assert_allclose(crop(image[:, ::-1], mirrored), expected, atol=2e-5)


@quick
@given(seeds, any_box, st.floats(-3, 3, width=32), paddings, ways)
def test_linear_in_the_image(seed, box, factor, padding, way):
    a, b, crop = picture(8, 6, 2, seed=seed), picture(8, 6, 2, seed=seed + 1), CROPS[(4, 4), padding, *way]
    np.testing.assert_allclose(crop(a + factor * b, box), crop(a, box) + factor * crop(b, box), atol=1e-5)


@quick
@given(seeds, any_box, st.sampled_from(["edge", "symmetric"]), ways)
def test_output_within_the_input_range(seed, box, padding, way):
    """An average can not leave the range, but for the last digit."""
    image = picture(8, 6, 2, seed=seed)
    crop = CROPS[(4, 4), padding, *way](image, box)
    assert crop.min() >= image.min() - 1e-6
    assert crop.max() <= image.max() + 1e-6


@quick
@given(seeds, st.permutations(range(3)), ways)
def test_batch_order_does_not_matter(seed, order, way):
    images, order = picture(3, 8, 6, 2, seed=seed), np.array(order)
    boxes = np.random.default_rng(seed).uniform(-0.3, 1.3, (3, 4)).astype(np.float32)
    crop = CROPS[(4, 4), "edge", *way]
    np.testing.assert_array_equal(crop(images[order], boxes[order]), crop(images, boxes)[order])


# --- What is refused, and what is not compiled again. ---


@pytest.mark.parametrize(
    ("images", "boxes", "size", "options", "message"),
    [
        ((7, 2), (4,), 3, {}, r"images must be \[..., H, W, C\], got shape \(7, 2\)"),
        ((5, 7, 2), (), 3, {}, r"boxes must be \[..., 4\], got shape \(\)"),
        ((5, 7, 2), (5,), 3, {}, r"boxes must be \[..., 4\], got shape \(5,\)"),
        ((2, 5, 7, 2), (3, 4), 3, {}, r"got boxes \(3, 4\) for images \(2, 5, 7, 2\)"),
        ((2, 5, 7, 2), (4,), 3, {}, r"got boxes \(4,\) for images \(2, 5, 7, 2\)"),
        ((5, 7, 2), (2, 3, 4), 3, {}, r"got boxes \(2, 3, 4\) for images \(5, 7, 2\)"),
        ((5, 7, 2), (4,), 3, {"padding": "wrap"}, "padding must be one of .* got 'wrap'$"),
        ((5, 7, 2), (4,), 3, {"padding": "zeros"}, "got 'zeros'; use padding='constant'$"),
        ((5, 7, 2), (4,), 3, {"padding": "border"}, "got 'border'; use padding='edge'$"),
        ((5, 7, 2), (4,), 3, {"padding": "reflection"}, "got 'reflection'; use padding='symmetric', or 'reflect' for"),
        ((5, 7, 2), (4,), 3, {"implementation": "dot"}, "implementation must be one of .* got 'dot'"),
        ((5, 7, 2), (4,), 3, {"method": "cubic"}, r"method must be one of \('linear', 'nearest'\), got 'cubic'$"),
        ((5, 7, 2), (4,), 3, {"method": "bilinear"}, "got 'bilinear'; use method='linear'"),
        ((5, 7, 2), (4,), 3, {"method": "gather"}, "got 'gather'; use implementation='gather'"),
        ((5, 7, 2), (4,), 3, {"method": "nearest", "antialias": True}, "method='nearest' takes one pixel each"),
        ((5, 7, 2), (4,), "ab", {}, "output_size must be .* got 'ab'"),
        ((5, 7, 2), (4,), 2.5, {}, "output_size must be .* got 2.5"),
        ((0, 7, 2), (4,), 2, {}, "images must have at least one pixel"),
        ((5, 7, 2), (4,), 0, {}, "output_size must be .* got 0"),
        ((5, 7, 2), (4,), (3, -1), {}, r"output_size must be .* got \(3, -1\)"),
        ((5, 7, 2), (4,), (3,), {}, r"output_size must be .* got \(3,\)"),
        ((5, 7, 2), (4,), (3, 3, 3), {}, r"output_size must be .* got \(3, 3, 3\)"),
    ],
)
def test_refusals_state_the_rule_and_the_value(images, boxes, size, options, message):
    with pytest.raises(ValueError, match=message):
        crop_and_resize(np.zeros(images), np.zeros(boxes), size, **options)


@pytest.mark.parametrize("antialias", [False, True])
def test_box_values_do_not_retrace(antialias):
    traces = []

    @jax.jit
    def crop(images, boxes):
        traces.append(None)
        return crop_and_resize(images, boxes, 3, antialias=antialias)

    for box in ALL_BOXES:
        crop(IMAGE, box)
    assert len(traces) == 1
    crop(IMAGE[:4], ALL_BOXES[0])
    assert len(traces) == 2
