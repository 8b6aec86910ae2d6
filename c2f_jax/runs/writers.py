"""What a run tells: JSON lines in a file, and a progress bar or plain lines on the console."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from c2f_jax.errors import UserError

Item = TypeVar("Item")


class _Console(Console):
    """Goes quiet where nobody reads any more (`launch.py | head`): a run is not ended by that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class JsonLines:
    """Appends one object per event to a file: `step`, `stage`, `split`, then the metrics."""

    def __init__(self, path: Path | None, *, resume_step: int | None):
        """Opens `path` (None: writes nothing); what a run that goes on from `resume_step` tells again goes."""
        self._path = path
        if path is None:
            return
        kept = []
        if resume_step is not None and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            for number, line in enumerate(lines, start=1):
                try:
                    if _stays(line, resume_step):
                        kept.append(line)
                except (ValueError, KeyError, TypeError) as error:
                    if number == len(lines):  # cut off by a kill
                        continue
                    raise UserError(
                        f"{path}:{number} is no line of a run's log; take it out, and start again"
                    ) from error
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(path)

    def write(self, *, step: int, stage: str, split: str, metrics: Mapping[str, float]) -> None:
        """One line, flushed at once.

        Raises:
            ValueError: if a metric is not finite, which JSON has no word for.
        """
        if self._path is not None:
            line = json.dumps({"step": step, "stage": stage, "split": split, **metrics}, allow_nan=False)
            with self._path.open("a") as file:
                file.write(line + "\n")


def _stays(line: str, resume_step: int) -> bool:
    event = json.loads(line)
    # A checkpoint at step t is written after the training metrics up to t; evaluations at t are done again.
    return event["step"] <= resume_step if event["split"] == "train" else event["step"] < resume_step


class Reporter:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, *, start: int, quiet: bool = False):
        """total_steps: of the run; start: those already done; quiet: say nothing at all."""
        self._console = _Console(highlight=False, quiet=quiet)
        self._total = total_steps
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("start", total=total_steps, completed=start, figures="")

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, step: int, stage: str) -> None:
        """Moves the bar to `step`."""
        self._progress.update(self._task, completed=step, description=stage)

    def train(self, step: int, stage: str, metrics: Mapping[str, float], seconds_left: float) -> None:
        """Loss, accuracy, images/s and the time left."""
        accuracy = " ".join(
            f"{name.split('/')[0]} {value:.1%}" for name, value in metrics.items() if name.endswith("top_1_accuracy")
        )
        figures = f"loss {metrics['loss']:.3f}  {accuracy}  {metrics['images_per_second']:.0f} images/s"
        self._progress.update(self._task, figures=figures)
        if not self._console.is_terminal:
            left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d} left"
            self.say(f"{stage} {step}/{self._total}  {figures}  {left}")

    def say(self, line: str) -> None:
        """One line above the bar."""
        self._console.print(line, soft_wrap=True)


def track(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """The items, with a progress bar on a terminal."""
    console = _Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=what)


def print_table(title: str, metrics: Mapping[str, Any]) -> None:
    """The final figures: views in rows, classification metrics in columns; then boxes and attention."""
    columns = ("top_1_accuracy", "top_5_accuracy", "mean_per_class_accuracy", "calibration_error", "loss")
    table = Table(title=title, title_justify="left")
    table.add_column("view")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for view in ("coarse", "fine", "fused", "calibrated_coarse", "calibrated", "gated"):
        if f"{view}/loss" in metrics:
            values = [metrics[f"{view}/{column}"] for column in columns]
            table.add_row(view.replace("_", " "), *(f"{value:.2%}" for value in values[:-1]), f"{values[-1]:.4f}")
    console = _Console(highlight=False)
    console.print(table)
    for group, title in (("box/", "fine view"), ("attention/", "attention")):
        figures = [
            f"{name.removeprefix(group).replace('_', ' ')} {value:.3f}"
            for name, value in metrics.items()
            if name.startswith(group)
        ]
        if figures:
            console.print(f"{title}: " + ", ".join(figures), soft_wrap=True)
