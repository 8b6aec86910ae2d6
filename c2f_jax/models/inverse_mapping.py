"""From attended feature maps back to where in the view to look again (ours, in the abstract's terms)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.kernels import region_distribution, soft_box
from c2f_jax.layers.conv import Conv

SHARPNESS = 3.0  # power of the places' probabilities from which a look is drawn, and of which a test takes the mean


def place_logits(mean_attention: jax.Array, score: jax.Array, *, side: float) -> jax.Array:
    """Where to put a square of `side`: ``log(mean of A in the square around each cell + eps) + score``.

    Args:
        mean_attention: A [B, h, w], not negative.
        score: [B, h, w], log odds that shift it.
        side: fraction of the view; what of a square lies beyond the view does not count.

    Returns:
        Logits [B, h, w] in float32 or wider. `eps` follows A's maximum, so their softmax does not change with A's
        scale, and an all-zero A gives that of the score.
    """
    dtype = jnp.promote_types(jnp.result_type(mean_attention, score), jnp.float32)
    rows, columns = (jnp.asarray(_cover(count, side), dtype) for count in mean_attention.shape[1:])
    inside = jnp.einsum("byx,yk,xl->bkl", mean_attention.astype(dtype), rows, columns, precision="highest")
    peak = jax.lax.stop_gradient(jnp.max(inside, axis=(-2, -1), keepdims=True))
    return jnp.log(inside + (1e-4 * peak + 1e-8)) + score.astype(dtype)


def _cover(count: int, side: float) -> np.ndarray:
    """[cell, square]: shares of the square of `side` around each cell's middle that lie in each of `count` cells."""
    cell = np.arange(count)
    half = 0.5 * max(side * count, 1e-3)  # a square has an inside
    low, high = (np.clip(cell + 0.5 + sign * half, 0, count) for sign in (-1, 1))
    shared = np.maximum(np.minimum(high, cell[:, None] + 1) - np.maximum(low, cell[:, None]), 0.0)
    return shared / shared.sum(axis=0)


def likeliest_place(logits: jax.Array, *, side: float, cell_offset: float = 0.0) -> jax.Array:
    """The mean of the places that a square of `side` around the likeliest cell holds; one mode of several.

    Args:
        logits: [B, h, w] of the distribution, which is taken to the power `SHARPNESS`.
        side: fraction of the view.
        cell_offset: see `soft_box`.

    Returns:
        (y, x) [B, 2] in view coordinates.
    """
    count, h, w = logits.shape
    best = jnp.argmax(logits.reshape(count, -1), axis=-1)
    y, x = jnp.arange(h), jnp.arange(w)
    near_y = jnp.abs(y - best[:, None] // w) <= 0.5 * side * h
    near_x = jnp.abs(x - best[:, None] % w) <= 0.5 * side * w
    near = near_y[:, :, None] & near_x[:, None, :]
    q = jax.nn.softmax(SHARPNESS * logits, axis=(-2, -1), where=near)
    mean = jnp.stack([jnp.sum(q * y[:, None], axis=(1, 2)), jnp.sum(q * x, axis=(1, 2))], axis=-1)
    return (mean + (0.5 - cell_offset)) / jnp.array([h, w], mean.dtype)


class InverseMapping(nn.Module):
    """From attended feature maps back to the informative region of the view.

    ``u = conv3x3(relu(conv1x1(concat(A, mean(A) * conv1x1(F)))))`` shifts the attention's own distribution
    ``q = softmax(log(relu(mean(A) - low) + eps) + u)``; the box is q's mean and ``2 kappa`` standard deviations per
    axis. The last layer starts at zero: at first the region is the attention's own, and learning can only move it
    from there.

    With a `side` the region is a square of that side instead: u, which is told where in the view a cell lies, shifts
    the attention within such squares (`place_logits`), and the square's place is the likeliest one.

    Attributes:
        min_side, max_side, temperature: smooth limits of the sides, in fractions of the view.
        kappa_init: kappa at the start; sqrt(3) makes the box of a uniform block that block.
        floor, background: shares of the mean map's maximum and mean that count as background; the larger is `low`.
        cell_offset: how far right and down of what it shows a cell of the feature maps lies, in cells.
        side: of the square, a fraction of the raw image; attention is averaged over that fraction of the view. 0 for a
            box as large as the attention is wide.
        dtype: compute dtype of the score head; the distribution and the box are float32 or wider.
    """

    min_side: float = 0.3
    max_side: float = 1.0
    temperature: float = 0.05
    kappa_init: float = 3.0**0.5
    floor: float = 0.0
    background: float = 0.0
    cell_offset: float = 0.0
    side: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, feature_maps: jax.Array, attention_maps: jax.Array) -> dict[str, jax.Array]:
        """feature_maps [B, h, w, N], attention_maps [B, h, w, M] -> `region` q [B, h, w] and `box` [B, 4] in view
        coordinates; with a `side`, the logits of q as `region_logits`, and `place` (y, x) [B, 2] in place of the box.
        """
        mean_attention = jnp.mean(attention_maps, axis=-1)
        attended = mean_attention[..., None] * Conv(64, (1, 1), dtype=self.dtype, name="project")(feature_maps)
        x = jnp.concatenate([attention_maps, attended], axis=-1)
        if self.side:
            places = _coordinates(x.shape[1], x.shape[2], x.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(places, (x.shape[0], *places.shape))], axis=-1)
        x = nn.relu(Conv(16, (1, 1), use_bias=True, dtype=self.dtype, name="mix")(x))
        zeros = nn.initializers.zeros
        score = Conv(1, (3, 3), padding=1, use_bias=True, kernel_init=zeros, dtype=self.dtype, name="score")(x)
        if self.side:
            logits = place_logits(mean_attention, score[..., 0], side=self.side)
            place = likeliest_place(logits, side=self.side, cell_offset=self.cell_offset)
            return {"region": jax.nn.softmax(logits, axis=(-2, -1)), "region_logits": logits, "place": place}
        q = region_distribution(mean_attention, score[..., 0], floor=self.floor, background=self.background)
        # kappa = softplus(kappa') stays positive for every kappa'.
        raw_kappa = self.param("kappa", nn.initializers.constant(jnp.log(jnp.expm1(self.kappa_init))), ())
        box = soft_box(
            q,
            jax.nn.softplus(raw_kappa),
            min_side=self.min_side,
            max_side=self.max_side,
            temperature=self.temperature,
            cell_offset=self.cell_offset,
        )
        return {"region": q, "box": box}


def _coordinates(h: int, w: int, dtype: Any) -> jax.Array:
    """(y, x) of the cells' middles from -1 to 1, [h, w, 2]."""
    y, x = ((2 * jnp.arange(count, dtype=dtype) + 1) / count - 1 for count in (h, w))
    return jnp.stack(jnp.meshgrid(y, x, indexing="ij"), axis=-1)
