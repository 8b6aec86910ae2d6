"""Attention pooling, the centre loss, and the choice of maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from c2f_jax.kernels import (
    bilinear_attention_pooling,
    center_loss,
    drop_mask,
    resize_maps,
    sample_attention_map,
    update_centers,
)
from tests.kernels import oracles, versions

LABELS = np.array([2, 0, 2, 3, 2])


@pytest.fixture
def x64():
    with versions.x64():
        yield


def example(dtype=np.float32):
    """Features F [5, 4, 3, 6], attention A [5, 4, 3, 2] with zeros in it, as after a ReLU."""
    rng = np.random.default_rng(0)
    features, attention = rng.normal(size=(5, 4, 3, 6)), np.maximum(rng.normal(size=(5, 4, 3, 2)), 0.0)
    return features.astype(dtype), attention.astype(dtype)


def centers_and_pooled(dtype=np.float32):
    """Centres c [4, 7], one of them zeros, and features f [5, 7]."""
    rng = np.random.default_rng(1)
    centers, pooled = rng.normal(size=(4, 7)), rng.normal(size=(5, 7))
    centers[3] = 0.0
    return jnp.asarray(centers, dtype), jnp.asarray(pooled, dtype)


# --- Pooling. ---


def test_pooling_values():
    features, attention = example()
    expected = [oracles.bilinear_attention_pooling(*pair) for pair in zip(features, attention, strict=True)]
    pooled = bilinear_attention_pooling(features, attention)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(pooled**2, axis=-1), np.ones(5), rtol=1e-5)


def test_pooling_puts_each_map_in_its_place():
    """All features of the first map first."""
    features, attention = example()
    attention[..., 1] = 0.0
    pooled = bilinear_attention_pooling(features, attention)
    assert (pooled[:, :6] != 0).all()
    np.testing.assert_array_equal(pooled[:, 6:], np.zeros((5, 6)))


def test_pooling_in_bfloat16_is_float32():
    """Only the inputs are rounded, not what is computed from them."""
    features, attention = (jnp.asarray(maps, jnp.bfloat16) for maps in example())
    pooled = bilinear_attention_pooling(features, attention)
    assert pooled.dtype == jnp.float32
    expected = bilinear_attention_pooling(features.astype(jnp.float32), attention.astype(jnp.float32))
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_pooling_of_nothing_is_zero():
    features, attention = example()
    np.testing.assert_array_equal(bilinear_attention_pooling(features, 0 * attention), np.zeros((5, 12)))
    np.testing.assert_array_equal(bilinear_attention_pooling(0 * features, attention), np.zeros((5, 12)))


def test_pooling_gradients(x64):
    features, attention = (maps[:2] for maps in example(np.float64))
    check_grads(
        jax.jit(bilinear_attention_pooling),
        (features, attention),
        order=1,
        modes=("fwd", "rev"),
        atol=1e-5,
        rtol=1e-5,
    )


def one_hot_map():
    attention = np.zeros((4, 3, 2), np.float32)
    attention[1, 2, 0] = 1.0
    return attention


@jax.jit
def pooling_gradients(features, attention):
    def loss(features, attention):
        return jnp.arange(12.0) @ bilinear_attention_pooling(features, attention)

    return jax.grad(loss, argnums=(0, 1))(features, attention)


@pytest.mark.parametrize("attention", [np.zeros((4, 3, 2)), one_hot_map(), np.ones((4, 3, 2))])
@pytest.mark.parametrize("scale", [1.0, 0.0, 1e-12])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_pooling_gradients_are_finite(attention, scale, dtype):
    """Where a signed root and a norm without care have infinite slopes."""
    features = jnp.asarray(scale * example()[0][0], dtype)
    for gradient in pooling_gradients(features, jnp.asarray(attention, dtype)):
        assert jnp.isfinite(gradient).all()


# --- Centres. ---


def test_center_loss_values():
    centers, pooled = centers_and_pooled()
    expected = oracles.center_loss(pooled, centers, LABELS)
    np.testing.assert_allclose(center_loss(pooled, centers, LABELS), expected, rtol=1e-5)
    np.testing.assert_allclose(expected[3], np.sum(pooled[3] ** 2), rtol=1e-5)


def test_center_loss_gradients(x64):
    """Into the features; none into the centres."""
    centers, pooled = centers_and_pooled(np.float64)
    check_grads(jax.jit(lambda f: center_loss(f, centers, LABELS)), (pooled,), order=1, modes=("fwd", "rev"))
    gradient = jax.jit(jax.grad(lambda c: center_loss(pooled, c, LABELS).sum()))(centers)
    np.testing.assert_array_equal(gradient, np.zeros_like(centers))


@pytest.mark.parametrize("mask", [None, np.array([1.0, 1.0, 0.0, 1.0, 1.0]), np.array([1, 0, 1, 0, 1], bool)])
@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_update_values(rate, mask):
    """Label 2 comes three times."""
    centers, pooled = centers_and_pooled()
    updated = update_centers(centers, pooled, LABELS, rate=rate, mask=mask)
    np.testing.assert_allclose(updated, oracles.update_centers(centers, pooled, LABELS, rate, mask), atol=1e-6)
    np.testing.assert_array_equal(updated[1], centers[1])


def test_update_rate_is_that_of_the_reference():
    centers, pooled = centers_and_pooled()
    np.testing.assert_allclose(
        update_centers(centers, pooled, LABELS), oracles.update_centers(centers, pooled, LABELS, 0.05), atol=1e-6
    )


def test_update_accumulates_repeated_labels():
    """By hand: from zero, three examples of one class move its centre by their sum."""
    pooled = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], np.float32)
    updated = update_centers(jnp.zeros((2, 2)), pooled, np.array([1, 1, 1]), rate=0.5)
    np.testing.assert_allclose(updated, [[0.0, 0.0], [2.0, 2.5]])


def test_update_without_examples_changes_nothing():
    centers, pooled = centers_and_pooled()
    np.testing.assert_array_equal(update_centers(centers, pooled, LABELS, mask=np.zeros(5)), centers)


def test_update_has_no_gradient():
    centers, pooled = centers_and_pooled()
    gradients = jax.grad(lambda c, f: update_centers(c, f, LABELS).sum(), argnums=(0, 1))(centers, pooled)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


# --- The choice of a map. ---


def frequencies(means, draws=4000):
    """How often each of the maps with these means is drawn."""
    maps = np.broadcast_to(np.array(means, np.float32), (draws, 2, 2, len(means))).copy()
    maps[:, 0] *= 2.0
    maps[:, 1] *= 0.0
    maps += np.arange(len(means), dtype=np.float32) * 1e-6
    chosen = jax.jit(sample_attention_map)(jax.random.split(jax.random.key(0), draws), maps)
    assert chosen.shape == (draws, 2, 2)
    matches = np.abs(np.array(chosen)[..., None] - maps).max(axis=(1, 2)) < 5e-7
    assert (matches.sum(axis=-1) == 1).all()
    return matches.mean(axis=0)


def test_sampling_goes_with_the_root_of_the_mean():
    """Four standard deviations of a frequency over 4000 draws are 0.03."""
    np.testing.assert_allclose(frequencies([1.0, 4.0, 9.0]), [1 / 6, 2 / 6, 3 / 6], atol=0.03)


def test_sampling_leaves_out_empty_maps():
    assert frequencies([0.0, 1.0])[0] < 0.01


def test_sampling_of_nothing_is_even():
    """Maps of zeros have odds too. The marks that tell them apart here are far below the epsilon."""
    keys = jax.random.split(jax.random.key(1), 4000)
    maps = np.zeros((4000, 2, 2, 4), np.float32)
    maps[:, 0, 0] = np.arange(4) * 1e-12
    chosen = np.array(jax.jit(sample_attention_map)(keys, maps))[:, 0, 0]
    shares = [(np.abs(chosen - k * 1e-12) < 1e-14).mean() for k in range(4)]
    np.testing.assert_allclose(shares, 4 * [1 / 4], atol=0.03)


def test_sampling_draws_for_each_image_on_its_own():
    """An image's draw depends on its own key and maps alone."""
    attention = example()[1] + 1.0
    keys = jax.random.split(jax.random.key(2), 5)
    sample = jax.jit(sample_attention_map)
    together, alone = sample(keys, attention), [sample(keys[b : b + 1], attention[b : b + 1])[0] for b in range(5)]
    np.testing.assert_array_equal(together, alone)


