"""Backbone, attention, bilinear-attention-pooling head and the learned inverse mapping, in one network.

Every network here is called as ``logits, out = network.apply(variables, view, train=...)``: `out` holds every
intermediate that a loss, a metric or a picture may want.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2f_jax.kernels import bilinear_attention_pooling, region_distribution, soft_box
from c2f_jax.layers.conv import Conv
from c2f_jax.layers.norm import BatchNorm

Outputs = dict[str, jax.Array]

ATTENTION_INITS = {
    "orthogonal": nn.initializers.orthogonal(),  # Coarse2Fine's abstract
    "lecun_normal": nn.initializers.lecun_normal(),  # the ablation
}
BOX_GRADIENTS = ("none", "mapping", "all")


@jax.custom_jvp
def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """The identity whose gradient is multiplied by `scale`. x: any shape; scale: a number, not differentiated."""
    del scale
    return x


@scale_gradient.defjvp
def _scale_gradient_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    (x, scale), (x_dot, _) = primals, tangents
    return x, x_dot * jnp.asarray(scale, x.dtype)


class Attention(nn.Module):
    """Attention maps ``A = relu(batch_norm(conv1x1(F)))``, without bias.

    Attributes:
        num_maps: M, the number of maps.
        kernel_init: "orthogonal" or "lecun_normal". For N >= M channels the M orthogonal filters come out orthonormal.
        dtype: compute dtype; None promotes from the input.
        axis_name: device axis over which batch statistics are shared (pmap), or None.
    """

    num_maps: int
    kernel_init: str = "orthogonal"
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, feature_maps: jax.Array, *, train: bool) -> jax.Array:
        """feature_maps [B, h, w, N] -> attention maps [B, h, w, M], not negative."""
        if self.kernel_init not in ATTENTION_INITS:
            raise ValueError(f"attention_init must be one of {sorted(ATTENTION_INITS)}, got {self.kernel_init!r}")
        x = Conv(self.num_maps, (1, 1), kernel_init=ATTENTION_INITS[self.kernel_init], dtype=self.dtype, name="conv")(
            feature_maps
        )
        norm = BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="bn",
        )
        return nn.relu(norm(x))


class InverseMapping(nn.Module):
    """From attended feature maps back to the informative region of the view (ours, in the abstract's terms).

    ``u = conv3x3(relu(conv1x1(concat(A, mean(A) * conv1x1(F)))))`` shifts the attention's own distribution
    ``q = softmax(log(relu(mean(A) - low) + eps) + u)``; the box is q's mean and ``2 kappa`` standard deviations per
    axis. The last layer starts at zero: at first the region is the attention's own, and learning can only move it
    from there.

    Attributes:
        min_side, max_side, temperature: smooth limits of the sides, in fractions of the view.
        kappa_init: kappa at the start; sqrt(3) makes the box of a uniform block that block.
        floor, background: shares of the mean map's maximum and mean that count as background; the larger is `low`.
        cell_offset: how far right and down of what it shows a cell of the feature maps lies, in cells.
        dtype: compute dtype of the score head; the distribution and the box are float32 or wider.
    """

    min_side: float = 0.3
    max_side: float = 1.0
    temperature: float = 0.05
    kappa_init: float = 3.0**0.5
    floor: float = 0.0
    background: float = 0.0
    cell_offset: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, feature_maps: jax.Array, attention_maps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """feature_maps [B, h, w, N], attention_maps [B, h, w, M] -> (q [B, h, w], box [B, 4] in view coordinates)."""
        mean_attention = jnp.mean(attention_maps, axis=-1)
        attended = mean_attention[..., None] * Conv(64, (1, 1), dtype=self.dtype, name="project")(feature_maps)
        x = jnp.concatenate([attention_maps, attended], axis=-1)
        x = nn.relu(Conv(16, (1, 1), use_bias=True, dtype=self.dtype, name="mix")(x))
        zeros = nn.initializers.zeros
        score = Conv(1, (3, 3), padding=1, use_bias=True, kernel_init=zeros, dtype=self.dtype, name="score")(x)
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
        return q, box


class AttentionNetwork(nn.Module):
    """Backbone, attention, BAP head and inverse mapping.

    Attributes:
        backbone: module from view to feature maps.
        num_classes: C.
        num_maps: M.
        attention_init: see `Attention`.
        feature_channels: project F to that many channels by a 1x1 convolution first; 0 keeps them.
        feature_scale: s in ``logits = W(s f) + b`` (WS-DAN: 100); the learning rate of W goes with 1/s^2.
        box_gradient: how far the fine look's gradient goes through its box: "none" (box detached), "mapping" (kappa
            and the score head learn, nothing below them) or "all" (attention and backbone too).
        box_gradient_scale: factor on the gradient that enters the box.
        min_side, max_side, kappa_init, floor, background, cell_offset: see `InverseMapping`.
        dtype: compute dtype; pooling, norms and boxes stay in float32 or wider.
        axis_name: device axis over which batch statistics are shared (pmap), or None.
    """

    backbone: nn.Module
    num_classes: int
    num_maps: int = 32
    attention_init: str = "orthogonal"
    feature_channels: int = 0
    feature_scale: float = 100.0
    box_gradient: str = "all"
    box_gradient_scale: float = 1.0
    min_side: float = 0.3
    max_side: float = 1.0
    kappa_init: float = 3.0**0.5
    floor: float = 0.0
    background: float = 0.0
    cell_offset: float = 0.0
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, view: jax.Array, *, train: bool) -> tuple[jax.Array, Outputs]:
        """One look.

        Args:
            view: normalised images [B, S, S, 3].
            train: batch statistics of this batch (True) or running ones (False).

        Returns:
            logits [B, C] and a dict: `feature_maps` [B, h, w, N], `attention_maps` [B, h, w, M], `pooled` [B, M * N],
            `region` q [B, h, w] and `box` [B, 4] in view coordinates.
        """
        if self.box_gradient not in BOX_GRADIENTS:
            raise ValueError(f"box_gradient must be one of {BOX_GRADIENTS}, got {self.box_gradient!r}")
        feature_maps = self.backbone(view, train=train)
        if self.feature_channels:
            feature_maps = Conv(self.feature_channels, (1, 1), dtype=self.dtype, name="project")(feature_maps)
        attention_maps = Attention(
            self.num_maps, self.attention_init, dtype=self.dtype, axis_name=self.axis_name, name="attention"
        )(feature_maps, train=train)

        # Two names for one array: the gradients at each tell how strongly either path pulls at the attention.
        pooled_maps = self.perturb("attention_by_class", attention_maps)
        mapped_maps = self.perturb("attention_by_box", attention_maps)

        pooled = bilinear_attention_pooling(feature_maps, pooled_maps)
        logits = nn.Dense(self.num_classes, dtype=pooled.dtype, name="head")(self.feature_scale * pooled)

        mapping_inputs = (feature_maps, mapped_maps)
        if self.box_gradient != "all":
            mapping_inputs = jax.lax.stop_gradient(mapping_inputs)
        region, box = InverseMapping(
            self.min_side,
            self.max_side,
            kappa_init=self.kappa_init,
            floor=self.floor,
            background=self.background,
            cell_offset=self.cell_offset,
            dtype=self.dtype,
            name="inverse_mapping",
        )(*mapping_inputs)
        box = (
            jax.lax.stop_gradient(box) if self.box_gradient == "none" else scale_gradient(box, self.box_gradient_scale)
        )

        return logits, {
            "feature_maps": feature_maps,
            "attention_maps": attention_maps,
            "pooled": pooled,
            "region": region,
            "box": box,
        }


class PooledNetwork(nn.Module):
    """The baseline: backbone, global average pooling, linear.

    Attributes:
        backbone: module from view to feature maps.
        num_classes: C.
    """

    backbone: nn.Module
    num_classes: int

    @nn.compact
    def __call__(self, view: jax.Array, *, train: bool) -> tuple[jax.Array, Outputs]:
        """view [B, S, S, 3] -> logits [B, C] and {`feature_maps` [B, h, w, N]}."""
        feature_maps = self.backbone(view, train=train)
        pooled = jnp.mean(feature_maps.astype(jnp.promote_types(feature_maps.dtype, jnp.float32)), axis=(-3, -2))
        logits = nn.Dense(self.num_classes, dtype=pooled.dtype, name="head")(pooled)
        return logits, {"feature_maps": feature_maps}
