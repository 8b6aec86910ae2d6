"""What another package's author writes on the kernels: the type checkers must take it in their strictest mode.

mypy        # as .ci/run does; strict for this file by pyproject.toml
"""

from collections.abc import Callable
from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from c2f_jax.kernels import (
    bilinear_attention_pooling,
    box_iou,
    crop_and_resize,
    crop_with_wide_gradient,
    from_pixels,
    from_xyxy,
    giou_loss,
    outside_mask,
    paste,
    region_distribution,
    roi_align,
    soft_box,
)


def second_look(
    images: jax.Array, attention: jax.Array, size: int | tuple[int, int] = 224
) -> tuple[jax.Array, jax.Array]:
    """Photos [B, H, W, C] and maps [B, h, w] -> views [B, *size, C] and their boxes [B, 4]."""
    boxes = soft_box(region_distribution(attention, jnp.zeros_like(attention)), min_side=0.2)
    return crop_and_resize(images, boxes, size, antialias=True, padding="symmetric"), boxes


def place_loss(photo: NDArray[np.uint8], wanted: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A function of boxes, made of arrays, lists and numbers as they come."""

    def loss(boxes: jax.Array) -> jax.Array:
        view = crop_with_wide_gradient(photo, boxes, [16, np.int64(16)], blur=4.0)
        difference = jnp.where(outside_mask(boxes, 16)[..., None], 0.0, view - wanted)
        return jnp.sum(difference) + jnp.sum(giou_loss(boxes, [0.0, 0.0, 1.0, 1.0]))

    return loss


def types(features: jax.Array) -> None:
    """What comes out, whatever goes in."""
    assert_type(roi_align(features, [[0, 0, 4, 4]], (7, 7), box_indices=[1]), jax.Array)
    assert_type(from_pixels(from_xyxy([[3, 2, 9, 7]]), (9, 11)), jax.Array)
    assert_type(paste(features, np.zeros((2, 4)), 16), tuple[jax.Array, jax.Array])
    assert_type(box_iou([[0.0, 0.0, 1.0, 1.0]], jnp.zeros((3, 4))), jax.Array)
    assert_type(bilinear_attention_pooling(features, features[..., :2]), jax.Array)
