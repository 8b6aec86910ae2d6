"""Optimisers and learning-rate schedules, built from plain numbers."""

import re
from functools import partial
from typing import Any

import jax
import optax

from c2f_jax.models.backbones import layer_numbers


def make_schedule(
    name: str, *, learning_rate: float, steps: int, warmup_steps: int = 0, decay_rate: float = 0.9, decay_steps: int = 1
) -> optax.Schedule:
    """Learning rate by step, counted from the stage's start.

    Args:
        name: "cosine" (to 0 at `steps`) or "exponential" (x `decay_rate` every `decay_steps`, in stairs: WS-DAN's).
        learning_rate: its peak.
        steps: length of the stage.
        warmup_steps: linear rise from 0.
        decay_rate, decay_steps: of "exponential".

    Raises:
        ValueError: if there is no such schedule.
    """
    if name == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, max(steps, warmup_steps + 1))
    if name == "exponential":
        decay = optax.exponential_decay(learning_rate, decay_steps, decay_rate, staircase=True)
        if not warmup_steps:
            return decay
        return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), decay], [warmup_steps])
    raise ValueError(f"optimizer.schedule must be 'cosine' or 'exponential', got {name!r}")


def parameter_group(path: tuple[Any, ...]) -> str:
    """ "backbone", "region" (the inverse mapping) or "head" (attention, projection, classifier)."""
    top = path[0].key
    return {"backbone": "backbone", "inverse_mapping": "region"}.get(top, "head")


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    clip_norm: float,
    factors: dict[str, float],
    layer_decay: float = 1.0,
    frozen: str = "",
) -> optax.GradientTransformation:
    """Clip, decay, momentum or Adam, learning rate; then a factor per parameter group.

    Args:
        name: "sgd" (Nesterov; the decay joins the gradient before the momentum, as in torch) or "adamw".
        schedule: learning rate by step.
        momentum: of SGD, or Adam's beta 1.
        weight_decay: on arrays of two and more axes; not on biases, norms and kappa.
        clip_norm: on the global norm of the gradient; 0 means none.
        factors: factor on the learning rate of each group of `parameter_group`.
        layer_decay: further factor on the rate of the backbone's layers: once for the last, twice for the one before...
        frozen: of the parameters that stay as they are and have no state, see `frozen_parameters`.

    Raises:
        ValueError: if there is no such optimiser.
    """

    def arrays(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    def by_group(updates: Any, params: Any) -> Any:
        del params
        groups = jax.tree_util.tree_map_with_path(lambda path, _: factors[parameter_group(path)], updates)
        if layer_decay != 1.0:
            groups = {**groups, "backbone": _by_layer(groups["backbone"], layer_decay)}
        return jax.tree.map(lambda update, factor: update * factor, updates, groups)

    decay = optax.add_decayed_weights(weight_decay, mask=arrays)
    if name == "sgd":
        core = [decay, optax.trace(decay=momentum, nesterov=True)]
    elif name == "adamw":
        core = [optax.scale_by_adam(b1=momentum), decay]
    else:
        raise ValueError(f"optimizer.name must be 'sgd' or 'adamw', got {name!r}")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    tx = optax.chain(*clip, *core, optax.scale_by_learning_rate(schedule), optax.stateless(by_group))
    if not frozen:
        return tx
    return optax.partition({"frozen": optax.set_to_zero(), "free": tx}, partial(_labels, pattern=frozen))


def frozen_parameters(params: Any, pattern: str) -> Any:
    """For each parameter whether `pattern` is found in its path, "backbone/layer1_0/conv1/kernel"; none if empty."""

    def found(path: tuple[Any, ...], _: Any) -> bool:
        return bool(pattern) and re.search(pattern, "/".join(key.key for key in path)) is not None

    return jax.tree_util.tree_map_with_path(found, params)


def _labels(params: Any, pattern: str) -> Any:
    return jax.tree.map(lambda frozen: "frozen" if frozen else "free", frozen_parameters(params, pattern))


def _by_layer(factors: Any, decay: float) -> Any:
    """The backbone's factors, times `decay` for each layer from its own to the head."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(factors)
    numbers = layer_numbers(tuple(key.key for key in path) for path, _ in leaves)
    scaled = [f * decay ** (max(numbers) + 1 - number) for number, (_, f) in zip(numbers, leaves, strict=True)]
    return jax.tree.unflatten(tree, scaled)
