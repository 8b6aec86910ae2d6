"""The events of `metrics.jsonl` as files that TensorBoard reads."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2f_jax import storage
from c2f_jax.errors import UserError
from c2f_jax.program import needing

FOLDER = "tensorboard"


def check() -> None:
    """Raises UserError if the package that writes them is not installed."""
    with needing("tensorboard"):
        import tensorboardX  # noqa: F401


def check_place(workdir: Path) -> None:
    """Raises UserError if they cannot be written there: a bucket's objects cannot be appended to."""
    if storage.is_remote(workdir):
        raise UserError(
            f"train.tensorboard writes files of this machine, and {workdir} is a bucket; give a --workdir on this "
            "machine, or leave it out: metrics.jsonl has the same figures"
        )


class EventFiles:
    """Scalars for `tensorboard --logdir WORKDIR`: a folder for each part, so that their curves share a chart.

    By tensorboardX's writer without a thread: its usual one, whose thread dies with a full disk, then waits for ever.
    """

    def __init__(self, workdir: Path, *, resume_step: int):
        """What a run that goes on from `resume_step` tells again takes the place of what it told before."""
        self._folder, self._resume_step = workdir / FOLDER, resume_step
        self._writers: dict[str, Any] = {}

    def write(self, *, step: int, stage: str, split: str, metrics: Mapping[str, float]) -> None:
        """One point of each curve, on the disk at once. `stage` has no place in these files."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        if split not in self._writers:
            self._writers[split] = self._open(split)
        for name, value in metrics.items():
            self._writers[split].write_event(_now(Event(step=step, summary=scalar(name, value))))
        self._writers[split].flush()

    def __enter__(self) -> "EventFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def _open(self, split: str) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self._folder / split
        folder.mkdir(parents=True, exist_ok=True)
        # A file for each start: its name has seconds, and two starts can lie within one.
        writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # Of older files TensorBoard drops what stands at this step or later. As `JsonLines` does: training metrics up
        # to the checkpoint stay, evaluations at it are done again.
        again = self._resume_step + (split == "train")
        writer.write_event(_now(Event(step=again, session_log=SessionLog(status=SessionLog.START))))
        return writer


def _now(event: Any) -> Any:
    event.wall_time = time.time()
    return event
