"""Random views, on the device: boxes, mirrors and colour. Nothing here resamples; one crop makes each view.

All randomness is keyed by (seed, step, row of the global batch), so a batch gets the same views on one device or on
many, and an example that stands in it twice (the end of one epoch and the beginning of the next) gets two.
"""

import jax
import jax.numpy as jnp

from c2f_jax.kernels import flip_horizontal, flip_vertical

# Streams of one example's key.
CROP, COLOUR, REGION, PLACE, MIX, ERASE, DEPTH = range(7)


def example_keys(seed: int, step: jax.Array, row: jax.Array) -> jax.Array:
    """One key per example. seed: int; step: int scalar; row: place of each example in the global batch [B]. -> [B]."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, row)


def stream(keys: jax.Array, number: int) -> jax.Array:
    """Independent keys for one use of each example's key. keys [B] -> [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def random_boxes(
    keys: jax.Array, place: jax.Array, *, min_side: float, max_side: float, flip: bool, upside_down: bool = False
) -> jax.Array:
    """Random squares, mirrored with probability one half where `flip`, upside down likewise.

    Args:
        keys: [B].
        place: (y, x) [B, 2] from 0 to 1: where a square lies between the first and the last place it can take. Where
            the image is a window of a longer photo and lies in it likewise, so does the square in the photo.
        min_side, max_side: sides are U(min_side, max_side) of the image's. WS-DAN's 448 of 512 px is 0.875 for both.
        flip: mirror half of them (xmin > xmax).
        upside_down: turn half of them upside down (ymin > ymax).

    Returns:
        Oriented boxes [B, 4] in raw coordinates.
    """

    def one(key: jax.Array, place: jax.Array) -> jax.Array:
        side_key, flip_key = jax.random.split(key)
        side = jax.random.uniform(side_key, minval=min_side, maxval=max_side)
        corner = place * (1.0 - side)
        box = jnp.concatenate([corner, corner + side])
        box = jnp.where(flip & jax.random.bernoulli(flip_key), flip_horizontal(box), box)
        if upside_down:
            turned = jax.random.bernoulli(jax.random.fold_in(flip_key, 1))
            box = jnp.where(turned, flip_vertical(box), box)
        return box

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


def random_erase(keys: jax.Array, views: jax.Array, *, probability: float, fill: tuple[float, ...]) -> jax.Array:
    """A random rectangle of a view takes one colour, with that probability.

    Args:
        keys: [B].
        views: [B, S, S, 3], values 0..255.
        probability: of each view.
        fill: the colour; the mean of the input makes it 0 for the network.

    Returns:
        [B, S, S, 3]. Rectangles have a fiftieth to a third of the view, sides of 0.3 to 3.3.

    References:
        Zhong et al., Random Erasing Data Augmentation, arXiv:1708.04896.
    """

    def one(key: jax.Array, view: jax.Array) -> jax.Array:
        draws = jax.random.uniform(key, (5,))
        area, aspect = 0.02 + draws[0] * (1 / 3 - 0.02), jnp.exp((2 * draws[1] - 1) * jnp.log(3.3))
        sides = jnp.minimum(jnp.sqrt(area * jnp.stack([aspect, 1 / aspect])), 1.0)
        low = draws[2:4] * (1.0 - sides)
        inside = _inside(view.shape[-3], low, low + sides) & (draws[4] < probability)
        return jnp.where(inside[..., None], jnp.asarray(fill, view.dtype), view)

    return jax.vmap(one)(stream(keys, ERASE), views)


def mix_examples(
    keys: jax.Array, images: jax.Array, labels: jax.Array, boxes: jax.Array, *, mixup: float, cutmix: float
) -> dict[str, jax.Array]:
    """Each example mixed with the one as far from the batch's other end; where both ways are on, either by chance.

    Args:
        keys: [B].
        images: raw, [B, R, R, 3], values 0..255.
        labels: int [B].
        boxes: the coarse views' boxes [B, 4] in raw coordinates, mirrored or not: what is pasted lies in them.
        mixup: alpha of the Beta(alpha, alpha) that an image's share is drawn from, where two are averaged; 0 for never.
        cutmix: the same, where a rectangle of the other is pasted into it.

    Returns:
        `image` float32 [B, R, R, 3], `other` int [B], the other's label, and `share` [B], the example's own, at least a
        half: who it is named after is the greater part of it.

    References:
        Zhang et al., mixup, arXiv:1710.09412; Yun et al., CutMix, arXiv:1905.04899.
    """

    def one(key: jax.Array, image: jax.Array, other: jax.Array, box: jax.Array) -> tuple[jax.Array, jax.Array]:
        kind_key, share_key, corner_key = jax.random.split(key, 3)
        pastes = jax.random.uniform(kind_key) < (0.5 if mixup and cutmix else float(cutmix > 0))
        # Below a thousandth shares are 1 anyway, and in float32 draws would not be numbers.
        alpha = jnp.where(pastes, max(cutmix, 1e-3), max(mixup, 1e-3))
        share = jax.random.beta(share_key, alpha, alpha)
        share = jnp.maximum(share, 1.0 - share)
        low, high = jnp.minimum(box[:2], box[2:]), jnp.maximum(box[:2], box[2:])
        side = jnp.sqrt(1.0 - share)
        corner = low + jax.random.uniform(corner_key, (2,)) * (1.0 - side) * (high - low)
        inside = _inside(image.shape[-3], corner, corner + side * (high - low))
        pasted = jnp.where(inside[..., None], other, image)
        return jnp.where(pastes, pasted, share * image + (1.0 - share) * other), share

    wide = images.astype(jnp.float32)
    image, share = jax.vmap(one)(stream(keys, MIX), wide, jnp.flip(wide, 0), boxes)
    return {"image": image, "other": jnp.flip(labels, 0), "share": share}


def _inside(side: int, low: jax.Array, high: jax.Array) -> jax.Array:
    """Which pixels [side, side] of an image have their middle between two corners (y, x), in fractions of it."""
    middles = (jnp.arange(side) + 0.5) / side
    rows, columns = ((middles >= a) & (middles < b) for a, b in zip(low, high, strict=True))
    return rows[:, None] & columns


def normalise(views: jax.Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """views [..., 3] with values 0..255 -> (views - mean) / std; mean and std in grey levels, per channel."""
    shape = (1,) * (views.ndim - 1) + (3,)
    return (views - jnp.asarray(mean, views.dtype).reshape(shape)) / jnp.asarray(std, views.dtype).reshape(shape)
