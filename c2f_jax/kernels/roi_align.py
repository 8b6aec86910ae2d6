"""RoIAlign as detectors know it, with the gradient in the boxes."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from c2f_jax.kernels._sample import times
from c2f_jax.kernels._sharding import by_the_compiler
from c2f_jax.kernels.crop import _array, _check_boxes, _computed, _size


def roi_align(
    features: ArrayLike,
    boxes: ArrayLike,
    output_size: int | Sequence[int],
    *,
    box_indices: ArrayLike,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """Averages of bilinear samples in the cells of boxes: `torchvision.ops.roi_align`, channels last.

    The same values, and unlike there a gradient in the boxes: exact, and from the right where a sample is on a pixel's
    centre. A pixel without weight does not matter, be it NaN. Features are not copied for their boxes.

    Args:
        features: [N, H, W, C], floating.
        boxes: [K, 4] in pixels of the image that the features are of: [xmin, ymin, xmax, ymax].
        output_size: cells: S, or (height, width).
        box_indices: int [K], which of the N images a box belongs to.
        spatial_scale: pixels of the features per pixel of the image: 1 / stride.
        sampling_ratio: samples per cell and axis, 1 or more (torchvision's -1, as many as a box is large, has no shape
            that is known when compiled).
        aligned: pixels' centres are at halves, as in `crop_and_resize`. False is the older rule: at whole numbers, and
            sides of at least one pixel.

    Returns:
        [K, S, S, C] of the features' dtype. A sample more than a pixel beyond the outermost centres counts as 0, one
        that is closer as the nearest pixel in the image.

    Raises:
        ValueError: for shapes that do not fit, complex features, or a sampling_ratio below 1.

    References:
        He et al., Mask R-CNN, arXiv:1703.06870.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> roi_align(features, jnp.array([[2.0, 2.0, 6.0, 6.0]]), 2, box_indices=[0], spatial_scale=0.5)[0, ..., 0]
        Array([[ 5.,  6.],
               [ 9., 10.]], dtype=float32)
    """
    features, boxes, indices = _array(features, "features"), _array(boxes, "boxes"), jnp.asarray(box_indices)
    if features.ndim != 4:
        raise ValueError(f"features must be [N, H, W, C], got shape {features.shape}")
    _check_boxes(boxes)
    if boxes.ndim != 2 or indices.shape != boxes.shape[:1] or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            f"boxes must be [K, 4] and box_indices int [K], got {boxes.shape} and {indices.dtype} {indices.shape}"
        )
    size = _size(output_size)
    if not isinstance(sampling_ratio, int) or sampling_ratio < 1:
        raise ValueError(f"sampling_ratio must be 1 or more samples per cell and axis, got {sampling_ratio!r}")
    dtype = _computed(features, boxes) if jnp.issubdtype(features.dtype, jnp.floating) else _computed(boxes)
    offset = 0.5 if aligned else 0.0

    # Reverse mode reads the pixels again rather than keep them for every tap.
    @jax.checkpoint
    def align(features: jax.Array, boxes: jax.Array, indices: jax.Array) -> jax.Array:
        scaled = boxes.astype(dtype) * spatial_scale - offset
        taps = []
        for axis, cells in enumerate(size):
            start, end = scaled[:, 1 - axis, None], scaled[:, 3 - axis, None]
            side = end - start if aligned else jnp.maximum(end - start, 1.0)
            steps = (jnp.arange(cells * sampling_ratio, dtype=dtype) + 0.5) / (cells * sampling_ratio)
            taps.append(_taps(start + side * steps, features.shape[1 + axis], cells, sampling_ratio))
        terms = []
        for row, row_weight in taps[0]:
            for column, column_weight in taps[1]:
                weight = row_weight[:, :, None, None] * column_weight[:, None, :, None]
                pixels = features[indices[:, None, None], row[:, :, None], column[:, None, :]]
                terms.append(times(weight, pixels.astype(dtype)))
        return functools.reduce(jnp.add, terms)

    axes: list[list[tuple[int, int]]] = [[(1, 0), (2, 0)], [], [], [(0, 3)]]
    out = by_the_compiler(align, (features, boxes, indices), axes)
    return out.astype(features.dtype) if jnp.issubdtype(features.dtype, jnp.floating) else out


def _taps(positions: jax.Array, pixels: int, cells: int, ratio: int) -> list[tuple[jax.Array, jax.Array]]:
    """positions [K, cells * ratio] -> the 2 * ratio taps of each cell: (index, weight), both [K, cells]."""
    length = jnp.asarray(pixels, positions.dtype)
    counts = ((positions >= -1.0) & (positions <= length)).astype(positions.dtype)
    last = jnp.maximum(length - 1.0, 0.0)
    # Beyond the outermost centres the nearest pixel, whose derivative is 0; right of the last one nothing has weight.
    inside = (positions >= 0.0) & (positions < last)
    at = jnp.where(inside | (positions != positions), positions, jnp.clip(lax.stop_gradient(positions), 0.0, last))
    first = jnp.maximum(jnp.floor(lax.stop_gradient(at)), 0.0)
    right = (at - first) * counts / ratio
    left = counts / ratio - right
    index = jnp.clip(first.astype(jnp.int32), 0, pixels - 1)
    taps = []
    for i in range(ratio):
        one, this, other = (a.reshape(-1, cells, ratio)[..., i] for a in (index, left, right))
        taps += [(one, this), (jnp.minimum(one + 1, pixels - 1), other)]
    return taps
