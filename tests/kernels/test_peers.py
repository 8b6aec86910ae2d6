"""Other people's boxes, and ours: their results, stored by `make_peer_goldens.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from c2f_jax.kernels import (
    box_iou,
    compose,
    crop_and_resize,
    from_aligned_corners,
    from_pixels,
    from_xyxy,
    giou_loss,
    invert,
    roi_align,
)
from tests.kernels import make_peer_goldens as peers
from tests.kernels import versions

GOLDENS = np.load(peers.PATH)


@pytest.mark.parametrize("size", peers.CORNER_SIZES, ids=str)
def test_aligned_corners(size):
    """TensorFlow's crop and kornia's, by ours at the converted boxes."""
    boxes = from_aligned_corners(jnp.asarray(peers.corner_boxes()), (9, 11), size)
    found = crop_and_resize(peers.features(), boxes, size)
    compared = [peer for peer in ("tensorflow", "kornia") if f"{peer}/{size}" in GOLDENS]
    assert "tensorflow" in compared
    for peer in compared:
        np.testing.assert_allclose(found, GOLDENS[f"{peer}/{size}"], atol=1e-5)


def test_boxes_are_torchvisions():
    a, b = map(jnp.asarray, peers.pairs())
    np.testing.assert_allclose(box_iou(a, b), GOLDENS["box_iou"], atol=1e-6)
    np.testing.assert_allclose(giou_loss(a, b), GOLDENS["giou_loss"], atol=1e-6)
    assert GOLDENS["box_iou"].max() > 0.3 and GOLDENS["giou_loss"].max() > 1.0  # some meet, some do not


def test_giou_loss_of_boxes_apart_has_a_gradient_and_points_none_that_is_not_finite():
    gradient = jax.grad(giou_loss)(jnp.array([0.0, 0.0, 0.1, 0.1]), jnp.array([0.5, 0.5, 0.9, 0.9]))
    assert (gradient[2:] < 0).all()
    point = jnp.array([0.2, 0.2, 0.2, 0.2])
    assert jnp.isfinite(jax.grad(giou_loss)(point, point)).all()


def test_pixels_and_order_of_corners():
    """A crop by converted pixels is the slice."""
    image = peers.features()[0]
    box = from_pixels(from_xyxy(jnp.array([3, 2, 9, 7])), (9, 11))
    np.testing.assert_allclose(crop_and_resize(image, box, (5, 6)), image[2:7, 3:9], atol=1e-5)


def test_invert():
    boxes = np.random.default_rng(0).uniform(-0.2, 1.2, (20, 4)).astype(np.float32)
    np.testing.assert_allclose(compose(boxes, invert(boxes)), np.tile([0, 0, 1, 1], (20, 1)), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda boxes: jnp.sum(invert(boxes))))
    for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):  # without area, in y alone too
        boxes = jnp.array([[0.3, 0.3, 0.3, 0.3], [0.5, 0.2, 0.5, 0.8], [1.0, 0.0, 1.0, 0.0]], dtype)
        assert jnp.isfinite(invert(boxes)).all() and jnp.isfinite(gradient(boxes)).all()


def region_features(case, boxes):
    indices = np.arange(len(boxes)) % 3
    return roi_align(peers.features(), boxes, box_indices=indices, **peers.ROI_ALIGN[case])


@pytest.mark.parametrize("case", peers.ROI_ALIGN)
def test_roi_align(case):
    """torchvision's values, stored in float64; boxes reach beyond the image on all sides."""
    expected = GOLDENS[f"roi_align/{case}"]
    np.testing.assert_allclose(jax.jit(region_features, static_argnums=0)(case, peers.pairs()[0]), expected, atol=1e-5)
    assert (expected == 0).any() and np.abs(expected).max() > 1


def test_roi_align_has_a_gradient_in_the_boxes():
    """Against difference quotients, in both arguments."""
    boxes = np.array([[3.3, 1.7, 20.2, 18.9], [-2.1, 4.4, 9.7, 40.3], [30.3, 20.1, 31.2, 29.7]])
    with versions.x64():
        features = jnp.asarray(peers.features(), jnp.float64)

        def align(features, boxes):
            return roi_align(features, boxes, (3, 2), box_indices=[2, 0, 0], spatial_scale=0.3)

        check_grads(jax.jit(align), (features, jnp.asarray(boxes)), order=1, atol=1e-5, rtol=1e-5, eps=1e-6)


def test_roi_align_refuses():
    for settings, message in (
        ({"sampling_ratio": 0}, "sampling_ratio must be at least 1, got 0"),
        ({"box_indices": [0, 1]}, r"box_indices must be int \[N\]"),
        ({"box_indices": [0.5]}, r"box_indices must be int \[N\]"),
        ({"output_size": 0}, "output_size must be a positive int"),
    ):
        with pytest.raises(ValueError, match=message):
            roi_align(peers.features(), [[0, 0, 4, 4]], **{"output_size": 2, "box_indices": [0]} | settings)
