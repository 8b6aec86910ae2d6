"""Features of regions in torchvision's terms, with the gradient in the boxes that torchvision does not have."""

from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from c2f_jax.kernels.taps import size_of


def roi_align(
    features: ArrayLike,
    boxes: ArrayLike | Sequence[Any],
    output_size: SupportsIndex | Sequence[SupportsIndex],
    *,
    box_indices: ArrayLike | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """`torchvision.ops.roi_align` on channels-last features, differentiable in the features and in the boxes.

    Each output is the mean of sampling_ratio^2 bilinear samples. Beyond the image torchvision's rule holds: up to one
    pixel outside the outermost pixels' centres repeat, farther out is 0. The derivative in a box is that of the
    samples, from the right where one lies on a pixel's centre.

    Args:
        features: [B, H, W, C], floating.
        boxes: [N, 4] in pixels of the image: [xmin, ymin, xmax, ymax].
        output_size: S, or (height, width).
        box_indices: int [N], the image of each box; not checked, those out of range read the first or the last image.
        spatial_scale: pixels of the features per pixel of the boxes.
        sampling_ratio: samples per output and axis, at least 1; torchvision's 0, which takes as many as the box is
            large, would make shapes depend on values.
        aligned: whether boxes are measured at pixels' edges; False is torchvision's older rule, half a pixel off.

    Returns:
        [N, S, S, C] in the features' dtype.

    Raises:
        ValueError: for shapes and dtypes that do not fit, or a sampling_ratio below 1.

    References:
        He et al., Mask R-CNN, arXiv:1703.06870; the rules at the edges are torchvision's.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> roi_align(features, [[1, 1, 3, 3]], 2, box_indices=[0])[0, ..., 0].tolist()
        [[5.0, 6.0], [9.0, 10.0]]
    """
    features, boxes, images = jnp.asarray(features), jnp.asarray(boxes), jnp.asarray(box_indices)
    if features.ndim != 4 or not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(f"features must be floating [B, H, W, C], got {features.dtype} {features.shape}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or jnp.issubdtype(boxes.dtype, jnp.complexfloating):
        raise ValueError(f"boxes must be real [N, 4], got {boxes.dtype} {boxes.shape}")
    if images.shape != boxes.shape[:1] or not (jnp.issubdtype(images.dtype, jnp.integer) or images.size == 0):
        raise ValueError(f"box_indices must be int [N] for boxes {boxes.shape}, got {images.dtype} {images.shape}")
    if sampling_ratio < 1:
        raise ValueError(f"sampling_ratio must be at least 1, got {sampling_ratio}: shapes can not depend on boxes")
    size = size_of(output_size)
    wide = jnp.float64 if jnp.float64 in (boxes.dtype, features.dtype) else jnp.float32
    boxes, images = boxes.astype(wide) * spatial_scale - (0.5 if aligned else 0.0), images.astype(jnp.int32)
    axes = [
        _samples(boxes[:, 1 - i], boxes[:, 3 - i], features.shape[1 + i], size[i], sampling_ratio, aligned)
        for i in (0, 1)
    ]
    # Reverse mode reads the pixels again rather than keep them for every tap.
    return jax.checkpoint(partial(_mean, taps=2 * sampling_ratio))(features, images, *axes).astype(features.dtype)


def _samples(
    start: jax.Array, end: jax.Array, pixels: int, outputs: int, samples: int, aligned: bool
) -> tuple[jax.Array, jax.Array]:
    """Along an axis: (pixels [N, 2 samples, outputs] that each output reads, their weights)."""
    extent = end - start if aligned else jnp.maximum(end - start, 1.0)
    steps = (jnp.arange(outputs * samples, dtype=start.dtype) + 0.5) / (outputs * samples)
    position = start[:, None] + extent[:, None] * steps
    inside = (position >= -1.0) & (position <= pixels)
    # From the right at 0, as inside the image.
    position = jnp.where(position < 0, jnp.zeros_like(position), jnp.where(inside, position, jnp.zeros_like(position)))
    low = jnp.floor(jax.lax.stop_gradient(position))
    last = low >= pixels - 1
    right = jnp.where(last, jnp.zeros_like(position), position - low)
    low = jnp.minimum(low, pixels - 1)
    index = jnp.stack([low, jnp.minimum(low + 1, pixels - 1)], axis=1).astype(jnp.int32)
    weight = jnp.where(inside[:, None], jnp.stack([1.0 - right, right], axis=1), jnp.zeros((), start.dtype)) / samples

    def by_output(taps: jax.Array) -> jax.Array:  # [N, 2, outputs * samples] -> [N, 2 * samples, outputs]
        taps = jnp.moveaxis(taps.reshape(-1, 2, outputs, samples), 3, 2)
        return taps.reshape(-1, 2 * samples, outputs)

    return by_output(index), by_output(weight)


def _mean(
    features: jax.Array,
    images: jax.Array,
    rows: tuple[jax.Array, jax.Array],
    columns: tuple[jax.Array, jax.Array],
    *,
    taps: int,
) -> jax.Array:
    """The sum over pairs of taps of weight times pixel, read where it lies: maps are not copied for their boxes."""
    out = jnp.zeros((), rows[1].dtype)
    for i in range(taps):
        for j in range(taps):
            pixel = features.at[images[:, None, None], rows[0][:, i, :, None], columns[0][:, j, None, :]].get(
                mode="clip"
            )
            weight = rows[1][:, i, :, None] * columns[1][:, j, None, :]
            out = out + weight[..., None] * pixel.astype(weight.dtype)
    return out
