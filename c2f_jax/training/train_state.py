"""The one train state that goes through all stages."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from c2f_jax.training.losses import Task
from c2f_jax.training.stages import Stage


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes; a checkpoint holds just this.

    Attributes:
        step: int32 scalar, steps taken.
        params: of the network.
        batch_stats: {"coarse", "fine"}: running statistics of each kind of view.
        centers: [C, M * N] float32, the attended features' centres by class; None for a network without attention.
        opt_state: of the stage that owns step - 1.
        average: {"params", "batch_stats"}, exponential moving averages of both over all steps; None for none.
    """

    step: jax.Array
    params: Any
    batch_stats: dict[str, Any]
    centers: jax.Array | None
    opt_state: Any
    average: Any = None

    @property
    def answers(self) -> tuple[Any, dict[str, Any]]:
        """(parameters, batch statistics) with which the run answers: the averages, where it has them."""
        if self.average is None:
            return self.params, self.batch_stats
        return self.average["params"], self.average["batch_stats"]


def averages_of(params: Any, batch_stats: Any) -> dict[str, Any]:
    """The averages to begin with: copies, as a step must not be given the same buffer twice."""
    return {"params": jax.tree.map(jnp.copy, params), "batch_stats": jax.tree.map(jnp.copy, batch_stats)}


def init_variables(key: jax.Array, task: Task) -> dict[str, Any]:
    """`params` of the network, and `batch_stats` of each kind of view. key: a typed key."""
    view = jnp.zeros((1, task.view_size, task.view_size, 3))
    variables = task.network.init(key, view, train=False)
    # Copies: a step that is given the state's memory must not be given the same buffer twice.
    own = variables.get("batch_stats", {})  # a network may have none
    stats = {name: jax.tree.map(jnp.copy, own) for name in ("coarse", "fine")}
    return {"params": variables["params"], "batch_stats": stats}


def create_train_state(
    key: jax.Array, task: Task, stage: Stage, *, num_classes: int, averaged: bool = False
) -> TrainState:
    """Initial state for `stage`, the first one. key: a typed key; averaged: with averages of what is learned."""
    variables = init_variables(key, task)
    stats, view = variables["batch_stats"]["coarse"], jnp.zeros((1, task.view_size, task.view_size, 3))
    _, out = jax.eval_shape(
        lambda: task.network.apply({"params": variables["params"], "batch_stats": stats}, view, train=False)
    )
    pooled = out.get("pooled")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        centers=None if pooled is None else jnp.zeros((num_classes, pooled.shape[-1]), pooled.dtype),
        opt_state=stage.tx.init(variables["params"]),
        average=averages_of(variables["params"], variables["batch_stats"]) if averaged else None,
    )


def switch_stage(state: TrainState, stage: Stage) -> TrainState:
    """The same parameters, statistics, centres and step, with a fresh optimiser state for `stage`."""
    return state.replace(opt_state=stage.tx.init(state.params))
