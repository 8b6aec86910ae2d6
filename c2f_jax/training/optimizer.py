"""Optimisers and learning-rate schedules, built from plain numbers."""

from typing import Any

import jax
import optax


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
) -> optax.GradientTransformation:
    """Clip, decay, momentum or Adam, learning rate; then a factor per parameter group.

    Args:
        name: "sgd" (Nesterov; the decay joins the gradient before the momentum, as in torch) or "adamw".
        schedule: learning rate by step.
        momentum: of SGD, or Adam's beta 1.
        weight_decay: on arrays of two and more axes; not on biases, norms and kappa.
        clip_norm: on the global norm of the gradient; 0 means none.
        factors: factor on the learning rate of each group of `parameter_group`.

    Raises:
        ValueError: if there is no such optimiser.
    """

    def arrays(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    def by_group(updates: Any, params: Any) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: u * factors[parameter_group(path)], updates)

    decay = optax.add_decayed_weights(weight_decay, mask=arrays)
    if name == "sgd":
        core = [decay, optax.trace(decay=momentum, nesterov=True)]
    elif name == "adamw":
        core = [optax.scale_by_adam(b1=momentum), decay]
    else:
        raise ValueError(f"optimizer.name must be 'sgd' or 'adamw', got {name!r}")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(*clip, *core, optax.scale_by_learning_rate(schedule), optax.stateless(by_group))
