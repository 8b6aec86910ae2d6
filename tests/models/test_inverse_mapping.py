"""The square's place: against loops from the definition, and what its gradient reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.models.inverse_mapping import SHARPNESS, likeliest_place, place_logits
from c2f_jax.models.two_looks import learned_region, square_at


def mean_inside(attention: np.ndarray, y: int, x: int, side: float) -> float:
    """Mean of a map over the square around a cell's middle, on a grid of points 200 times as fine as the cells."""
    h, w = attention.shape
    fine = 200
    ys, xs = (np.arange(n * fine) / fine + 0.5 / fine for n in (h, w))
    rows, columns = np.abs(ys - y - 0.5) < 0.5 * side * h, np.abs(xs - x - 0.5) < 0.5 * side * w
    return np.repeat(np.repeat(attention, fine, 0), fine, 1)[np.ix_(rows, columns)].mean()


@pytest.mark.parametrize("side", [0.05, 0.4, 1.0])
def test_logits_are_of_the_attention_in_the_square(side):
    attention, score = 0.1 + np.random.default_rng(0).random((2, 3, 5)), np.random.default_rng(1).normal(size=(2, 3, 5))
    got = place_logits(jnp.asarray(attention), jnp.asarray(score), side=side)
    inside = [[[mean_inside(a, y, x, side) for x in range(5)] for y in range(3)] for a in attention]
    np.testing.assert_allclose(got, np.log(inside) + score, atol=5e-3)


def test_logits_do_not_change_with_the_maps_scale_and_stand_nothing():
    attention, score = jax.random.uniform(jax.random.key(0), (2, 4, 4)), jax.random.normal(jax.random.key(1), (2, 4, 4))

    def q(attention):
        return jax.nn.softmax(place_logits(attention, score, side=0.4), axis=(1, 2))

    np.testing.assert_allclose(q(attention), q(1000.0 * attention), rtol=1e-4)
    np.testing.assert_allclose(q(jnp.zeros_like(attention)), jax.nn.softmax(score, axis=(1, 2)), rtol=1e-5)
    gradient = jax.grad(lambda a: jnp.sum(q(a) ** 2))(jnp.zeros_like(attention))
    assert jnp.all(jnp.isfinite(gradient))


def test_the_likeliest_place_is_a_mean_near_the_peak():
    logits = jnp.full((1, 8, 8), -50.0)
    np.testing.assert_allclose(likeliest_place(logits.at[0, 2, 5].set(0.0), side=0.4)[0], [2.5 / 8, 5.5 / 8])
    # Two neighbours: between them, nearer to the likelier; a second mode far away does not count.
    two = logits.at[0, 2, 5].set(0.0).at[0, 3, 5].set(np.log(0.5)).at[0, 7, 0].set(-0.1)
    share = 0.5**SHARPNESS / (1 + 0.5**SHARPNESS)
    np.testing.assert_allclose(likeliest_place(two, side=0.4)[0], [(2.5 + share) / 8, 5.5 / 8], rtol=1e-5)
    np.testing.assert_allclose(
        likeliest_place(logits.at[0, 2, 5].set(0.0), side=0.4, cell_offset=0.25)[0], [2.25 / 8, 5.25 / 8], rtol=1e-6
    )


def test_the_place_moves_with_the_maps():
    logits = jax.random.normal(jax.random.key(0), (3, 6, 6))
    place = likeliest_place(logits, side=0.5)
    np.testing.assert_allclose(
        likeliest_place(logits[:, ::-1], side=0.5), place * jnp.array([-1, 1]) + jnp.array([1, 0]), atol=1e-5
    )
    np.testing.assert_allclose(likeliest_place(jnp.swapaxes(logits, 1, 2), side=0.5), place[:, ::-1], atol=1e-5)
    gradient = jax.grad(lambda v: likeliest_place(v, side=0.5).sum())(logits)
    assert jnp.all(jnp.isfinite(gradient)) and jnp.any(gradient != 0)


def test_squares_stay_in_the_raw_image_and_keep_the_mirror():
    coarse = jnp.array([[0.1, 0.2, 0.9, 1.0], [0.1, 1.0, 0.9, 0.2], [0.0, 0.0, 0.5, 0.5]])
    place = jnp.array([[0.5, 0.25], [0.5, 0.25], [0.0, 1.0]])
    got = square_at(place, coarse, side=0.4)
    expected = [[0.3, 0.2, 0.7, 0.6], [0.3, 1.0, 0.7, 0.6], [0.0, 0.3, 0.4, 0.7]]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(learned_region({"place": place}, coarse, side=0.4), expected, atol=1e-6)
