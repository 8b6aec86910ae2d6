"""What others' suites ask of a crop, RoIAlign and boxes: their results, stored; and what they lack."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.kernels import (
    box_iou,
    compose,
    crop_and_resize,
    from_aligned_corners,
    from_pixels,
    from_xyxy,
    giou_loss,
    invert,
    outside_mask,
    paste,
    roi_align,
)
from tests.kernels import make_peer_goldens as peers

GOLDENS = np.load(peers.PATH)
BOXES, INDICES = peers.rois()


@pytest.mark.parametrize(("aligned", "ratio", "size"), peers.ROI_CASES)
def test_roi_align_is_torchvisions(aligned, ratio, size):
    options = {"spatial_scale": 0.25, "sampling_ratio": ratio, "aligned": aligned}
    align = jax.jit(partial(roi_align, output_size=size, box_indices=INDICES, **options))
    found = align(peers.features(), BOXES)
    np.testing.assert_allclose(found, GOLDENS[f"roi_align/{aligned}/{ratio}/{size}"], atol=1e-5)


def test_roi_align_inside_is_the_crop():
    """Averages over the samples of a crop that is twice as large; the gradients in boxes and features agree too."""
    features, box = peers.features(), np.array([[8.0, 6.0, 33.0, 27.0]], np.float32)

    def by_crop(features, box):
        fractions = from_pixels(from_xyxy(box), (36, 44))
        crop = crop_and_resize(features[:1], fractions, (6, 8))
        return crop.reshape(1, 3, 2, 4, 2, 2).mean(axis=(2, 4))

    def by_roi_align(features, box):
        return roi_align(features, box, (3, 4), box_indices=[0], spatial_scale=0.25)

    def both(function):
        loss = lambda *arguments: jnp.sum(jnp.sin(function(*arguments)))  # noqa: E731
        return function(features, box), *jax.grad(loss, argnums=(0, 1))(features, box)

    for a, b in zip(both(by_roi_align), both(by_crop), strict=True):
        assert jnp.abs(b).max() > 0.01
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("size", peers.CORNER_SIZES, ids=str)
def test_aligned_corners(size):
    boxes = from_aligned_corners(jnp.asarray(peers.corner_boxes()), (9, 11), size)
    found = crop_and_resize(peers.features(), boxes, size)
    for peer in ("tensorflow/bilinear", "kornia"):
        if f"{peer}/{size}" in GOLDENS:
            np.testing.assert_allclose(found, GOLDENS[f"{peer}/{size}"], atol=1e-5)


def test_boxes_are_torchvisions():
    a, b = jnp.asarray(BOXES[:8]), jnp.asarray(BOXES[1:9])
    np.testing.assert_allclose(box_iou(a, b), GOLDENS["box_iou"], atol=1e-6)
    np.testing.assert_allclose(giou_loss(a, b), GOLDENS["giou_loss"], atol=1e-6)


def test_giou_loss_of_boxes_apart_has_a_gradient_and_points_none_that_is_not_finite():
    gradient = jax.grad(giou_loss)(jnp.array([0.0, 0.0, 0.1, 0.1]), jnp.array([0.5, 0.5, 0.9, 0.9]))
    assert (gradient[2:] < 0).all()
    point = jnp.array([0.2, 0.2, 0.2, 0.2])
    assert jnp.isfinite(jax.grad(giou_loss)(point, point)).all()


# --- Labels. ---


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "float32"])
@pytest.mark.parametrize("padding", ["edge", "constant", "symmetric", "reflect"])
def test_nearest_is_numpys_padding(padding, dtype):
    """A crop of whole pixels that reaches beyond the image: `np.pad`, and twice as large `np.repeat`."""
    labels = np.random.default_rng(0).integers(0, 200, (5, 6, 1)).astype(dtype)
    expected = np.pad(
        labels, ((3, 3), (4, 4), (0, 0)), padding, **({"constant_values": 7} if padding == "constant" else {})
    )
    box = from_pixels(jnp.array([-3.0, -4.0, 8.0, 10.0]), (5, 6))
    fill = 1 if dtype == "bool" else 7
    crop = partial(crop_and_resize, labels, box, method="nearest", padding=padding, fill_value=fill)
    assert crop((11, 14)).dtype == dtype
    np.testing.assert_array_equal(crop((11, 14)), expected)
    np.testing.assert_array_equal(crop((22, 28)), expected.repeat(2, 0).repeat(2, 1))
    assert not jnp.any(jax.grad(lambda box: crop_and_resize(labels / 2.0, box, 3, method="nearest").sum())(box))


# --- There and back. ---


def test_invert():
    boxes = np.random.default_rng(0).uniform(-0.2, 1.2, (20, 4)).astype(np.float32)
    np.testing.assert_allclose(compose(boxes, invert(boxes)), np.tile([0, 0, 1, 1], (20, 1)), atol=1e-5)
    assert jnp.isfinite(invert(jnp.full(4, 0.3))).all()


def test_paste_undoes_a_crop():
    """Whole pixels come back as they were, mirrored views too, and the mask is the box."""
    image = np.random.default_rng(0).uniform(size=(8, 10, 2)).astype(np.float32)
    for box in ([0.25, 0.2, 0.75, 0.7], [0.25, 0.7, 0.75, 0.2], [0.0, 0.0, 1.0, 1.0]):
        top, bottom = int(8 * box[0]), int(8 * box[2])
        left, right = sorted((round(10 * box[1]), round(10 * box[3])))
        pasted, mask = paste(crop_and_resize(image, box, (bottom - top, right - left)), box, (8, 10))
        expected = np.zeros((8, 10, 1))
        expected[top:bottom, left:right] = 1.0
        np.testing.assert_allclose(mask, expected, atol=1e-5)
        np.testing.assert_allclose(pasted * expected, image * expected, atol=1e-5)


def test_the_mask_is_the_area_and_moves_with_the_box():
    box = jnp.array([0.13, 0.22, 0.64, 0.91])
    area = lambda box: paste(jnp.ones((3, 3, 1)), box, (7, 9))[1].mean()  # noqa: E731
    np.testing.assert_allclose(area(box), 0.51 * 0.69, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(area)(box), [-0.69, -0.51, 0.69, 0.51], rtol=1e-5)


def test_outside_mask_is_where_a_constant_shows():
    boxes = np.random.default_rng(0).uniform(-0.6, 1.6, (30, 4)).astype(np.float32)
    crops = crop_and_resize(np.zeros((8, 9, 1), np.uint8), boxes, 5, method="nearest", padding="constant", fill_value=1)
    np.testing.assert_array_equal(outside_mask(boxes, 5), crops[..., 0] == 1)


# --- A gradient that sees further. ---


def test_a_blurred_gradient_leaves_the_rest_alone():
    image, box = peers.features()[0], jnp.array([0.1, 0.2, 0.8, 0.9])

    def loss(image, box, blur):
        return jnp.sum(jnp.sin(crop_and_resize(image, box, 5, gradient_blur=blur)))

    sharp, wide = (jax.value_and_grad(loss, argnums=(0, 1))(image, box, blur) for blur in (0.0, 3.0))
    np.testing.assert_array_equal(sharp[0], wide[0])
    np.testing.assert_allclose(sharp[1][0], wide[1][0], atol=1e-6)
    assert jnp.abs(sharp[1][1] - wide[1][1]).max() > 0.1


def test_a_blurred_gradient_sees_over_a_valley():
    """A bar that is 12.5 pixels away: the exact gradient of the difference is 0 there, the blurred one points to it."""
    image = np.zeros((64, 64, 1), np.float32)
    image[:, 40:44] = 1.0
    target = crop_and_resize(image, [0.0, 0.5, 1.0, 1.0], 32)

    def loss(left, blur):
        box = jnp.array([0.0, 0.0, 1.0, 0.5]) + left * jnp.array([0.0, 1.0, 0.0, 1.0])
        return jnp.sum(jnp.square(crop_and_resize(image, box, 32, gradient_blur=blur) - target))

    start = 0.5 - 12.5 / 64
    assert jax.grad(loss)(start, 16.0) < 0
    assert abs(jax.grad(loss)(start, 0.0)) < 1e-3
