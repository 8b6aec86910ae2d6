"""Stochastic depth: a residual branch is left out for some examples of a training batch.

References: Huang et al., Deep Networks with Stochastic Depth, arXiv:1603.09382.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp


def drop_path(keys: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """x [B, ...] with zeros for the examples whose key [B] says so, the others divided by `1 - rate`: mean x."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(keys)
    return x * (kept / (1.0 - rate)).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


class Dropping(nn.Module):
    """`drop(keys, x, rate)` of what is given, within `dropping`, and the identity elsewhere.

    Attributes:
        rate: how much is dropped; 0: nothing.
    """

    drop: ClassVar["staticmethod[[jax.Array, jax.Array, float], jax.Array]"]  # keys [B], x [B, ...], rate -> [B, ...]
    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, ...] -> [B, ...]."""
        return x


class DropPath(Dropping):
    """`drop_path` of a residual branch; `rate` is the probability that an example goes without it."""

    drop = staticmethod(drop_path)


@contextmanager
def dropping(keys: jax.Array) -> Iterator[None]:
    """What is traced within drops what its `Dropping` modules say. keys: of the batch's examples [B].

    An example's draws depend on its key, the module and how often that was called before: a second look has its own. Of
    the batch several times over, one after the other, each has its own too, the first those of the batch alone.
    """
    calls: Counter[str] = Counter()

    def draw(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if not isinstance(module, Dropping) or context.method_name != "__call__" or not module.rate:
            return call(*args, **kwargs)
        path = "/".join(module.path)
        number = zlib.crc32(f"{path} {calls[path]}".encode())
        calls[path] += 1
        fold = jax.vmap(jax.random.fold_in, (0, None))
        drawn = fold(keys, jnp.uint32(number))
        others = [fold(drawn, again) for again in range(1, len(args[0]) // len(keys))]
        return module.drop(jnp.concatenate([drawn, *others]), args[0], module.rate)

    with nn.intercept_methods(draw):
        yield


def rising(rate: float, count: int) -> list[float]:
    """Rates of `count` blocks, from 0 to `rate` in even steps."""
    return [rate * i / max(count - 1, 1) for i in range(count)]
