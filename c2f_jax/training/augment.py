"""Random views, on the device: boxes, mirrors and colour. Nothing here resamples; one crop makes each view.

All randomness is keyed by (seed, step, row of the global batch), so a batch gets the same views on one device or on
many, and an example that stands in it twice (the end of one epoch and the beginning of the next) gets two.
"""

import jax
import jax.numpy as jnp

from c2f_jax.kernels import flip_horizontal

# Streams of one example's key.
CROP, COLOUR, REGION, PLACE = range(4)


def example_keys(seed: int, step: jax.Array, row: jax.Array) -> jax.Array:
    """One key per example. seed: int; step: int scalar; row: place of each example in the global batch [B]. -> [B]."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, row)


def stream(keys: jax.Array, number: int) -> jax.Array:
    """Independent keys for one use of each example's key. keys [B] -> [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def random_boxes(keys: jax.Array, place: jax.Array, *, min_side: float, max_side: float, flip: bool) -> jax.Array:
    """Random squares, mirrored with probability one half where `flip`.

    Args:
        keys: [B].
        place: (y, x) [B, 2] from 0 to 1: where a square lies between the first and the last place it can take. Where
            the image is a window of a longer photo and lies in it likewise, so does the square in the photo.
        min_side, max_side: sides are U(min_side, max_side) of the image's. WS-DAN's 448 of 512 px is 0.875 for both.
        flip: mirror half of them (xmin > xmax).

    Returns:
        Oriented boxes [B, 4] in raw coordinates.
    """

    def one(key: jax.Array, place: jax.Array) -> jax.Array:
        side_key, flip_key = jax.random.split(key)
        side = jax.random.uniform(side_key, minval=min_side, maxval=max_side)
        corner = place * (1.0 - side)
        box = jnp.concatenate([corner, corner + side])
        return jnp.where(flip & jax.random.bernoulli(flip_key), flip_horizontal(box), box)

    return jax.vmap(one)(stream(keys, CROP), place)


def random_places(keys: jax.Array) -> jax.Array:
    """Uniform places [B, 2] for `random_boxes`. keys [B]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (2,)))(stream(keys, PLACE))


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
