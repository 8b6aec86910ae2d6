"""A training stage is data: a name, a length, a loss, an optimiser and its schedule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optax


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: "coarse" or "fine" (the method's name for methods of one stage).
        start: the first step that it owns.
        steps: how many it owns.
        loss: see `c2f_jax.training.losses`.
        tx: its optimiser, started anew at the stage's start.
        schedule: the learning rate that `tx` uses, by step - start; for the log.
        frozen: of the parameters that `tx` leaves as they are, see `optimizer.frozen_parameters`; norms in whose path
            it is found keep their running statistics, and normalise by them.
        probe: measure the gradients that reach the attention through the class and through the box.
    """

    name: str
    start: int
    steps: int
    loss: Callable[..., Any]
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    probe: bool = False
    frozen: str = ""

    @property
    def end(self) -> int:
        """The first step that it does not own any more."""
        return self.start + self.steps


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that owns `step`.

    Raises:
        ValueError: if no stage does.
    """
    for stage in stages:
        if stage.start <= step < stage.end:
            return stage
    raise ValueError(f"no stage owns step {step}; they own steps 0 to {stages[-1].end - 1}")


def stage_of_checkpoint(stages: Sequence[Stage], step: int) -> Stage:
    """The stage whose optimiser state a checkpoint at `step` holds: the owner of step - 1 (at 0, the first)."""
    return stage_at(stages, max(step - 1, 0))
