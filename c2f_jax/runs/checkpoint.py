"""Checkpoints of the train state, by orbax; the only file that knows orbax."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from c2f_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one run; each is written whole or not at all."""

    def __init__(self, directory: Path, *, every_steps: int = 1, at_steps: Collection[int] = (), keep: int = 2):
        """Opens (and creates) `directory`.

        Args:
            directory: absolute or relative; what an interrupted save left there is removed.
            every_steps: save at multiples of this.
            at_steps: and at these (the stages' ends).
            keep: how many of the latest to keep.
        """
        policies = save_decision_policy
        # Orbax's own default would save on preemption notices too; a policy of our own has to name that again.
        when = policies.AnySavePolicy(
            [
                policies.FixedIntervalPolicy(every_steps),
                policies.SpecificStepsPolicy(frozenset(at_steps)),
                policies.PreemptionCheckpointingPolicy(),
            ]
        )
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=when,
                preservation_policy=preservation_policy.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """The last complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def is_due(self, step: int) -> bool:
        """Whether `save` would write at this step."""
        return step != self.latest_step() and self._manager.should_save(step)

    def save(self, step: int, state: Any, progress: dict[str, float]) -> None:
        """Starts writing `state` and a few numbers; training may go on (and donate) at once."""
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        )

    def restore(self, step: int, template: Any) -> tuple[Any, dict[str, float]]:
        """The state of `step`, with the template's structure, dtypes and shardings, and the numbers beside it."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        items = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        )
        return items.state, items.progress

    def restore_model(self, step: int, template: Any) -> tuple[Any, Any]:
        """(params, batch_stats) of `step` alone; template: a state with these, of the right shapes."""
        wanted = {"params": template.params, "batch_stats": template.batch_stats}
        item = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        arguments = ocp.checkpoint_utils.construct_restore_args(item)
        restore = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        state = self._manager.restore(step, args=ocp.args.Composite(state=restore)).state
        return state["params"], state["batch_stats"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def open_finished(workdir: Path) -> tuple[Checkpoints, int]:
    """The checkpoints of the run in `workdir`, to read, and the last one's step.

    Raises:
        UserError: if there is none.
    """
    directory = workdir / "checkpoints"
    # A look before opening, which would make the folder; a checkpoint gets its step for a name when it is complete.
    if directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir()):
        checkpoints = Checkpoints(directory)
        step = checkpoints.latest_step()
        if step is not None:
            return checkpoints, step
    raise UserError(f"{workdir} holds no checkpoint; train first: python launch.py --workdir {workdir}")
