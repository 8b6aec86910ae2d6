"""Checkpoints of the train state, by orbax; the only file that knows orbax.

A trainer writes by `Checkpoints`; everybody else reads by the functions below, which change nothing. Orbax notices most
missing and cut files, and no changed byte in arrays: beside each state stand checksums of ours, and reading compares.
"""

import atexit
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from c2f_jax import program, storage
from c2f_jax.console import warn
from c2f_jax.errors import UserError, as_text
from c2f_jax.runs import processes
from c2f_jax.runs.parallel import whole

ATTEMPTS = 20
CHECKSUMS = "checksums"  # among the numbers beside a state


class Checkpoints:
    """The checkpoints of one run, to write; each is written whole or not at all."""

    def __init__(
        self,
        workdir: Path,
        *,
        every_steps: int,
        at_steps: Collection[int],
        keep: int = 2,
        still_ours: Callable[[], None] | None = None,
    ):
        """Opens those of the run in `workdir`, for its trainer alone: what an interrupted save left is removed.

        Args:
            workdir: the run's.
            every_steps: save at multiples of this.
            at_steps: and at these (the stages' ends).
            keep: how many of the latest to keep.
            still_ours: raises OSError where this process may no longer write there.

        Raises:
            OSError: if they cannot be opened.
        """
        # Preemption is not among the policies: `interruption` notes the signals, and the loop saves.
        when = [
            save_decision_policy.FixedIntervalPolicy(every_steps),
            save_decision_policy.SpecificStepsPolicy(frozenset(at_steps)),
        ]
        self._workdir, self._folder = workdir, _folder(workdir)
        _without_echoes()
        self._still_ours = still_ours or (lambda: None)
        with self._told("opened"):
            self._manager = ocp.CheckpointManager(
                self._folder,
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
        """Starts writing `state` and a few numbers; training may go on (and donate) at once. due: False to insist.

        Raises:
            FloatingPointError: if a parameter is not finite: the checkpoint before stays the last.
            OSError: if it, or the one before, cannot be written: the one before that stays the last.
        """
        if not is_finite(_fields(state)["params"]):
            raise FloatingPointError(f"the parameters are not finite before step {step}, so it is not saved")
        beside = {**progress, CHECKSUMS: checksums(state)}
        self._still_ours()
        with self._told(f"saved at step {step}"):
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(_saved(state)), progress=ocp.args.JsonSave(beside)),
                force=not due,
            )

    def restore(self, step: int, template: Any) -> tuple[Any, dict[str, float]]:
        """The state of `step` with the template's structure, dtypes and shardings, whichever devices saved it, and the
        numbers beside it. template: of `parallel.on_mesh`.

        Raises:
            UserError: if it is not what was saved.
        """
        wanted = ocp.args.StandardRestore(_saved(template))
        items = self._manager.restore(step, args=ocp.args.Composite(state=wanted, progress=ocp.args.JsonRestore()))
        state = items.state if isinstance(template, dict) else dataclasses.replace(template, **items.state)
        _verify(state, items.progress)
        return state, {name: value for name, value in items.progress.items() if name != CHECKSUMS}

    def restore_latest(self, template: Callable[[int], Any]) -> tuple[int, Any, dict[str, float], tuple[str, ...]]:
        """(step, state, numbers, lines to tell) of the last checkpoint that is whole; damaged ones after it are moved
        to `damaged/`. All processes call it. template: step -> template of `restore`.

        Raises:
            UserError: if none is whole; then all stay where they are.
        """
        damaged: list[tuple[int, str]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            whole = partial(_told, self._workdir, step, lambda step: self.restore(step, template(step)))
            try:
                state, progress = processes.together(whole)
            except UserError as error:
                damaged.append((step, str(error)))
                continue
            if damaged:
                processes.by_first(partial(self._set_aside, [number for number, _ in damaged]))
                self._manager.reload()
            notes = (f"{said}; it is set aside, and checkpoint {step} is used" for _, said in damaged)
            return step, state, progress, tuple(notes)
        raise UserError(f"{damaged[0][1]}; there is no whole one before it: restore it, or choose another --workdir")

    def set_aside_after(self, step: int) -> str:
        """Moves the checkpoints of later steps to `damaged/`, in all processes; a line that says so, "" if none are."""
        with self._told("saved"):
            self._manager.wait_until_finished()
        later = sorted(number for number in self._manager.all_steps() if number > step)
        if not later:
            return ""
        processes.by_first(partial(self._set_aside, later))
        self._manager.reload()
        return f"; saved while it went wrong, and set aside: checkpoint {', '.join(map(str, later))}"

    def _set_aside(self, steps: Collection[int]) -> None:
        place = self._workdir / "damaged"
        storage.make_folder(place)
        for step in steps:
            number = sum(name.partition(".")[0] == str(step) for name in storage.names(place))
            storage.move_folder(self._folder / str(step), place / (f"{step}.{number}" if number else str(step)))

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            OSError: if it cannot be written: the checkpoint before stays the last.
        """
        with self._told("saved"):
            self._manager.wait_until_finished()
        self._manager.close()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever goes wrong in it as an OSError in a line."""
        try:
            yield
        except Exception as error:  # told by whichever library is at it
            if processes.is_lost(error):  # it is not the disk that fails
                raise
            raise _as_os_error(error, self._workdir / "checkpoints", what) from error


def checksums(state: Any) -> dict[str, str]:
    """What the arrays of each field of `state` (a TrainState, or a dict of some of its fields) add up to.

    Of names, dtypes, shapes and bytes, as this process holds them; and the dtype of the parameters.
    """

    def of(tree: Any) -> str:
        total = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            array = whole(leaf)
            total = zlib.crc32(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode(), total)
            total = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, total)
        return f"{total:08x}"

    found = _fields(state)
    return {name: of(tree) for name, tree in found.items()} | {"dtype": _dtype(found["params"])}


