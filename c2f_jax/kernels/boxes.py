"""Box arithmetic, and the boxes that a map points at: softly (differentiable) or by a threshold (not).

Boxes are ``[..., 4]``: ``[ymin, xmin, ymax, xmax]``, fractions of the image at pixel edges; oriented, so
``xmin > xmax`` is a mirrored view of the same place.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def _wide(boxes: ArrayLike | Sequence[Any]) -> jax.Array:
    """In float32 or wider: areas and their quotients leave what half types hold."""
    boxes = jnp.asarray(boxes)
    return boxes.astype(jnp.float64 if boxes.dtype == jnp.float64 else jnp.float32)


# --- From other conventions. ---


def from_xyxy(boxes: ArrayLike | Sequence[Any]) -> jax.Array:
    """[xmin, ymin, xmax, ymax] (torchvision's, COCO's corners) as [ymin, xmin, ymax, xmax], and back. [..., 4]."""
    boxes = jnp.asarray(boxes)
    return jnp.stack([boxes[..., 1], boxes[..., 0], boxes[..., 3], boxes[..., 2]], axis=-1)


def from_pixels(boxes: ArrayLike | Sequence[Any], image_size: Sequence[int]) -> jax.Array:
    """Boxes in pixels, measured at pixel edges, as fractions of the image.

    Args:
        boxes: [..., 4]: [ymin, xmin, ymax, xmax]; the whole image is [0, 0, H, W].
        image_size: (H, W).

    Returns:
        [..., 4] in float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> from_pixels(from_xyxy(jnp.array([64, 0, 128, 50])), (100, 128)).tolist()
        [0.0, 0.5, 0.5, 1.0]
    """
    boxes = jnp.asarray(boxes)
    height, width = image_size
    boxes = _wide(boxes)
    return boxes / jnp.array([height, width, height, width], boxes.dtype)


def from_aligned_corners(
    boxes: ArrayLike | Sequence[Any], image_size: Sequence[int], output_size: Sequence[int]
) -> jax.Array:
    """Boxes whose corners are the centres of the crop's corner pixels: TensorFlow's and kornia's.

    `tf.image.crop_and_resize` takes such fractions of (size - 1); kornia's corners are in pixels, so divide them by
    (size - 1). Between samples both then agree with `crop_and_resize` here; beyond the image each has its own rule.

    Args:
        boxes: [..., 4]: [ymin, xmin, ymax, xmax], 0 and 1 at the centres of the first and the last pixel.
        image_size: (H, W).
        output_size: (height, width) of the crop that is going to be made. A side of 1 looks at the box's middle.

    Returns:
        [..., 4] in float32 or wider: fractions at pixel edges.

    Example:
        >>> import jax.numpy as jnp
        >>> from_aligned_corners(jnp.array([0.0, 0.0, 1.0, 1.0]), (4, 4), (4, 4)).tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    boxes = _wide(boxes)
    sides = []
    for axis, (pixels, outputs) in enumerate(zip(image_size, output_size, strict=True)):
        start, end = ((boxes[..., i] * float(pixels - 1) + 0.5) / pixels for i in (axis, axis + 2))
        half_step = 0.5 * (end - start) / (outputs - 1) if outputs > 1 else jnp.zeros_like(start)
        sides.append((start - half_step, end + half_step))
    (ymin, ymax), (xmin, xmax) = sides
    return jnp.stack([ymin, xmin, ymax, xmax], axis=-1)


# --- Arithmetic. ---


def ordered(boxes: ArrayLike | Sequence[Any]) -> jax.Array:
    """The same places without orientation: min before max. [..., 4] -> [..., 4]."""
    boxes = jnp.asarray(boxes)
    start, end = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([jnp.minimum(start, end), jnp.maximum(start, end)], axis=-1)


def flip_horizontal(boxes: ArrayLike | Sequence[Any]) -> jax.Array:
    """The same places, mirrored left to right. [..., 4] -> [..., 4]."""
    boxes = jnp.asarray(boxes)
    return jnp.stack([boxes[..., 0], boxes[..., 3], boxes[..., 2], boxes[..., 1]], axis=-1)


def flip_vertical(boxes: ArrayLike | Sequence[Any]) -> jax.Array:
    """The same places, upside down. [..., 4] -> [..., 4]."""
    boxes = jnp.asarray(boxes)
    return jnp.stack([boxes[..., 2], boxes[..., 1], boxes[..., 0], boxes[..., 3]], axis=-1)


def compose(outer: ArrayLike | Sequence[Any], inner: ArrayLike | Sequence[Any]) -> jax.Array:
    """A box inside a view, in the coordinates of the image that the view was cut from.

    Orientation is carried over: a box inside a mirrored view is mirrored.

    Args:
        outer: the view, [..., 4] in image coordinates.
        inner: [..., 4] in the view's coordinates.

    Returns:
        [..., 4] in image coordinates.

    Example:
        >>> import jax.numpy as jnp
        >>> compose(jnp.array([0.0, 1.0, 1.0, 0.5]), jnp.array([0.0, 0.0, 0.5, 0.5])).tolist()
        [0.0, 1.0, 0.5, 0.75]
    """
    outer, inner = jnp.asarray(outer), jnp.asarray(inner)
    start, extent = outer[..., :2], outer[..., 2:] - outer[..., :2]
    return jnp.concatenate([start + inner[..., :2] * extent, start + inner[..., 2:] * extent], axis=-1)


