"""Labels teach where to look: a table of what each place of a photo tells about its label.

`log P(y | square k)`, of classifiers that were not fitted to the photo, says how much a look at k would tell. With the
region's distribution q, ``sum_k q_k P(y | square k)`` is how likely the label is to one who looks where q says, and q
learns minus its logarithm. The gradient by q's logits is q - t, ``t ~ q_k P(y | square k)``: whole looks are compared
wherever they lie, nothing is drawn, and the classifiers that judge stay as they are, so that none praises himself. A
gradient through the crop holds for a quarter of a pixel only (docs/findings.md).
"""

from typing import Any

import jax
import jax.numpy as jnp

from c2f_jax.kernels import compose

PART = 0.5  # side of the table's squares, of a second look's: what it is centred on


def cover(
    window: jax.Array, *, cells: int, side: float, grid: int, cell_offset: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Which cells of the whole photo's maps lie in the table's squares, and how much of them.

    The squares are grid x grid, from the first to the last place they can take along each side of the photo.

    Args:
        window: the raw image in the photo [B, 4]: it tells the photo's shape.
        cells: of the maps along each side.
        side: of the squares, a fraction of the raw image.
        grid: G, at least 2.
        cell_offset: see `soft_box`.

    Returns:
        Weights along y and x, [B, G, cells] each, with sum 1 over the cells.
    """

    def along(axis: int) -> jax.Array:
        length = side * (window[:, axis + 2] - window[:, axis])
        start = jnp.linspace(0.0, 1.0, grid) * (1.0 - length)[:, None]
        edges = (jnp.arange(cells + 1) - cell_offset) / cells
        low = jnp.maximum(start[..., None], edges[:-1])
        high = jnp.minimum((start + length[:, None])[..., None], edges[1:])
        shares = jnp.maximum(high - low, 0.0)
        return shares / jnp.sum(shares, axis=-1, keepdims=True)

    return along(0), along(1)


def evidence_at(
    evidence: jax.Array,
    window: jax.Array,
    coarse_box: jax.Array,
    *,
    cells: tuple[int, int],
    side: float,
    cell_offset: float = 0.0,
) -> jax.Array:
    """The table at the middles of a coarse view's cells, by bilinear interpolation; beyond its places the nearest.

    Args:
        evidence: [B, G, G] of the photos, by `cover`.
        window: the raw images in their photos [B, 4].
        coarse_box: the views in the raw images [B, 4], oriented.
        cells: (h, w) of the view's feature maps.
        side: as of `cover`.
        cell_offset: see `soft_box`.

    Returns:
        [B, h, w].
    """
    view = compose(window, coarse_box)

    def weights(axis: int) -> jax.Array:
        """[B, cells, G]"""
        start, end, of_photo = view[:, axis], view[:, axis + 2], side * (window[:, axis + 2] - window[:, axis])
        middle = (jnp.arange(cells[axis]) + (0.5 - cell_offset)) / cells[axis]
        middle = start[:, None] + middle * (end - start)[:, None]
        last = evidence.shape[1 + axis] - 1
        # A square as long as the photo has one place only.
        place = (middle - 0.5 * of_photo[:, None]) / jnp.maximum(1.0 - of_photo, 1e-6)[:, None]
        return jnp.maximum(1.0 - jnp.abs(last * jnp.clip(place, 0.0, 1.0)[..., None] - jnp.arange(last + 1)), 0.0)

    return jnp.einsum("bgk,byg,bxk->byx", evidence, weights(0), weights(1), precision="highest")


def teaching_loss(region_logits: jax.Array, evidence: jax.Array) -> jax.Array:
    """``-log sum_k q_k exp(evidence_k)`` over the places, less what it is at the best of them; mean over the batch.

    q is softmax(region_logits); both [B, h, w].
    """
    q = jax.nn.log_softmax(region_logits.reshape(len(region_logits), -1), axis=-1)
    evidence = evidence.reshape(len(evidence), -1)
    return -jnp.mean(jax.nn.logsumexp(q + evidence - jnp.max(evidence, axis=-1, keepdims=True), axis=-1))


def drawn_place(keys: jax.Array, region_logits: jax.Array, *, cell_offset: float, sharpness: float) -> jax.Array:
    """A place in each view, drawn from the region's distribution to the power `sharpness`; anywhere in its cell.

    keys [B]; region_logits [B, h, w]. -> (y, x) [B, 2] in view coordinates; no gradient.
    """
    h, w = region_logits.shape[1:]

    def one(key: jax.Array, logits: jax.Array) -> jax.Array:
        cell_key, jitter_key = jax.random.split(key)
        cell = jax.random.categorical(cell_key, sharpness * logits.reshape(-1))
        jitter = jax.random.uniform(jitter_key, (2,), logits.dtype) - cell_offset
        return (jnp.stack([cell // w, cell % w]) + jitter) / jnp.array([h, w], logits.dtype)

    place: Any = jax.vmap(one)(keys, jax.lax.stop_gradient(region_logits))
    return place
