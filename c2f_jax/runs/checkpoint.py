"""Checkpoints of the train state, by orbax; the only file that knows orbax.

A trainer writes by `Checkpoints`; everybody else reads by the functions below, which change nothing.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from c2f_jax.errors import UserError
from c2f_jax.runs import processes

ATTEMPTS = 20


class Checkpoints:
    """The checkpoints of one run, to write; each is written whole or not at all."""

    def __init__(self, workdir: Path, *, every_steps: int, at_steps: Collection[int], keep: int = 2):
        """Opens those of the run in `workdir`, for its trainer alone: what an interrupted save left is removed.

        Args:
            workdir: the run's.
            every_steps: save at multiples of this.
            at_steps: and at these (the stages' ends).
            keep: how many of the latest to keep.
        """
        # Preemption is not among the policies: `interruption` notes the signals, and the loop saves.
        when = [
            save_decision_policy.FixedIntervalPolicy(every_steps),
            save_decision_policy.SpecificStepsPolicy(frozenset(at_steps)),
        ]
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=save_decision_policy.AnySavePolicy(when),
                preservation_policy=preservation_policy.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """The last complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def is_due(self, step: int) -> bool:
        """Whether `save` would write at this step."""
        return step != self.latest_step() and self._manager.should_save(step)

    def save(self, step: int, state: Any, progress: dict[str, float], *, due: bool = True) -> None:
        """Starts writing `state` and a few numbers; training may go on (and donate) at once. due: False to insist."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)),
            force=not due,
        )

    def restore(self, step: int, template: Any) -> tuple[Any, dict[str, float]]:
        """The state of `step` with the template's structure, dtypes and shardings, whichever devices saved it, and the
        numbers beside it. template: of `parallel.on_mesh`."""
        items = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore())
        )
        return items.state, items.progress

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def latest_step(workdir: Path) -> int:
    """The last complete checkpoint's step of the run in `workdir`.

    Raises:
        UserError: if there is none.
    """
    # A checkpoint gets its step for a name when it is complete.
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint; train first: python launch.py --workdir {workdir}")
    return max(steps)


def read(workdir: Path, step: int, template: Any) -> Any:
    """What `template` names of the state of `step`, with its dtypes and shardings; nothing in `workdir` is changed.

    Args:
        workdir: the run's.
        step: of a complete checkpoint.
        template: a TrainState, or a dict of some of its fields, of `parallel.on_mesh`.
    """
    restore = ocp.args.PyTreeRestore(
        item=template, restore_args=ocp.checkpoint_utils.construct_restore_args(template), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore((workdir / "checkpoints" / str(step) / "state").absolute(), args=restore)


def read_latest(workdir: Path, template: Any) -> tuple[int, Any]:
    """(step, `read` of it) of the last checkpoint in `workdir`, where a trainer may be saving the next.

    All processes call it, and read the same one.

    Raises:
        UserError: if there is no checkpoint, or it does not suit the template.
    """

    def newest() -> int:
        return int(processes.told_by_first(lambda: str(latest_step(workdir))))

    def there(step: int) -> None:
        if not (workdir / "checkpoints" / str(step)).is_dir():
            raise UserError(f"{workdir} is not the folder of process 0: it has no checkpoint {step}")

    def whole(step: int) -> Any:
        try:
            return read(workdir, step, template)
        except Exception as error:  # told by whichever library is at it
            said = " ".join(str(error).split())[:300]
            raise UserError(f"{workdir}: checkpoint {step} cannot be read: {said}") from error

    step = newest()
    for _ in range(ATTEMPTS):
        try:
            processes.together(partial(there, step))
            return step, processes.together(partial(whole, step))
        except UserError:
            # The trainer keeps the latest few: an older one may be taken away, file by file, while it is read.
            before, step = step, newest()
            if step == before:
                raise
    raise UserError(f"{workdir}: its trainer saves faster than a checkpoint can be read")
