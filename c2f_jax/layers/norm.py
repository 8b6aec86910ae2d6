"""Layer and batch normalisation, the latter with a gradient of its own.

It has one factor and one summand per channel forward, three numbers back. Left to autodiff, XLA's CPU back end computes
mean, variance and normalised values again for each of their uses: the gradient then takes about twice as long.
"""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)
"""Layer normalisation of the last axis, in float32 or wider. Where features lie far from zero, as those of pretrained
networks do, the fast variance would be a difference of two large numbers."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the batch's own statistics. Reverse mode only.

    Args:
        x: [B, H, W, C].
        scale, bias: [C].
        epsilon: added to the variance.
        axis_name: device axis over which statistics are averaged (pmap), or None.

    Returns:
        The result [B, H, W, C] of x's dtype, and mean and (biased) variance [C], in float32 or wider, through which no
        gradient flows.

    References:
        Ioffe and Szegedy, Batch Normalization, arXiv:1502.03167.
    """
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x, scale, bias, epsilon, axis_name):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = x.size // x.shape[-1]
    mean, mean_of_squares = (jnp.sum(value, axis=(0, 1, 2)) / count for value in (wide, wide * wide))
    if axis_name is not None:
        mean, mean_of_squares = lax.pmean((mean, mean_of_squares), axis_name)
    variance = jnp.maximum(mean_of_squares - mean * mean, 0.0)
    inverse = lax.rsqrt(variance + epsilon)
    # One factor and one summand per channel, computed once.
    factor, summand = lax.optimization_barrier((scale * inverse, bias - mean * scale * inverse))
    return ((wide * factor + summand).astype(x.dtype), mean, variance), (x, scale, mean, inverse)


def _backward(epsilon, axis_name, saved, cotangents):
    del epsilon
    x, scale, mean, inverse = saved
    out_bar = cotangents[0].astype(mean.dtype)
    wide, count = x.astype(mean.dtype), x.size // x.shape[-1]
    bias_bar, product = (jnp.sum(value, axis=(0, 1, 2)) for value in (out_bar, out_bar * wide))
    scale_bar = (product - mean * bias_bar) * inverse  # of out_bar times the normalised values
    sums, total = (bias_bar, scale_bar), count
    if axis_name is not None:
        sums, total = lax.psum((sums, count), axis_name)
    # x_bar = scale inverse (out_bar - mean(out_bar) - normalised mean(out_bar normalised)), as out_bar, x and 1 times
    # one number per channel.
    by_x = -scale * inverse * inverse * sums[1] / total
    by_one = -scale * inverse * sums[0] / total - mean * by_x
    by_out, by_x, by_one = lax.optimization_barrier((scale * inverse, by_x, by_one))
    return (by_out * out_bar + by_x * wide + by_one).astype(x.dtype), scale_bar, bias_bar


batch_norm.defvjp(_forward, _backward)


class BatchNorm(nn.Module):
    """Batch normalisation of images [B, H, W, C]; parameters and statistics are named as in `flax.linen.BatchNorm`.

    Attributes:
        use_running_average: normalise by the running statistics, and leave them as they are.
        momentum: what the running statistics keep of themselves: 0.9 is PyTorch's 0.1, right for
            fine-tuning; their variance is the biased one.
        epsilon: added to the variance.
        dtype: of the result; None takes the dtype that image and parameters promote to.
        axis_name: device axis over which batch statistics are averaged (pmap), or None.
        scale_init: initialiser of the scale.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None
    axis_name: str | None = None
    scale_init: Callable[..., jax.Array] = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, C]. use_running_average: in place of the attribute, where it is not None."""
        if use_running_average is None:
            use_running_average = self.use_running_average
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        x = x.astype(dtype)
        if use_running_average:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            return (x * factor + (bias - running_mean.value * factor)).astype(dtype)
        # While variables are being made, there may be no such device axis yet.
        axis_name = None if self.is_initializing() else self.axis_name
        out, mean, variance = batch_norm(x, scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            for running, now in ((running_mean, mean), (running_var, variance)):
                running.value = self.momentum * running.value + (1.0 - self.momentum) * now.astype(running.value.dtype)
        return out


@contextmanager
def frozen_statistics(pattern: str) -> Iterator[None]:
    """What is traced within normalises by running statistics, and leaves them, wherever `pattern` is found in a norm's
    path ("backbone/layer1_0/bn1"); nowhere if it is empty."""

    def freeze(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        norm = isinstance(context.module, BatchNorm | nn.BatchNorm) and context.method_name == "__call__"
        if norm and re.search(pattern, "/".join(context.module.path)):
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    with nn.intercept_methods(freeze) if pattern else nullcontext():
        yield
