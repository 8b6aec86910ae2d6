"""Identities with another gradient, against SciPy's filter and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from c2f_jax.kernels import blur_gradient, crop_and_resize, scale_gradient


def test_scaled_gradient():
    x = jnp.array([3.0, -2.0])
    np.testing.assert_array_equal(scale_gradient(x, 0.1), x)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(scale_gradient(x, 0.1) ** 2))(x), 0.2 * x, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.7, 4.0])
def test_blurred_gradient_is_a_gaussian_filter_of_it(sigma):
    rng = np.random.default_rng(0)
    images, weights = (rng.normal(size=(2, 12, 9, 3)).astype(np.float32) for _ in range(2))

    def loss(images):
        return jnp.sum(weights * blur_gradient(images, sigma) ** 2)

    np.testing.assert_array_equal(blur_gradient(images, sigma), images)
    expected = ndimage.gaussian_filter(2.0 * weights * images, (0, sigma, sigma, 0), mode="constant", truncate=8.0)
    np.testing.assert_allclose(jax.grad(loss)(images), expected, atol=1e-5)
    # Forward mode blurs the slopes: the same bilinear form.
    _, slope = jax.jvp(loss, (images,), (weights,))
    np.testing.assert_allclose(slope, np.sum(expected * weights), rtol=1e-4)


def test_no_blur_is_no_change():
    images = jnp.ones((1, 4, 4, 1))
    assert blur_gradient(images, 0.0) is images


def test_a_blurred_gradient_sees_further():
    """A thin bar to be moved onto a place four pixels away: only the blurred gradient knows of it."""
    image = jnp.zeros((1, 64, 64, 1)).at[:, :, 30:32].set(1.0)
    target = jnp.zeros((1, 32, 32, 1)).at[:, :, 10:12].set(1.0)

    def loss(shift, sigma):
        box = jnp.array([[0.25, 0.25, 0.75, 0.75]]) + shift * jnp.array([[0.0, 1.0, 0.0, 1.0]])
        return -jnp.sum(blur_gradient(crop_and_resize(image, box, 32), sigma) * target)

    # The bar lies at 14 to 16 of the view; moving the view to the right brings it to the target, and lowers the loss.
    assert float(loss(4 / 64, 0.0)) < float(loss(0.0, 0.0)) - 1.0
    assert float(jax.grad(loss)(0.2 / 64, 0.0)) >= -1e-3
    assert float(jax.grad(loss)(0.2 / 64, 2.0)) < -1.0
