"""The crop is the same everywhere: by either formulation, on sharded arrays, exported with symbolic shapes."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from c2f_jax.kernels import _sample, crop_and_resize, outside_mask, paste, roi_align

PADDINGS = ("edge", "constant", "symmetric", "reflect")
IMPLEMENTATIONS = ("gather", "matmul")
# On an image of 8 x 6: exactly on centres, not quite (thirds and tenths), mirrored, beyond it, without area, not a box.
BOXES = np.array(
    [
        [0.0, 0.0, 1.0, 1.0],
        [0.25, 0.5, 0.75, 1.0],
        [0.1, 0.3, 0.9, 0.7],
        [1 / 3, 1.0, 2 / 3, 0.0],
        [-0.5, 0.2, 0.5, 1.4],
        [1.1, -0.9, 1.9, -0.2],
        [-3.0, 0.1, 4.0, 0.9],
        [0.4, 0.25, 0.4, 0.25],
        [np.nan, 0.1, 0.6, 0.9],
        [0.2, -np.inf, 0.6, 0.9],
    ],
    np.float32,
)


def picture(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@cache
def everything(implementation, size, **options):
    """(values, tangent, gradients of a loss that spreads what is not finite), jitted."""

    def of(image, boxes):
        crop = partial(crop_and_resize, output_size=size, implementation=implementation, **options)
        crops, tangent = jax.jvp(crop, (image, boxes), (image, jnp.ones_like(boxes)))
        gradients = jax.grad(lambda i, b: jnp.sum(jnp.square(crop(i, b))), argnums=(0, 1))(image, boxes)
        return {"values": crops, "tangent": tangent, "gradients": gradients}

    return jax.jit(of)


# --- What is not finite stays where it is. ---


def not_finite(where):
    """An image of 8 x 6 with NaN and infinities."""
    image = picture(8, 6, 2)
    for value, (i, j) in zip(itertools.cycle([np.nan, np.inf, -np.inf]), where, strict=False):
        image[i, j, (i + j) % 2] = value
    return image


PLACES = {
    "a corner": [(0, 0)],
    "edges": [(0, 3), (7, 2), (4, 0), (3, 5)],
    "inside": [(3, 2), (4, 2)],
    "everywhere": [(i, j) for i in range(8) for j in range(6) if (i * j) % 3 == 1],
}


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
def test_both_implementations_keep_what_is_not_finite_in_its_place(padding, antialias):
    """NaN, infinities and their signs in values, tangents and gradients, for boxes that are not finite too."""
    options = {"padding": padding, "antialias": antialias, "fill_value": 0.3}
    for where in PLACES.values():
        image = not_finite(where)
        gather, matmul = (everything(way, (4, 3), **options)(image, BOXES) for way in IMPLEMENTATIONS)
        assert not np.isfinite(gather["values"]).all() and np.isfinite(gather["values"]).any()
        for a, b in zip(jax.tree.leaves(gather), jax.tree.leaves(matmul), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_tap_without_weight_does_not_matter(padding, implementation):
    """The full box is the identity, NaN for NaN, though every output has a second tap: on its neighbour, weighing 0."""
    for where in PLACES.values():
        image = not_finite(where)
        for antialias in (False, True):
            crop = everything(implementation, (8, 6), padding=padding, antialias=antialias)(image, BOXES[:1])
            np.testing.assert_array_equal(crop["values"][0], image)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_lies_beyond_the_box_does_not_matter(implementation):
    """Neither to the value nor to any derivative, with a NaN in every pixel that no tap reads."""
    image, clean = picture(8, 6, 2), picture(8, 6, 2)
    image[:2] = image[6:] = image[:, :1] = image[:, 5:] = np.nan
    box = np.array([[0.3, 0.25, 0.7, 0.75]], np.float32)  # samples from 1.9 + 0.5 to 5.1 - 0.5, and 1 + 0.5 to 4 - 0.5
    for a, b in zip(
        *(jax.tree.leaves(everything(implementation, (4, 3))(i, box)) for i in (image, clean)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_fill_value_that_is_not_finite_stays_outside():
    crops = crop_and_resize(picture(8, 6, 2), BOXES[:2], (4, 3), padding="constant", fill_value=np.nan)
    assert np.isfinite(crops).all()
    box = jnp.array([-0.5, 0.0, 0.5, 1.0])
    crop = crop_and_resize(picture(8, 6, 1), box, (8, 6), padding="constant", fill_value=np.nan)
    np.testing.assert_array_equal(jnp.isnan(crop[..., 0]), outside_mask(box, (8, 6)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_second_derivatives_where_a_weight_is_0(implementation):
    """The image's gradient changes with the box although one of two taps has no weight yet."""
    with jax.enable_x64(True):
        image, box = picture(4, 5, 1).astype(np.float64), jnp.array([0.0, 0.0, 1.0, 1.0], jnp.float64)
        weights = picture(4, 5, 1, seed=1).astype(np.float64)

        @jax.jit
        def gradient(box):
            crop = partial(crop_and_resize, boxes=box, output_size=(4, 5), implementation=implementation)
            return jax.grad(lambda image: jnp.sum(weights * crop(image)))(image)

        way = jnp.array([1.0, 0.5, 1.0, 0.5])
        step = 1e-7
        expected = (gradient(box + step * way) - gradient(box)) / step
        np.testing.assert_allclose(jax.jvp(gradient, (box,), (way,))[1], expected, atol=1e-5)


