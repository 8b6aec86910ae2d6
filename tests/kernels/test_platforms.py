"""The same crop everywhere: under explicit axes, of unknown sizes, where pixels are not finite, whatever the types."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from c2f_jax.kernels import by_gather, by_matmul, crop_and_resize, outside_mask, paste
from c2f_jax.kernels.crop import _crop
from tests.kernels.versions import around


def picture(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@cache
def derivatives(**options):
    """(images, boxes) -> (crops, gradients in both); cached, so that tests share what is compiled."""

    def loss(images, boxes):
        crops = crop_and_resize(images, boxes, 4, **options)
        return jnp.sum(jnp.sin(crops)), crops

    def both(images, boxes):
        gradients, crops = jax.grad(loss, argnums=(0, 1), has_aux=True)(images, boxes)
        return crops, gradients

    return jax.jit(both)


def assert_close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


OPTIONS = {
    "plain": {},
    "antialias": {"antialias": True, "padding": "symmetric"},
    "matmul": {"implementation": "matmul", "padding": "constant", "fill_value": 0.5},
}


@pytest.mark.skipif(jax.__version_info__ < (0, 7), reason="explicit axes are of use from jax 0.7 on")
@pytest.mark.parametrize(
    ("name", "specs", "large"),
    [
        ("plain", (P("a"), P("a")), False),
        ("plain", (P("a"), P("a")), True),
        ("plain", (P(("a", "b")), P()), False),
        ("plain", (P("a", None, None, "b"), P("a", "b")), False),
        ("antialias", (P(None, "b"), P("a")), False),
        ("matmul", (P("a", None, None, "b"), P("a", "b")), False),
    ],
)
def test_explicit_axes(monkeypatch, name, specs, large):
    """Images and boxes spread alike, one of them alone, over two axes, and along channels; large ones too."""
    arguments = picture(8, 6, 5, 2), picture(8, 4, 4, seed=1)
    expected = derivatives(**OPTIONS[name])(*arguments)
    if large:
        monkeypatch.setattr(by_gather, "CACHE", 0)
    mesh = Mesh(np.array(jax.devices("cpu")[:4]).reshape(2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    with around(mesh):
        put = [jax.device_put(a, NamedSharding(mesh, at)) for a, at in zip(arguments, specs, strict=True)]
        assert_close(derivatives.__wrapped__(**OPTIONS[name])(*put), expected)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, "b, h, w, c"),
        ({"antialias": True}, "b, 6, 5, 2"),
        ({"antialias": True, "padding": "reflect"}, "b, h, w, c"),
        ({"method": "nearest"}, "b, h, w, c"),
    ],
)
def test_symbolic_shapes(options, shape):
    """One exported program for any batch, any number of boxes and, but for antialiased taps, any size."""
    arguments = picture(6, 6, 5, 2), picture(6, 3, 4, seed=1)
    shapes = export.symbolic_args_specs(arguments, (shape, "b, k, 4"))
    exported = export.export(derivatives(**options), platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert_close(exported.call(*arguments), derivatives(**options)(*arguments))


@pytest.mark.skipif(not by_gather.TURNS, reason="taken at once before jax 0.10")
def test_symbolic_batch_in_turn(monkeypatch):
    arguments = picture(6, 6, 5, 2), picture(6, 3, 4, seed=1)
    expected = derivatives()(*arguments)
    monkeypatch.setattr(by_gather, "CACHE", 0)
    shapes = export.symbolic_args_specs(arguments, ("b, 6, 5, 2", "b, k, 4"))
    assert_close(export.export(derivatives.__wrapped__())(*shapes).call(*arguments), expected)


def test_taps_of_unknown_number_are_not_gathered():
    shapes = export.symbolic_args_specs((picture(6, 5, 2), picture(4)), ("h, w, 2", "4"))
    with pytest.raises(ValueError, match="implementation='gather' has to know H and W"):
        export.export(derivatives(antialias=True, implementation="gather"))(*shapes)


def kinds(values):
    """0 finite, 1 NaN, 2 and 3 the infinities."""
    return np.where(np.isnan(values), 1, np.where(np.isinf(values), 2 + (values > 0), 0))


@pytest.mark.parametrize(
    ("padding", "antialias"),
    [("edge", True), ("constant", False), ("constant", True), ("reflect", False)],
)
def test_what_is_not_finite_counts_where_it_has_weight(antialias, padding):
    """By taps, by products, and by what stands for taps on TPU: the same pixels of the crop, none outside the box."""
    image = picture(6, 6, 1)
    for place, value in {(0, 0): np.nan, (5, 5): np.inf, (4, 3): np.inf, (4, 4): -np.inf, (3, 4): np.nan}.items():
        image[place] = value
    boxes = np.array([[0, 0, 1, 1], [0.35, 0.3, 0.5, 0.5], [0.1, 0.3, 0.9, 0.8], [1.2, 1.3, 1.5, 1.6]], np.float32)
    options = {"antialias": antialias, "padding": padding}
    gathered, (_, by_boxes) = derivatives(**options)(image, boxes)
    assert np.isfinite(gathered[1]).all() and np.isfinite(by_boxes[1]).all()
    assert {0, 1} <= set(kinds(gathered[2]).ravel()) and np.isinf(gathered).any()
    multiplied, (_, of_products) = derivatives(implementation="matmul", **options)(image, boxes)
    on_tpu = jax.jit(lambda images, boxes: jax.vmap(lambda box: tpu_crop(images, box, options))(boxes))
    for found in (multiplied, on_tpu(image, boxes)):
        np.testing.assert_array_equal(kinds(found), kinds(gathered))
        fine = np.isfinite(gathered)
        np.testing.assert_allclose(found[fine], gathered[fine], atol=1e-5)
    np.testing.assert_array_equal(np.isfinite(of_products), np.isfinite(by_boxes))


def tpu_crop(image, box, options):
    """The branch for TPU, run here."""
    sample = partial(by_matmul.matmul, special=by_matmul.special_pixels)
    return _crop(sample, image[None], box[None, None], size=(4, 4), fill_value=0.0, **options)[0, 0]


def test_identity_keeps_what_is_not_finite_where_it_is():
    image = picture(5, 6, 1)
    image[2, 3] = np.nan
    crop = jax.jit(lambda image: crop_and_resize(image, [0, 0, 1, 1], (5, 6)))
    np.testing.assert_array_equal(crop(image), image)


@pytest.mark.parametrize(
    ("dtype", "implementation"),
    [("uint8", "gather"), ("bool", "matmul"), ("bfloat16", "gather"), ("bfloat16", "matmul")],
)
def test_strict_promotion(dtype, implementation):
    images, boxes = jnp.asarray(picture(2, 5, 6, 2) * 3).astype(dtype), jnp.asarray(picture(2, 4))
    options = {"antialias": True, "padding": "constant", "fill_value": 0.5, "implementation": implementation}

    def crop(images, boxes):
        out, pull = jax.vjp(lambda boxes: crop_and_resize(images, boxes, (3, 4), **options), boxes)
        return out, pull(out)

    expected = jax.eval_shape(crop, images, boxes)
    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(crop, images, boxes) == expected


def test_lists_and_numpy_integers():
    image = picture(5, 6, 2)
    expected = crop_and_resize(image, jnp.array([0.0, 0.0, 1.0, 1.0]), 4)
    for size in (np.int64(4), np.array([4, 4]), [np.int32(4), 4]):
        np.testing.assert_array_equal(crop_and_resize(image, [0, 0, 1, 1], size), expected)
    np.testing.assert_array_equal(crop_and_resize(image.tolist(), [0, 0, 1, 1], 4), expected)


def test_complex_is_refused():
    with pytest.raises(ValueError, match="images must be floating, integer or bool, got complex64"):
        crop_and_resize(picture(5, 6, 2).astype(np.complex64), [0, 0, 1, 1], 4)


@pytest.mark.parametrize(
    ("padding", "dtype"),
    [("edge", "int32"), ("constant", "uint8"), ("constant", "float32"), ("symmetric", "bool"), ("reflect", "int32")],
)
def test_nearest(padding, dtype):
    """As an index into what NumPy pads."""
    labels = np.random.default_rng(0).integers(0, 2**20, (5, 4, 1)).astype(dtype)
    around = np.pad(labels, ((5, 5), (4, 4), (0, 0)), padding)
    crop_of = jax.jit(partial(crop_and_resize, output_size=(3, 7), method="nearest", padding=padding))
    for box in ([0.0, 0.0, 1.0, 1.0], [0.13, 0.9, 0.71, 0.11], [-0.43, 0.21, 0.67, 1.53]):
        rows, columns = (
            np.floor((lo + (np.arange(n) + 0.5) / n * (hi - lo)) * pixels).astype(int) + pixels
            for lo, hi, n, pixels in ((box[0], box[2], 3, 5), (box[1], box[3], 7, 4))
        )
        crop = crop_of(labels, np.array(box, np.float32))
        assert crop.dtype == dtype
        np.testing.assert_array_equal(crop, around[rows][:, columns])


def test_nothing_to_crop():
    """No images, no boxes, one pixel."""
    assert crop_and_resize(np.zeros((0, 5, 6, 2)), np.zeros((0, 4)), 3).shape == (0, 3, 3, 2)
    crop = derivatives(antialias=True, padding="reflect")
    assert crop(picture(2, 5, 6, 2), np.zeros((2, 0, 4), np.float32))[0].shape == (2, 0, 4, 4, 2)
    for padding in ("constant", "reflect"):
        out, gradients = derivatives(padding=padding)(np.ones((1, 1, 1), np.float32), picture(4))
        assert jnp.isfinite(out).all() and all(jnp.isfinite(g).all() for g in gradients)


def test_paste_is_the_way_back():
    """A view is found again in its picture; the mask is the box's area; mirrored views are mirrored back."""
    image = picture(12, 12, 2)
    for box in (np.array([0.25, 0.5, 0.75, 1.0], np.float32), np.array([0.25, 1.0, 0.75, 0.5], np.float32)):
        picture_of, mask = jax.jit(lambda box: paste(crop_and_resize(image, box, 6), box, 12))(box)
        np.testing.assert_allclose(picture_of[3:9, 6:], image[3:9, 6:], atol=1e-5)
        assert mask.sum() == 36 and (picture_of[mask == 0] == 0).all()
    loss = jax.jit(jax.grad(lambda box: paste(picture(3, 3, 1), box, 8)[1].sum()))
    np.testing.assert_allclose(loss(jnp.array([0.3, 0.3, 0.7, 0.9])), [-38.4, -25.6, 38.4, 25.6], rtol=1e-4)
    assert jnp.isfinite(loss(jnp.array([0.3, 0.3, 0.3, 0.3]))).all()


def test_outside():
    box = np.array([-0.2, 0.3, 0.9, 1.4], np.float32)
    seen = crop_and_resize(np.ones((9, 9, 1), np.uint8), box, 7, method="nearest", padding="constant")
    np.testing.assert_array_equal(outside_mask(box, 7), seen[..., 0] == 0)
