"""What belongs to a view beside its pixels: the way back into the image, what lies outside, and a wider gradient."""

from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from c2f_jax.kernels.boxes import invert, ordered
from c2f_jax.kernels.crop import crop_and_resize
from c2f_jax.kernels.taps import size_of


def paste(
    views: ArrayLike,
    boxes: ArrayLike | Sequence[Any],
    output_size: SupportsIndex | Sequence[SupportsIndex],
    *,
    antialias: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Puts views back where they were cut out: the inverse of `crop_and_resize`, differentiable in view and box.

    ``image * (1 - mask[..., None]) + picture`` lays a view over an image.

    Args:
        views: [..., h, w, C], floating, integer or bool.
        boxes: [..., 4] with the views' leading axes, in the picture's coordinates; mirrored views are mirrored back.
        output_size: S, or (height, width), of the picture.
        antialias: average where the view has more pixels than its place in the picture.

    Returns:
        (picture [..., S, S, C], 0 where the view does not reach; mask [..., S, S], the share of each of its pixels that
        the box covers), of the views' dtype if that is floating, else of the boxes'.

    Example:
        >>> import jax.numpy as jnp
        >>> picture, mask = paste(jnp.full((2, 2, 1), 3.0), [0.0, 0.5, 0.5, 1.0], 4)
        >>> picture[..., 0].tolist()
        [[0.0, 0.0, 3.0, 3.0], [0.0, 0.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    views, boxes = jnp.asarray(views), jnp.asarray(boxes)
    size = size_of(output_size)
    boxes = boxes.astype(jnp.float64 if jnp.float64 in (boxes.dtype, views.dtype) else jnp.float32)
    picture = crop_and_resize(views, invert(boxes), size, antialias=antialias)
    sides = ordered(boxes)
    shares = []
    for i, outputs in enumerate(size):
        start, end = sides[..., i, None] * outputs, sides[..., i + 2, None] * outputs
        pixel = jnp.arange(outputs, dtype=boxes.dtype)
        shares.append(jnp.clip(jnp.minimum(end, pixel + 1.0) - jnp.maximum(start, pixel), 0.0, 1.0))
    mask = (shares[0][..., :, None] * shares[1][..., None, :]).astype(picture.dtype)
    return jnp.where(mask[..., None] > 0, picture, jnp.zeros_like(picture)) * mask[..., None], mask


def outside_mask(boxes: ArrayLike | Sequence[Any], output_size: SupportsIndex | Sequence[SupportsIndex]) -> jax.Array:
    """True where the view of a box looks beyond the image. [..., 4] -> bool [..., height, width]; no gradient.

    Args:
        boxes: [..., 4].
        output_size: S, or (height, width), of the view.

    Example:
        >>> outside_mask([0.0, 0.5, 1.0, 1.5], (1, 4)).tolist()
        [[False, False, True, True]]
    """
    boxes = jnp.asarray(boxes)
    boxes = boxes.astype(jnp.float64 if boxes.dtype == jnp.float64 else jnp.float32)
    beyond = []
    for i, outputs in enumerate(size_of(output_size)):
        steps = (jnp.arange(outputs, dtype=boxes.dtype) + 0.5) / outputs
        place = boxes[..., i, None] + (boxes[..., i + 2, None] - boxes[..., i, None]) * steps
        beyond.append((place < 0) | (place > 1))
    return beyond[0][..., :, None] | beyond[1][..., None, :]


def crop_with_wide_gradient(
    images: ArrayLike,
    boxes: ArrayLike | Sequence[Any],
    output_size: SupportsIndex | Sequence[SupportsIndex],
    *,
    blur: float,
    antialias: bool = False,
) -> jax.Array:
    """`crop_and_resize`, whose gradient in the box sees farther than to the next pixel.

    The value, and the gradient in the image, are those of the crop. The derivative in the box is not: it is that of a
    crop of the image averaged over `blur` pixels. The exact one tells what happens within about half a pixel; to move
    a box towards what it is to show, one that averages over as much as it is off by leads there.

    Args:
        images, boxes, output_size, antialias: as `crop_and_resize` takes them; H and W known.
        blur: in pixels of the image, at least 1; a Python number.

    Raises:
        ValueError: for a blur below 1, and as `crop_and_resize`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> image = jnp.zeros((32, 32, 1)).at[12:20, 20:28].set(1.0)
        >>> brightness = lambda box: crop_with_wide_gradient(image, box, 8, blur=8.0).sum()
        >>> bool(jax.grad(brightness)(jnp.array([0.3, 0.1, 0.6, 0.5]))[3] > 0)  # farther right it is bright
        True
    """
    images, boxes = jnp.asarray(images), jnp.asarray(boxes)
    if blur < 1.0:
        raise ValueError(f"blur must be at least 1 pixel, got {blur!r}")
    still = jax.lax.stop_gradient
    sharp = crop_and_resize(images, still(boxes), output_size, antialias=antialias)
    coarse = [max(round(side / blur), 1) for side in images.shape[-3:-1]]
    whole = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0], jnp.float32), (*images.shape[:-3], 4))
    blurred = still(crop_and_resize(images, whole, coarse, antialias=True))
    wide = crop_and_resize(blurred, boxes, output_size, antialias=antialias).astype(sharp.dtype)
    return sharp + _no_value(wide)


@jax.custom_jvp
def _no_value(x: jax.Array) -> jax.Array:
    """0, with the derivative of x: x - x would be NaN where it is not finite."""
    return jnp.zeros_like(x)


_no_value.defjvps(lambda dot, out, x: dot)
