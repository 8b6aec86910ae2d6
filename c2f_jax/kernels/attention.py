"""Bilinear attention pooling, the centre loss that goes with it, and the choice of maps to crop or drop.

References: WS-DAN, arXiv:1901.09891, sections 3.1 to 3.3.
"""

import jax
import jax.numpy as jnp

ROOT_EPSILON = 1e-3  # slope of the signed root at 0: 1 / (2 sqrt(1e-3)) = 16, where sqrt alone has infinity
NORM_EPSILON = 1e-8
SAMPLE_EPSILON = 1e-8


def bilinear_attention_pooling(feature_maps: jax.Array, attention_maps: jax.Array) -> jax.Array:
    """One feature vector per attention map, signed-rooted and normalised together.

    ``phi[m, n] = mean_ij A[i, j, m] F[i, j, n]``, ``psi = sign(phi) (sqrt(|phi| + eps) - sqrt(eps))`` in the form
    ``phi / (sqrt(|phi| + eps) + sqrt(eps))``, which has no cancellation and a finite slope at 0; then
    ``f = psi / sqrt(sum psi^2 + 1e-8)`` over all M * N entries, so that ``f`` is 0 where the attention is.

    Args:
        feature_maps: F [..., h, w, N].
        attention_maps: A [..., h, w, M].

    Returns:
        f [..., M * N] (all features of the first map first), in float32 or wider, with the highest product precision.

    References:
        WS-DAN, arXiv:1901.09891, equations 3 to 5; the finite slope is ours.
    """
    dtype = jnp.promote_types(jnp.result_type(feature_maps, attention_maps), jnp.float32)
    feature_maps, attention_maps = feature_maps.astype(dtype), attention_maps.astype(dtype)
    cells = feature_maps.shape[-3] * feature_maps.shape[-2]
    products = jnp.einsum("...hwm,...hwn->...mn", attention_maps, feature_maps, precision=jax.lax.Precision.HIGHEST)
    phi = products.reshape(*products.shape[:-2], -1) / cells
    psi = phi / (jnp.sqrt(jnp.abs(phi) + ROOT_EPSILON) + ROOT_EPSILON**0.5)
    return psi * jax.lax.rsqrt(jnp.sum(jnp.square(psi), axis=-1, keepdims=True) + NORM_EPSILON)


def _normalised(centers: jax.Array) -> jax.Array:
    """Rows of length 1; rows of zeros stay zeros."""
    squared = jnp.sum(jnp.square(centers), axis=-1, keepdims=True)
    return centers * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0))


def center_loss(pooled: jax.Array, centers: jax.Array, labels: jax.Array) -> jax.Array:
    """Squared distance of each example's features from its class's centre; no gradient enters the centres.

    Args:
        pooled: f [B, D].
        centers: [C, D], not normalised; their direction counts.
        labels: int [B].

    Returns:
        [B], sums over D.
    """
    targets = jax.lax.stop_gradient(_normalised(centers[labels]))
    return jnp.sum(jnp.square(pooled - targets), axis=-1)


def update_centers(
    centers: jax.Array, pooled: jax.Array, labels: jax.Array, *, rate: float = 0.05, mask: jax.Array | None = None
) -> jax.Array:
    """Moves each class's centre towards its examples: ``c_y += rate (f_b - c_y / |c_y|)``, from the old centres.

    A label that occurs twice in the batch moves its centre twice.

    Args:
        centers: [C, D].
        pooled: f [B, D] of the global batch.
        labels: int [B].
        rate: beta (WS-DAN: 0.05).
        mask: [B], 0 for examples that do not count.

    Returns:
        [C, D]; no gradient.
    """
    centers, pooled = jax.lax.stop_gradient((jnp.asarray(centers), jnp.asarray(pooled)))
    change = rate * (pooled.astype(centers.dtype) - _normalised(centers[labels]))
    if mask is not None:
        change = change * mask.astype(centers.dtype)[:, None]
    return centers.at[labels].add(change)


def sample_attention_map(keys: jax.Array, attention_maps: jax.Array) -> jax.Array:
    """One map per image, drawn with probability proportional to the root of its mean.

    Args:
        keys: typed keys [B].
        attention_maps: [B, h, w, M], not negative. All-zero maps are drawn evenly.

    Returns:
        [B, h, w].
    """
    means = jnp.mean(attention_maps.astype(jnp.promote_types(attention_maps.dtype, jnp.float32)), axis=(1, 2))
    chosen = jax.vmap(jax.random.categorical)(keys, 0.5 * jnp.log(means + SAMPLE_EPSILON))
    return jnp.take_along_axis(attention_maps, chosen[:, None, None, None], axis=-1)[..., 0]


def resize_maps(maps: jax.Array, size: int) -> jax.Array:
    """Bilinear, half-pixel centres, edges repeated. [..., h, w] -> [..., size, size]."""
    return jax.image.resize(maps, (*maps.shape[:-2], size, size), "bilinear", antialias=False)


def drop_mask(maps: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """False where a map reaches a share of its maximum: what WS-DAN's drop view hides.

    Args:
        maps: [..., h, w], not negative.
        threshold: share of the maximum; broadcasts against the leading axes.

    Returns:
        bool [..., h, w], True where the view is kept; an all-zero map hides nothing.
    """
    peak = jnp.max(maps, axis=(-2, -1), keepdims=True)
    return (maps < jnp.asarray(threshold, maps.dtype)[..., None, None] * peak) | (peak <= 0)