# --- Types. ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "bool", "bfloat16", "float32"])
def test_strict_promotion(dtype, implementation):
    image = jnp.asarray(picture(5, 7, 2) * 100, dtype)
    with jax.numpy_dtype_promotion("strict"):
        for options in ({}, {"padding": "constant", "fill_value": 0.5, "antialias": True}, {"gradient_blur": 2.0}):
            crop = jax.jit(partial(crop_and_resize, image, output_size=3, implementation=implementation, **options))
            assert crop(BOXES[:2]).dtype == (dtype if "float" in dtype else "float32")
            gradient = jax.grad(lambda boxes, crop=crop: jnp.sum(crop(boxes).astype(jnp.float32)))(
                jnp.asarray(BOXES[:2])
            )
            assert gradient.dtype == "float32"


def test_lists_and_numpy_integers():
    image = picture(5, 7, 2)
    expected = crop_and_resize(image, BOXES[1], (3, 4))
    size = np.array([3, 4])
    for boxes in (BOXES[1].tolist(), tuple(BOXES[1].tolist()), BOXES[1].astype(np.float16)):
        for sides in (size, (size[0], size[1]), [3, 4]):
            np.testing.assert_array_equal(crop_and_resize(image, boxes, sides), expected)
    np.testing.assert_array_equal(
        crop_and_resize(image.tolist(), BOXES[1], np.int64(3)), crop_and_resize(image, BOXES[1], 3)
    )
    np.testing.assert_array_equal(crop_and_resize(image, [0, 0, 1, 1], (5, 7)), image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.ones((5, 7, 2), np.complex64)}, "images must be real, got complex64: crop .real and .imag"),
        ({"boxes": np.ones(4, np.complex64)}, "boxes must be real"),
        ({"padding": "border"}, "padding must be one of .*, got 'border'; that is 'edge' here"),
        ({"padding": "zeros"}, "'zeros'; that is 'constant' here"),
        ({"padding": "reflection"}, "'reflection'; that is 'symmetric' here"),
        ({"method": "bilinear"}, "'bilinear'; that is 'linear' here"),
        ({"method": "matmul"}, "what chooses the formulation is implementation='matmul'"),
        ({"method": "nearest", "antialias": True}, "it takes no antialias"),
        ({"gradient_blur": -1.0}, "gradient_blur must be"),
        ({"output_size": 3.0}, "output_size must be .* got 3.0"),
        ({"output_size": "34"}, "output_size must be .* got '34'"),
    ],
)
def test_refusals_name_the_remedy(change, message):
    arguments = {"images": picture(5, 7, 2), "boxes": BOXES[1], "output_size": 3}
    with pytest.raises(ValueError, match=message):
        crop_and_resize(**arguments | change)