def invert(boxes: ArrayLike | Sequence[Any]) -> jax.Array:
    """The image's place in the view that a box cuts out of it: ``compose(box, invert(box))`` is the whole image.

    Args:
        boxes: [..., 4]. A side of less than 1e-6 counts as one of 1e-6 and has no gradient, so that both are finite.
            The gradient of a longer one grows as 1 / side^2, beyond what float16 boxes hold from sides of 1/256 down.

    Returns:
        [..., 4] in the view's coordinates, in float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> invert(jnp.array([0.25, 0.5, 0.75, 1.0])).tolist()
        [-0.5, -1.0, 1.5, 1.0]
    """
    boxes = _wide(boxes)
    start, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    none = jnp.abs(extent) < 1e-6
    extent = jnp.where(none, jnp.where(extent < 0, -1e-6, 1e-6).astype(extent.dtype), extent)
    start = jnp.where(none, jax.lax.stop_gradient(start), start)
    return jnp.concatenate([-start / extent, (1.0 - start) / extent], axis=-1)


def area(boxes: ArrayLike | Sequence[Any]) -> jax.Array:
    """Area as a fraction of the image's, whatever the orientation. [..., 4] -> [...]."""
    boxes = _wide(boxes)
    extent = jnp.abs(boxes[..., 2:] - boxes[..., :2])
    return extent[..., 0] * extent[..., 1]


def iou(a: ArrayLike | Sequence[Any], b: ArrayLike | Sequence[Any]) -> jax.Array:
    """Intersection over union, whatever the orientation; 0 for two boxes without area. [..., 4] x 2 -> [...]."""
    a, b = ordered(_wide(a)), ordered(_wide(b))
    start, end = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(end - start, 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(a) + area(b) - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1.0), 0.0)


