"""Identities with another gradient, for what lies between the second look's loss and its box."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """The identity whose gradient is multiplied by `scale`. x [...]."""
    return _scale_gradient(x, scale)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    del scale
    return x


@_scale_gradient.defjvp
def _scale_gradient_jvp(scale: float, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (x,), (slopes,) = primals, tangents
    return x, slopes * jnp.asarray(scale, x.dtype)


def blur_gradient(images: jax.Array, sigma: float) -> jax.Array:
    """The identity whose gradient is blurred by a Gaussian, as image registration blurs its images to see further.

    A network's gradient in its input is noise from pixel to pixel: what it promises for a crop's box holds for moves
    of a fraction of a pixel and for none of those that a box should make. The blurred one is right less precisely,
    further away. Since blurring is symmetric, the box's gradient is that of a crop whose slopes were blurred.

    Args:
        images: [..., H, W, C], a crop on its way to the network.
        sigma: standard deviation in pixels; 0 is the plain identity. Beyond the edges the gradient is 0.

    Returns:
        `images`.

    References:
        Lucas and Kanade 1981, An Iterative Image Registration Technique, on coarse-to-fine; the use on gradients: ours.
    """
    return _blur_gradient(images, sigma) if sigma > 0 else images


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _blur_gradient(images: jax.Array, sigma: float) -> jax.Array:
    del sigma
    return images


@_blur_gradient.defjvp
def _blur_gradient_jvp(sigma: float, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (images,), (slopes,) = primals, tangents
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    rows, columns = (jnp.asarray(_gaussian(size, sigma), dtype) for size in images.shape[-3:-1])
    # The matrices are symmetric, so the transpose, which reverse mode takes, blurs likewise.
    blurred = jnp.einsum(
        "yi,...ijc,jx->...yxc", rows, slopes.astype(dtype), columns, precision=jax.lax.Precision.HIGHEST
    )
    return images, blurred.astype(images.dtype)


def _gaussian(size: int, sigma: float) -> np.ndarray:
    """[size, size], symmetric: the weight of each pixel for each, of a Gaussian that sums to 1 on an endless line."""
    distances = np.arange(size)[:, None] - np.arange(size)
    reach = np.arange(-int(np.ceil(8 * sigma)), int(np.ceil(8 * sigma)) + 1)
    return np.exp(-0.5 * np.square(distances / sigma)) / np.sum(np.exp(-0.5 * np.square(reach / sigma)))