def test_a_traced_size_is_refused():
    with pytest.raises(ValueError, match="output_size must be .* not traced"):
        jax.jit(lambda size: crop_and_resize(picture(5, 7, 2), BOXES[1], size))(3)


# --- Meshes with explicit axes. ---

DEVICES = 4
needs_explicit = pytest.mark.skipif(not hasattr(jax.sharding, "auto_axes"), reason="explicit axes: from jax 0.7.2")


@pytest.fixture
def explicit():
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:DEVICES])
    with jax.set_mesh(mesh):
        yield mesh


def derivatives(images, boxes, **options):
    crop = partial(crop_and_resize, output_size=(4, 3), padding="constant", fill_value=0.3, **options)
    gradients = jax.grad(lambda i, b: jnp.sum(jnp.sin(crop(i, b))), argnums=(0, 1))(images, boxes)
    of_boxes = jax.grad(lambda b: jnp.sum(jnp.sin(crop(images, b))))(boxes)
    return crop(images, boxes), *gradients, of_boxes


@needs_explicit
@pytest.mark.parametrize("cache", [_sample.CACHE, 0], ids=["at once", "in turn"])
@pytest.mark.parametrize(
    "options", [{}, {"antialias": True}, {"implementation": "matmul"}, {"gradient_blur": 2.0}], ids=str
)
def test_explicit_axes(explicit, monkeypatch, options, cache):
    """Values and gradients are those without a mesh, and lie as what they are of."""
    monkeypatch.setattr(_sample, "CACHE", cache)
    images, boxes = picture(8, 6, 5, 2), np.random.default_rng(1).uniform(-0.2, 1.2, (8, 3, 4)).astype(np.float32)
    function = jax.jit(partial(derivatives, **options))
    expected = function(images, boxes)
    sharded = jax.device_put((images, boxes), NamedSharding(explicit, PartitionSpec("data")))
    found = function(*sharded)
    for a, b in zip(found, expected, strict=True):
        assert jax.typeof(a).sharding.spec[0] == "data"
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    compiled = function.lower(*sharded).compile().as_text()
    assert not [name for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if name in compiled]


@needs_explicit
@pytest.mark.parametrize(
    ("image_spec", "box_spec", "spec"),
    [
        (("data",), (), ("data", None, None, None, None)),
        ((), ("data",), ("data", None, None, None, None)),
        ((), (None, "data"), (None, "data", None, None, None)),
        (("data",), (None, "data"), ("data", None, None, None, None)),
        ((None, "data"), (), (None, None, None, None, None)),
        ((None, None, None, "data"), (), (None, None, None, None, "data")),
    ],
    ids=["images", "boxes", "crops of an image", "images and crops", "rows", "channels"],
)
def test_explicit_axes_of_some(explicit, image_spec, box_spec, spec):
    images, boxes = picture(4, 8, 5, 8), np.random.default_rng(1).uniform(-0.2, 1.2, (4, 8, 4)).astype(np.float32)
    function = jax.jit(derivatives)
    images_there = jax.device_put(images, NamedSharding(explicit, PartitionSpec(*image_spec)))
    found = function(images_there, jax.device_put(boxes, NamedSharding(explicit, PartitionSpec(*box_spec))))
    assert jax.typeof(found[0]).sharding.spec == PartitionSpec(*spec)
    for a, b in zip(found, function(images, boxes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@needs_explicit
def test_explicit_axes_of_the_others(explicit):
    """Two leading axes, outside of jit, nearest pixels, pasting, RoIAlign, and under vmap."""
    images, boxes = picture(4, 2, 6, 5, 2), np.random.default_rng(1).uniform(0, 1, (4, 2, 4)).astype(np.float32)
    there = jax.device_put((images, boxes), NamedSharding(explicit, PartitionSpec("data")))
    crop = partial(crop_and_resize, output_size=4)
    for function in (
        crop,
        partial(crop, method="nearest", padding="constant"),
        jax.vmap(crop),
        lambda i, b: paste(crop(i, b), b, (6, 5))[0],
        lambda _, b: roi_align(images[0], b[:, 0] * 5, 3, box_indices=np.zeros(4, np.int32)),
    ):
        found = function(*there)
        np.testing.assert_allclose(found, function(images, boxes), rtol=1e-4, atol=1e-5)


# --- Exports. ---


def exported(function, *shapes, constraints=()):
    scope = export.SymbolicScope(constraints)
    arguments = [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), jnp.float32) for shape in shapes]
    made = export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(*arguments)
    return export.deserialize(made.serialize())


