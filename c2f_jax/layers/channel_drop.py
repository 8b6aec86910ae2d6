"""Channel DropBlock: a group of channels that say much the same is left out for each example of a training batch.

References: Ding et al., Channel DropBlock: An Improved Regularization Method for Fine-Grained Visual Classification,
BMVC 2021, arXiv:2106.03432; of its two measures of correlation the bilinear one.
"""

import jax
import jax.numpy as jnp

from c2f_jax.layers.drop_path import Dropping


def channel_drop(keys: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Feature maps with zeros in one random channel and in those most like it, the others scaled to keep their mean.

    How alike two channels are is the cosine of their maps, to four digits: rounding, which depends on the device, is
    not to choose between doubles. Of those that are equally alike (all, if the random channel is zero everywhere)
    chance takes some. As many go for every example. The choice has no gradient.

    Args:
        keys: of the examples [B].
        x: feature maps [B, h, w, C].
        rate: share of the channels to drop, above 0 and below 1, rounded to at least one channel and at most all but
            one.

    Returns:
        [B, h, w, C], with `C - n` channels of x times `C / (C - n)` for n that are dropped.
    """
    channels = x.shape[-1]
    count = min(max(1, round(rate * channels)), channels - 1)
    flat = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(len(x), -1, channels)
    lengths = jnp.sqrt(jnp.sum(flat * flat, axis=1, keepdims=True))
    maps = flat / jnp.where(lengths > 0, lengths, 1.0)

    def kept(key: jax.Array, maps: jax.Array) -> jax.Array:
        lot = jax.random.uniform(key, (channels,))  # draws the first channel, and among equals
        alike = jnp.einsum("pc,p->c", maps, maps[:, jnp.argmin(lot)], precision="highest")
        return jnp.argsort(jnp.lexsort((lot, -jnp.round(alike, 4)))) >= count

    factors = jax.vmap(kept)(keys, maps) * (channels / (channels - count))
    return x * factors.astype(x.dtype)[:, None, None, :]


class ChannelDrop(Dropping):
    """`channel_drop` of feature maps."""

    drop = staticmethod(channel_drop)
