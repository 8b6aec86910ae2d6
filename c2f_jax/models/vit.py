"""Vision transformers without their classifier: images `[B, H, W, 3]` to their patches' last features `[B, h, w, N]`.

ViT, DINOv2 (layer scale, register tokens), CLIP's (a layer norm before the blocks) and DINOv3 (rotary positions). The
map is the grid of patches after the last layer norm; class and register tokens work along and are not in it. Learned
position embeddings have the size of the images that the network was made for; others are resized as timm does it.

Names follow timm's keys one by one: `blocks.3.attn.qkv` is `blocks_3/attn/qkv`.

References: Dosovitskiy et al., arXiv:2010.11929; Oquab et al., DINOv2, arXiv:2304.07193; Darcet et al., Vision
Transformers Need Registers, arXiv:2309.16588; Simeoni et al., DINOv3, arXiv:2508.10104.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import slice_in_dim

from c2f_jax.layers.conv import Conv, dot_general, scaled
from c2f_jax.layers.drop_path import DropPath, rising
from c2f_jax.layers.norm import LayerNorm

small_normal = nn.initializers.truncated_normal(0.02)


def resize_positions(embeddings: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A square grid of position embeddings [1, n * n, N] for a grid of `size`: [1, h * w, N], row by row.

    Bicubic (a = -0.5) and antialiased, in float32 or wider: what timm's `resample_abs_pos_embed` does.
    """
    side = round(embeddings.shape[1] ** 0.5)
    if size == (side, side):
        return embeddings
    features = embeddings.shape[-1]
    wide = embeddings.astype(jnp.promote_types(embeddings.dtype, jnp.float32)).reshape(1, side, side, features)
    resized = jax.image.resize(wide, (1, *size, features), "cubic", antialias=True)
    return resized.reshape(1, -1, features).astype(embeddings.dtype)


def rotary_angles(size: tuple[int, int], features: int, temperature: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine [h * w, features] by which DINOv3 turns queries and keys of a head of so many features.

    Coordinates are those of the patches' middles, -1 to 1 along either axis. Either half of the features has each
    frequency once for rows and once for columns.
    """
    rows, columns = (2 * (np.arange(n, dtype=np.float32) + 0.5) / n - 1 for n in size)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    periods = np.float32(temperature) ** (2 * np.arange(features // 4, dtype=np.float32) / (features // 2))
    angles = (2 * np.pi * places / periods).reshape(len(places), -1).astype(np.float32)
    angles = np.tile(angles, (1, 2))
    return np.sin(angles), np.cos(angles)


def rotate(x: jax.Array, sine: Any, cosine: Any) -> jax.Array:
    """x [B, P + n, heads, K] with its last n tokens turned by angles [n, K]; in float32 or wider, of x's dtype."""
    prefix, n = x.shape[1] - len(sine), x.shape[-1] // 2
    wide = slice_in_dim(x, prefix, None, axis=1).astype(jnp.promote_types(x.dtype, jnp.float32))
    turned = jnp.concatenate([-slice_in_dim(wide, n, None, axis=-1), slice_in_dim(wide, 0, n, axis=-1)], axis=-1)
    wide = wide * cosine[:, None].astype(wide.dtype) + turned * sine[:, None].astype(wide.dtype)
    return jnp.concatenate([slice_in_dim(x, 0, prefix, axis=1), wide.astype(x.dtype)], axis=1)


class SelfAttention(nn.Module):
    """Softmax attention among all tokens `[B, n, N]`; the softmax is in float32 or wider."""

    heads: int
    qkv_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, angles: tuple[np.ndarray, np.ndarray] | None) -> jax.Array:
        batch, tokens, features = x.shape
        qkv = nn.Dense(3 * features, use_bias=self.qkv_bias, dtype=self.dtype, kernel_init=small_normal, name="qkv")(x)
        shape = (batch, tokens, self.heads, features // self.heads)
        query, key, value = (
            slice_in_dim(qkv, i * features, (i + 1) * features, axis=-1).reshape(shape) for i in range(3)
        )
        if angles is not None:
            query, key = rotate(query, *angles), rotate(key, *angles)
        # Its n x n weights are computed again for the gradient: kept, they would be most of a step's memory.
        attend = jax.checkpoint(jax.nn.dot_product_attention)
        x = attend(query, key, value).reshape(batch, tokens, features)
        return nn.Dense(features, dtype=self.dtype, dot_general=dot_general, kernel_init=small_normal, name="proj")(x)


class Mlp(nn.Module):
    """Linear to four times the features, GELU (or CLIP's quick one, `x * sigmoid(1.702 x)`), linear back."""

    quick_gelu: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        x = nn.Dense(4 * features, dtype=self.dtype, kernel_init=small_normal, name="fc1")(x)
        x = x * jax.nn.sigmoid(1.702 * x) if self.quick_gelu else jax.nn.gelu(x, approximate=False)
        return nn.Dense(features, dtype=self.dtype, dot_general=dot_general, kernel_init=small_normal, name="fc2")(x)


class LayerScale(nn.Module):
    """A learned factor per feature."""

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],), jnp.float32)
        return scaled(x, gamma)


