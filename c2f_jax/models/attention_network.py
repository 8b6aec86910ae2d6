"""Backbone, attention, bilinear-attention-pooling head and the learned inverse mapping, in one network.

Every network here is called as ``logits, out = network.apply(variables, view, train=...)``: `out` holds every
intermediate that a loss, a metric or a picture may want.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from c2f_jax.kernels import bilinear_attention_pooling
from c2f_jax.layers.channel_drop import ChannelDrop
from c2f_jax.layers.conv import Conv
from c2f_jax.layers.norm import BatchNorm
from c2f_jax.models.inverse_mapping import InverseMapping

Outputs = dict[str, jax.Array]

ATTENTION_INITS = {
    "orthogonal": nn.initializers.orthogonal(),  # Coarse2Fine's abstract
    "lecun_normal": nn.initializers.lecun_normal(),  # the ablation
}
BOX_GRADIENTS = ("none", "mapping", "all")


@jax.custom_jvp
def scale_gradient(x: Any, scale: float) -> Any:
    """The identity whose gradient is multiplied by `scale`. x: arrays; scale: a number, not differentiated."""
    del scale
    return x


@scale_gradient.defjvp
def _scale_gradient_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    (x, scale), (x_dot, _) = primals, tangents
    return x, jax.tree.map(lambda dot: dot * jnp.asarray(scale, dot.dtype), x_dot)


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


def _as_weights_lie(pooled: jax.Array) -> jax.Array:
    """[B, M * N], divided along the features where the mesh's "model" axis divides the head's weights so.

    Otherwise XLA, which sees photos on all devices, gathers all weights on each of them and their whole gradient.
    """
    if jax.sharding.get_abstract_mesh().shape.get("model", 1) == 1:
        return pooled
    return jax.lax.with_sharding_constraint(pooled, PartitionSpec("data", "model"))


class AttentionNetwork(nn.Module):
    """Backbone, attention, BAP head and inverse mapping.

    Attributes:
        backbone: module from view to feature maps.
        num_classes: C.
        num_maps: M.
        attention_init: see `Attention`.
        channel_drop: share of the backbone's channels that are dropped while it is trained, see `layers.channel_drop`.
        feature_channels: project F to that many channels by a 1x1 convolution first; 0 keeps them.
        feature_scale: s in ``logits = W(s f) + b`` (WS-DAN: 100); the learning rate of W goes with 1/s^2.
        box_gradient: how far what the second look teaches goes: "none" (nothing is taught), "mapping" (the inverse
            mapping learns, nothing below it) or "all" (attention and backbone too).
        box_gradient_scale: factor on the gradient that enters the box; with a `side`, that enters the inverse mapping's
            inputs.
        min_side, max_side, kappa_init, floor, background, cell_offset, side: see `InverseMapping`.
        dtype: compute dtype; pooling, norms and boxes stay in float32 or wider.
        axis_name: device axis over which batch statistics are shared (pmap), or None.
    """

    backbone: nn.Module
    num_classes: int
    num_maps: int = 32
    attention_init: str = "orthogonal"
    channel_drop: float = 0.0
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
    side: float = 0.0
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
            and what `InverseMapping` returns, in view coordinates.
        """
        if self.box_gradient not in BOX_GRADIENTS:
            raise ValueError(f"box_gradient must be one of {BOX_GRADIENTS}, got {self.box_gradient!r}")
        feature_maps = ChannelDrop(self.channel_drop, name="channel_drop")(self.backbone(view, train=train))
        if self.feature_channels:
            feature_maps = Conv(self.feature_channels, (1, 1), dtype=self.dtype, name="project")(feature_maps)
        attention_maps = Attention(
            self.num_maps, self.attention_init, dtype=self.dtype, axis_name=self.axis_name, name="attention"
        )(feature_maps, train=train)

        # Two names for one array: the gradients at each tell how strongly either path pulls at the attention.
        pooled_maps = self.perturb("attention_by_class", attention_maps)
        mapped_maps = self.perturb("attention_by_box", attention_maps)

        pooled = bilinear_attention_pooling(feature_maps, pooled_maps)
        head = nn.Dense(self.num_classes, dtype=pooled.dtype, precision=jax.lax.Precision.HIGHEST, name="head")
        logits = head(_as_weights_lie(self.feature_scale * pooled))

        mapping_inputs = (feature_maps, mapped_maps)
        if self.box_gradient != "all":
            mapping_inputs = jax.lax.stop_gradient(mapping_inputs)
        elif self.side:
            mapping_inputs = scale_gradient(mapping_inputs, self.box_gradient_scale)
        mapped = InverseMapping(
            self.min_side,
            self.max_side,
            kappa_init=self.kappa_init,
            floor=self.floor,
            background=self.background,
            cell_offset=self.cell_offset,
            side=self.side,
            dtype=self.dtype,
            name="inverse_mapping",
        )(*mapping_inputs)
        if self.box_gradient == "none":
            mapped = jax.lax.stop_gradient(mapped)
        elif not self.side:
            mapped["box"] = scale_gradient(mapped["box"], self.box_gradient_scale)

        return logits, {
            "feature_maps": feature_maps,
            "attention_maps": attention_maps,
            "pooled": pooled,
            **mapped,
        }


class PooledNetwork(nn.Module):
    """The baseline: backbone, global average pooling, linear.

    Attributes:
        backbone: module from view to feature maps.
        num_classes: C.
        channel_drop: as of `AttentionNetwork`.
    """

    backbone: nn.Module
    num_classes: int
    channel_drop: float = 0.0

    @nn.compact
    def __call__(self, view: jax.Array, *, train: bool) -> tuple[jax.Array, Outputs]:
        """view [B, S, S, 3] -> logits [B, C] and {`feature_maps` [B, h, w, N]}."""
        feature_maps = ChannelDrop(self.channel_drop, name="channel_drop")(self.backbone(view, train=train))
        pooled = jnp.mean(feature_maps.astype(jnp.promote_types(feature_maps.dtype, jnp.float32)), axis=(-3, -2))
        head = nn.Dense(self.num_classes, dtype=pooled.dtype, precision=jax.lax.Precision.HIGHEST, name="head")
        logits = head(_as_weights_lie(pooled))
        return logits, {"feature_maps": feature_maps}
