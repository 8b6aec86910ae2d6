"""What a look at each of several places tells about the label teaches where to look.

With the region's distribution q, ``sum_k q_k P(y | look at k)`` is how likely the label is to one who looks where q
says, and q learns minus its logarithm. The gradient by q's logits is q - t, ``t ~ q_k P(y | look at k)``: whole looks
are compared wherever they lie, where a gradient through the crop holds for a quarter of a pixel (docs/findings.md).

In the coarse stage, when the network tells nothing of any place, k goes over all places of a photo and P is a table of
classifiers that were not fitted to it. In the fine stage k goes over a few places drawn from q, and P is what second
looks at them say.
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
        total = jnp.sum(shares, axis=-1, keepdims=True)
        # A square at the rim of a long photo can lie beyond all cells, which `cell_offset` moves: the nearest, then.
        nearest = jax.nn.one_hot(jnp.where(start > 0.5, cells - 1, 0), cells)
        return jnp.where(total > 0.0, shares / jnp.where(total > 0.0, total, 1.0), nearest)

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


def comparison_loss(region_logits: jax.Array, cells: jax.Array, told: jax.Array, *, sharpness: float) -> jax.Array:
    """``-log mean_k P(label | look at k)`` over places drawn from softmax(sharpness * region_logits), and its gradient.

    Each place's weight among those drawn is the same, but has the gradient of its probability; by the logits it is
    1/K - t, ``t ~ P(label | look at k)``. Mean over the batch, divided by `sharpness`; none by `told`.

    Args:
        region_logits: [B, h, w].
        cells: int [B, K] of `drawn_places`.
        told: log P(label | look at k) [B, K].
        sharpness: of the draw.
    """
    chosen = sharpness * jnp.take_along_axis(region_logits.reshape(len(cells), -1), cells, axis=-1)
    weights = jax.nn.log_softmax(chosen - jax.lax.stop_gradient(chosen), axis=-1)
    return -jnp.mean(jax.nn.logsumexp(weights + jax.lax.stop_gradient(told), axis=-1)) / sharpness


def drawn_places(
    keys: jax.Array, region_logits: jax.Array, *, count: int, cell_offset: float, sharpness: float
) -> tuple[jax.Array, jax.Array]:
    """Places in each view, drawn from softmax(sharpness * region_logits), each anywhere in its cell; no gradient.

    keys [B]; region_logits [B, h, w]. -> cells int [B, count], by rows; their places (y, x) [B, count, 2] in view
    coordinates.
    """
    h, w = region_logits.shape[1:]

    def one(key: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        cell_key, jitter_key = jax.random.split(key)
        cells = jax.random.categorical(cell_key, sharpness * logits.reshape(-1), shape=(count,))
        jitter = jax.random.uniform(jitter_key, (count, 2), logits.dtype) - cell_offset
        return cells, (jnp.stack([cells // w, cells % w], axis=-1) + jitter) / jnp.array([h, w], logits.dtype)

    drawn: Any = jax.vmap(one)(keys, jax.lax.stop_gradient(region_logits))
    return drawn