class Block(nn.Module):
    """Attention and `Mlp`, each after a layer norm and added to what came in: `[B, n, N]` to the same."""

    heads: int
    qkv_bias: bool
    quick_gelu: bool
    layer_scale: float
    drop_path: float
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, angles: tuple[np.ndarray, np.ndarray] | None) -> jax.Array:
        def branch(y: jax.Array, half: int) -> jax.Array:
            y = LayerScale(self.layer_scale, name=f"ls{half}")(y) if self.layer_scale else y
            return DropPath(self.drop_path, name=f"drop_path{half}")(y)

        y = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm1")(x)
        x = x + branch(SelfAttention(self.heads, self.qkv_bias, self.dtype, name="attn")(y, angles), 1)
        y = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm2")(x)
        return x + branch(Mlp(self.quick_gelu, self.dtype, name="mlp")(y), 2)


class VisionTransformer(nn.Module):
    """A vision transformer as a feature extractor. It has no batch norm: training and testing are the same.

    Attributes:
      width, depth, heads: features of a token, blocks, heads of each.
      patch: side of a patch in pixels.
      registers: tokens besides the class token.
      positions: "all" (learned, the class token has one too), "patches" (learned, of patches alone) or "rotary".
      layer_scale: initial factor on what each half of a block adds; 0 for none.
      pre_norm: CLIP's layer norm before the first block; the patches' embedding then has no bias.
      quick_gelu: OpenAI's approximation, in CLIP.
      qkv_bias: whether queries, keys and values have one.
      epsilon: of the layer norms.
      drop_path: rate of stochastic depth in the last block; it rises from 0 in the first.
      remat: compute each block anew for the gradient, instead of keeping what is in it.
      dtype: compute dtype; parameters stay float32.
      axis_name: as other backbones have it; of no use here.
    """

    width: int
    depth: int
    heads: int
    patch: int
    registers: int = 0
    positions: str = "all"
    layer_scale: float = 0.0
    pre_norm: bool = False
    quick_gelu: bool = False
    qkv_bias: bool = True
    epsilon: float = 1e-6
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, 3]` (normalised floats) to feature maps `[B, H / patch, W / patch, width]` of `dtype`."""
        tokens, (rows, columns) = self.tokens(x, train=train), self._grid(x)
        patches = slice_in_dim(tokens, 1 + self.registers, None, axis=1)  # `tokens[:, 1:]` would be no slice in ONNX
        return patches.reshape(x.shape[0], rows, columns, self.width)

    @nn.compact
    def tokens(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The last layer norm's tokens [B, 1 + registers + h * w, width]: class, registers, patches row by row.

        Raises:
          ValueError: for images that are not of whole patches.
        """
        del train
        size = self._grid(x)
        stripes = Conv(
            self.width, self.patch, strides=self.patch, use_bias=not self.pre_norm, dtype=self.dtype,
            kernel_init=small_normal, name="patch_embed_proj",
        )  # fmt: skip
        x = stripes(x).reshape(x.shape[0], -1, self.width)
        first = [self.param("cls_token", small_normal, (1, 1, self.width), jnp.float32)]
        if self.registers:
            first.append(self.param("reg_token", small_normal, (1, self.registers, self.width), jnp.float32))
        angles = None
        if self.positions == "rotary":
            angles = rotary_angles(size, self.width // self.heads)
        else:
            placed = 1 if self.positions == "all" else 0  # tokens with an embedding before the patches'
            if self.is_initializing():
                self.param("pos_embed", small_normal, (1, placed + max(size) ** 2, self.width), jnp.float32)
            embeddings: jax.Array = self.get_variable("params", "pos_embed")
            first[:placed] = [token + embeddings[:, :placed] for token in first[:placed]]
            x = x + resize_positions(embeddings[:, placed:], size).astype(x.dtype)
        own = jnp.concatenate(first, axis=1).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(own, (x.shape[0], *own.shape[1:])), x], axis=1)
        if self.pre_norm:
            x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm_pre")(x)
        block = functools.partial(
            nn.remat(Block) if self.remat else Block,
            heads=self.heads,
            qkv_bias=self.qkv_bias,
            quick_gelu=self.quick_gelu,
            layer_scale=self.layer_scale,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        for index, rate in enumerate(rising(self.drop_path, self.depth)):
            x = block(drop_path=rate, name=f"blocks_{index}")(x, angles)
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)

    def _grid(self, x: jax.Array) -> tuple[int, int]:
        rows, columns = x.shape[1:3]
        if rows % self.patch or columns % self.patch:
            raise ValueError(f"images must be of whole patches of {self.patch} pixels, got {rows} x {columns}")
        return rows // self.patch, columns // self.patch
