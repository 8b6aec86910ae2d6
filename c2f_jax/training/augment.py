"""Random views, on the device: boxes, mirrors and colour. Nothing here resamples; one crop makes each view.

All randomness is keyed by (seed, step, example index), so a batch gets the same views on one device or on many.
"""

import jax
import jax.numpy as jnp

from c2f_jax.kernels import flip_horizontal

# Streams of one example's key.
CROP, COLOUR, REGION = range(3)


def example_keys(seed: int, step: jax.Array, index: jax.Array) -> jax.Array:
    """One key per example. seed: int; step: int scalar; index: position of each example in its split [B]. -> [B]."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)


def stream(keys: jax.Array, number: int) -> jax.Array:
    """Independent keys for one use of each example's key. keys [B] -> [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def random_boxes(keys: jax.Array, square: jax.Array, *, min_side: float, max_side: float, flip: bool) -> jax.Array:
    """Random boxes of one shape per image, mirrored with probability one half where `flip`.

    Args:
        keys: [B].
        square: (height, width) of a box of side 1, as fractions of the image [B, 2]: 1 and 1, or those of the largest
            square of its pixels.
        min_side, max_side: sides are U(min_side, max_side) of `square`. WS-DAN's 448 of 512 px is 0.875 for both.
        flip: mirror half of them (xmin > xmax).

    Returns:
        Oriented boxes [B, 4] in raw coordinates.
    """

    def one(key: jax.Array, square: jax.Array) -> jax.Array:
        side_key, place_key, flip_key = jax.random.split(key, 3)
        sides = jax.random.uniform(side_key, minval=min_side, maxval=max_side) * square
        corner = jax.random.uniform(place_key, (2,)) * (1.0 - sides)
        box = jnp.concatenate([corner, corner + sides])
        return jnp.where(flip & jax.random.bernoulli(flip_key), flip_horizontal(box), box)

    return jax.vmap(one)(stream(keys, CROP), square)


def random_colour(
    keys: jax.Array, views: jax.Array, *, brightness: float, saturation: tuple[float, float]
) -> jax.Array:
    """Brightness and saturation changes, one draw per example, as WS-DAN has them.

    Args:
        keys: [B].
        views: [B, S, S, 3], values 0..255.
        brightness: a shift U(-brightness, brightness), as a fraction of 255.
        saturation: a factor U(low, high) on each pixel's distance from its grey level.

    Returns:
        [B, S, S, 3] clipped to 0..255.
    """

    def one(key: jax.Array, view: jax.Array) -> jax.Array:
        shift_key, factor_key = jax.random.split(key)
        shift = jax.random.uniform(shift_key, minval=-brightness, maxval=brightness)
        factor = jax.random.uniform(factor_key, minval=saturation[0], maxval=saturation[1])
        grey = jnp.mean(view, axis=-1, keepdims=True)
        changed = grey + factor * (view - grey) + 255.0 * shift
        return jnp.clip(changed, 0.0, 255.0).astype(view.dtype)

    return jax.vmap(one)(stream(keys, COLOUR), views)


def normalise(views: jax.Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """views [..., 3] with values 0..255 -> (views - mean) / std; mean and std in grey levels, per channel."""
    shape = (1,) * (views.ndim - 1) + (3,)
    return (views - jnp.asarray(mean, views.dtype).reshape(shape)) / jnp.asarray(std, views.dtype).reshape(shape)