def box_iou(a: ArrayLike | Sequence[Any], b: ArrayLike | Sequence[Any]) -> jax.Array:
    """`iou` of all pairs. [..., N, 4], [..., M, 4] -> [..., N, M]."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    return iou(a[..., :, None, :], b[..., None, :, :])


def giou_loss(a: ArrayLike | Sequence[Any], b: ArrayLike | Sequence[Any]) -> jax.Array:
    """1 - GIoU, in [0, 2]: it pulls boxes towards each other that do not meet yet, where IoU has no gradient.

    GIoU is the IoU, less the share of the smallest box around both that neither covers. Orientation does not count;
    boxes without area are finite, and so are their gradients.

    Args:
        a, b: [..., 4].

    Returns:
        [...]; 0 where both are the same box.

    References:
        Rezatofighi et al., Generalized Intersection over Union, arXiv:1902.09630.

    Example:
        >>> import jax.numpy as jnp
        >>> giou_loss(jnp.array([0.0, 0.0, 0.5, 1.0]), jnp.array([0.5, 0.0, 1.0, 1.0])).item()
        1.0
    """
    a, b = ordered(_wide(a)), ordered(_wide(b))
    start, end = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(end - start, 0.0)
    union = area(a) + area(b) - sides[..., 0] * sides[..., 1]
    around = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    hull = around[..., 0] * around[..., 1]
    empty = jnp.where(hull > 0, (hull - union) / jnp.where(hull > 0, hull, 1.0), 0.0)
    return 1.0 - iou(a, b) + empty


def contains(boxes: ArrayLike | Sequence[Any], points: ArrayLike | Sequence[Any]) -> jax.Array:
    """Which points lie in their box, edges included. boxes [..., 4], points [..., P, 2] (y, x) -> bool [..., P]."""
    boxes, points = jnp.asarray(boxes), jnp.asarray(points)
    boxes = ordered(boxes)[..., None, :]
    return jnp.all((points >= boxes[..., :2]) & (points <= boxes[..., 2:]), axis=-1)


def region_distribution(
    mean_attention: jax.Array, score: jax.Array, *, floor: float = 0.0, background: float = 0.0
) -> jax.Array:
    """Where to look, as a distribution over positions: ``softmax(log(relu(A - low) + eps) + score)``.

    With a score of zero it is the attention A itself, above ``low = max(floor * max A, background * mean A)`` and
    normalised. Maximum and mean are constants to the gradient and ``eps`` follows the maximum, so the result does not
    change with the map's scale; an all-zero map gives the softmax of the score.

    A faint background all over the view can add more to the deviation of `soft_box` than an object does, and much the
    same for all objects.

    Args:
        mean_attention: A [..., h, w], not negative.
        score: [..., h, w], log odds that shift it.
        floor: in [0, 1), share of each map's maximum that counts as background.
        background: in [0, 1], share of each map's mean that does. With 1 a constant added to the whole map changes
            nothing but `eps`; a share of the maximum takes only a background that is fainter.

    Returns:
        q [..., h, w] in float32 or wider; its sum over each map is 1.
    """
    dtype = jnp.promote_types(jnp.result_type(mean_attention, score), jnp.float32)
    mean_attention, score = mean_attention.astype(dtype), score.astype(dtype)
    constant = jax.lax.stop_gradient(mean_attention)
    peak = jnp.max(constant, axis=(-2, -1), keepdims=True)
    low = jnp.maximum(floor * peak, background * jnp.mean(constant, axis=(-2, -1), keepdims=True))
    above = jnp.maximum(mean_attention - low, 0.0)
    return jax.nn.softmax(jnp.log(above + (1e-4 * peak + 1e-8)) + score, axis=(-2, -1))


def soft_box(
    q: jax.Array,
    kappa: jax.Array | float = 3.0**0.5,
    *,
    min_side: float = 0.3,
    max_side: float = 1.0,
    temperature: float = 0.05,
    cell_offset: float = 0.0,
) -> jax.Array:
    """The box around a distribution: its mean, and ``2 kappa`` standard deviations per axis; smooth in both arguments.

    The variance counts each cell's own width, so a uniform map has exactly 1/sqrt(12), a one-hot map 1/sqrt(12) of a
    cell, and the root never meets 0. ``kappa = sqrt(3)`` makes the box of a uniform block that block.

    Args:
        q: [..., h, w], not negative, its sum over each map 1.
        kappa: half a side in standard deviations; broadcasts against the leading axes.
        min_side, max_side: limits of the sides, as fractions of the view, approached smoothly.
        temperature: width of the transition to the limits, in the same unit.
        cell_offset: how far right and down of what it shows a cell lies, in cells: a network's strides and the taps it
            has learned may displace its maps.

    Returns:
        Boxes [..., 4] inside the view [0, 0, 1, 1]: the centre is moved where a side would reach beyond it.

    Example:
        >>> import jax.numpy as jnp
        >>> soft_box(jnp.full((8, 8), 1 / 64), temperature=1e-3).round(3).tolist()
        [0.0, 0.0, 1.0, 1.0]
    """

    def interval(marginal: jax.Array) -> tuple[jax.Array, jax.Array]:
        cells = marginal.shape[-1]
        centres = (jnp.arange(cells, dtype=marginal.dtype) + (0.5 - cell_offset)) / cells
        mean = jnp.sum(marginal * centres, axis=-1, keepdims=True)
        variance = jnp.sum(marginal * jnp.square(centres - mean), axis=-1) + 1.0 / (12.0 * cells**2)
        wide = 2.0 * jnp.asarray(kappa, marginal.dtype) * jnp.sqrt(variance)
        side = (
            min_side
            + temperature * jax.nn.softplus((wide - min_side) / temperature)
            - temperature * jax.nn.softplus((wide - max_side) / temperature)
        )
        centre = jnp.clip(mean[..., 0], side / 2, 1.0 - side / 2)
        return centre - side / 2, centre + side / 2

    q = q.astype(jnp.promote_types(q.dtype, jnp.float32))
    (ymin, ymax), (xmin, xmax) = interval(jnp.sum(q, axis=-1)), interval(jnp.sum(q, axis=-2))
    return jnp.stack([ymin, xmin, ymax, xmax], axis=-1)


def threshold_box(maps: jax.Array, threshold: jax.Array | float, *, padding: float) -> jax.Array:
    """The box of the cells that reach a share of the map's maximum (WS-DAN's region); no gradient.

    Args:
        maps: [..., h, w], not negative.
        threshold: share of the maximum; broadcasts against the leading axes.
        padding: added on every side, as a fraction of the view.

    Returns:
        Boxes [..., 4], clipped to the view. An all-zero map gives the whole view.

    References:
        WS-DAN, arXiv:1901.09891, section 3.3; unlike its code, clipped to the view.
    """
    dtype = jnp.promote_types(maps.dtype, jnp.float32)
    level = jnp.asarray(threshold, maps.dtype)[..., None, None] * jnp.max(maps, axis=(-2, -1), keepdims=True)
    reached = maps >= level

    def interval(hit: jax.Array) -> tuple[jax.Array, jax.Array]:
        cells = hit.shape[-1]
        first = jnp.argmax(hit, axis=-1).astype(dtype)
        last = cells - jnp.argmax(hit[..., ::-1], axis=-1).astype(dtype)
        return jnp.maximum(first / cells - padding, 0.0), jnp.minimum(last / cells + padding, 1.0)

    (ymin, ymax), (xmin, xmax) = interval(jnp.any(reached, axis=-1)), interval(jnp.any(reached, axis=-2))
    return jnp.stack([ymin, xmin, ymax, xmax], axis=-1)