def is_finite(tree: Any) -> bool:
    """Whether all numbers of a tree of arrays are."""
    return all(bool(np.all(np.isfinite(whole(leaf)))) for leaf in jax.tree.leaves(tree))


def _fields(state: Any) -> dict[str, Any]:
    return state if isinstance(state, dict) else {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def _saved(state: Any) -> dict[str, Any]:
    """What there is of it: a field that a run makes no use of is not in its checkpoints, as before there was one."""
    return {name: value for name, value in _fields(state).items() if value is not None}


def _dtype(params: Any) -> str:
    return str(jax.tree.leaves(params)[0].dtype)


def _verify(state: Any, progress: Any) -> None:
    """Raises UserError if `state` is not what was saved; runs of earlier versions have nothing to compare with."""
    if not isinstance(progress, dict):
        raise UserError("its numbers are not those of a checkpoint")
    stored = progress.get(CHECKSUMS)
    if stored is None or stored["dtype"] != _dtype(_fields(state)["params"]):  # read as another dtype
        return
    found = checksums(state)
    changed = [name for name in found if name != "dtype" and found[name] != stored.get(name)]
    if changed:
        raise UserError(f"bytes of {', '.join(changed)} have changed since they were saved")


def _told(workdir: Path, step: int, do: Callable[[int], Any]) -> Any:
    """`do(step)`, with whatever goes wrong as one line."""
    try:
        return do(step)
    except Exception as error:  # told by whichever library is at it
        if processes.is_lost(error):
            raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{workdir}: checkpoint {step} cannot be read: {said}") from error


def _folder(workdir: Path) -> Path:
    """Of the checkpoints, as orbax takes it: tensorstore knows only names that are UTF-8."""
    if storage.is_remote(workdir):
        return workdir / "checkpoints"
    folder = workdir.absolute()
    return (folder if as_text(str(folder)) == str(folder) else _alias(folder)) / "checkpoints"


@cache
def _alias(folder: Path) -> Path:
    """A link to it of another name, for as long as this process lives."""
    place = Path(tempfile.mkdtemp(prefix="c2f-jax-"))
    (place / "run").symlink_to(folder)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place / "run"


class _Raised(logging.Filter):
    """Without what orbax tells of an error that it raises, too: pages of stack from another thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_Raised())


@cache
def _without_echoes() -> None:
    """After an error tensorstore's threads still call the loop that orbax has closed, and print a traceback each."""
    told = sys.excepthook

    def hook(kind: Any, error: BaseException, trace: Any) -> None:
        if kind is not RuntimeError or str(error) != "Event loop is closed":
            told(kind, error, trace)

    sys.excepthook = hook


def _steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    steps = sorted(int(name) for name in storage.names(folder) if name.isdecimal())
    if storage.is_remote(folder):  # where nothing is renamed, this says that a checkpoint is complete
        return [step for step in steps if storage.is_file(folder / str(step) / "commit_success.txt")]
    return steps  # a checkpoint gets its step for a name when it is complete


def _as_os_error(error: Exception, folder: Path, what: str) -> OSError:
    """What orbax and tensorstore raise where a disk or bucket fails, with the system's own number if they tell it."""
    said = " ".join(str(error).split())
    found = re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", said)
    number = error.errno if isinstance(error, OSError) and error.errno else int(found[1] or found[2]) if found else 0
    why = os.strerror(number) if number else f"{type(error).__name__}: {said[:200]}"
    return OSError(number or errno.EIO, f"a checkpoint could not be {what}: {why}", str(folder))


def latest_step(workdir: Path) -> int:
    """The last complete checkpoint's step of the run in `workdir`.

    Raises:
        UserError: if there is none.
    """
    steps = _steps(workdir)
    if not steps:
        raise UserError(
            f"{workdir} holds no checkpoint; train first: {program.command()} {program.flag('workdir', workdir)}"
        )
    return steps[-1]


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
    folder = _folder(workdir) / str(step)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        state = checkpointer.restore(folder / "state", args=restore)
    _verify(state, json.loads(storage.read_text(folder / "progress" / "metadata")))
    return state


def read_latest(workdir: Path, template: Any, *, finite: bool = False) -> tuple[int, Any]:
    """(step, `read` of it) of the last whole checkpoint in `workdir`, where a trainer may be saving the next.

    All processes call it, and read the same one. Where a later one is damaged, process 0 says so.

    Args:
        workdir: the run's.
        template: as in `read`.
        finite: pass over checkpoints with parameters that are not.

    Raises:
        UserError: if there is no checkpoint, or none can be read or suits the template.
    """

    def newest() -> int:
        return int(processes.told_by_first(lambda: str(latest_step(workdir))))

    def there(step: int) -> None:
        if not storage.is_dir(workdir / "checkpoints" / str(step)):
            raise UserError(f"{workdir} is not the folder of process 0: it has no checkpoint {step}")

    def whole(step: int) -> Any:
        state = _told(workdir, step, lambda step: read(workdir, step, template))
        if finite and not is_finite(state["params"]):
            raise UserError(f"{workdir}: checkpoint {step} has parameters that are not finite")
        return state

    def earlier(step: int, error: UserError) -> tuple[int, Any]:
        steps = json.loads(processes.told_by_first(lambda: json.dumps(_steps(workdir))))
        for before in sorted((number for number in steps if number < step), reverse=True):
            try:
                state = processes.together(partial(whole, before))
            except UserError:
                continue
            if processes.is_first():
                warn(f"{error}; checkpoint {before} is used")
            return before, state
        raise error

    step = newest()
    for _ in range(ATTEMPTS):
        try:
            processes.together(partial(there, step))
            return step, processes.together(partial(whole, step))
        except UserError as error:
            # The trainer keeps the latest few: an older one may be taken away, file by file, while it is read.
            before, step = step, newest()
            if step == before:
                return earlier(step, error)
    raise UserError(f"{workdir}: its trainer saves faster than a checkpoint can be read")