# --- Resizing and dropping. ---


@pytest.mark.parametrize("size", [2, 4, 9])
def test_resize_values(size):
    maps = example()[1].transpose(0, 3, 1, 2)[:2]
    expected = [[oracles.resize_maps(one, size) for one in image] for image in maps]
    np.testing.assert_allclose(resize_maps(maps, size), expected, atol=1e-6)


def test_resize_gradients(x64):
    maps = example(np.float64)[1][0, :, :, 0]
    check_grads(jax.jit(lambda m: resize_maps(m, 6)), (maps,), order=1, modes=("fwd", "rev"))


def test_drop_mask_values():
    maps = np.random.default_rng(0).uniform(size=(4, 5, 6)).astype(np.float32)
    maps[3] = 0.0
    thresholds = np.array([0.2, 0.5, 0.9, 0.3], np.float32)
    masks = drop_mask(maps, thresholds)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, [oracles.drop_mask(*pair) for pair in zip(maps, thresholds, strict=True)])
    np.testing.assert_array_equal(drop_mask(maps, 0.5)[1], masks[1])
    assert not masks[:3].all(axis=(1, 2)).any()
    assert masks[3].all()


def test_drop_mask_by_hand():
    """A cell at exactly the share is dropped."""
    assert drop_mask(jnp.array([[4.0, 2.0, 1.9, 0.0]]), 0.5).tolist() == [[False, False, True, True]]