@pytest.mark.parametrize("cache", [_sample.CACHE, 0], ids=["at once", "in turn"])
@pytest.mark.parametrize(
    "options",
    [{}, {"antialias": True}, {"implementation": "matmul"}, {"implementation": "gather"}, {"gradient_blur": 2.0}],
    ids=str,
)
def test_symbolic_batch_and_crops(monkeypatch, options, cache):
    """Values and gradients for all platforms in one artifact, for any number of images and of crops."""
    monkeypatch.setattr(_sample, "CACHE", cache)
    function = partial(derivatives, **options)
    called = exported(function, "b, 6, 5, 2", "b, k, 4")
    images, boxes = picture(2, 6, 5, 2), np.random.default_rng(1).uniform(-0.2, 1.2, (2, 3, 4)).astype(np.float32)
    for a, b in zip(called.call(images, boxes), jax.jit(function)(images, boxes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "reflect"},
        {"implementation": "matmul", "padding": "symmetric"},
        {"antialias": True, "padding": "symmetric"},
        {"antialias": True, "implementation": "matmul"},
    ],
    ids=str,
)
def test_symbolic_height_and_width(options):
    def function(images, boxes):
        crop = partial(crop_and_resize, output_size=(4, 3), **options)
        return crop(images, boxes), *jax.grad(lambda i, b: jnp.sum(jnp.sin(crop(i, b))), argnums=(0, 1))(images, boxes)

    called = exported(function, "b, h, w, 2", "b, 4", constraints=("h >= 2", "w >= 2"))
    boxes = np.random.default_rng(1).uniform(-0.2, 1.2, (2, 4)).astype(np.float32)
    for shape in ((9, 14), (2, 3)):
        images = picture(2, *shape, 2)
        for a, b in zip(called.call(images, boxes), jax.jit(function)(images, boxes), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_symbolic_height_is_refused_where_its_taps_can_not_be_counted():
    with pytest.raises(ValueError, match='use implementation="matmul"'):
        exported(partial(crop_and_resize, output_size=3, antialias=True, implementation="gather"), "h, w, 2", "4")


def test_a_trace_does_not_depend_on_the_devices(monkeypatch):
    monkeypatch.setattr(_sample, "CACHE", 0)
    arguments = jax.ShapeDtypeStruct((8, 6, 5, 2), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32)

    def trace():
        return str(jax.make_jaxpr(lambda i, b: derivatives(i, b))(*arguments))

    here = trace()
    monkeypatch.setattr(jax, "device_count", lambda *_: 3)
    assert trace() == here


def test_roi_align_exports_with_symbolic_shapes():
    def function(features, boxes):
        return roi_align(features, boxes, 3, box_indices=jnp.zeros(boxes.shape[0], jnp.int32), spatial_scale=0.5)

    called = exported(function, "n, 6, 5, 2", "k, 4")
    features, boxes = picture(2, 6, 5, 2), 10 * picture(3, 4)
    np.testing.assert_allclose(called.call(features, boxes), jax.jit(function)(features, boxes), atol=1e-6)
