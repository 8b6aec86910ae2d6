"""What a run tells: JSON lines in a file, and a progress bar or plain lines on the console."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from c2f_jax import storage
from c2f_jax.console import Stream
from c2f_jax.errors import UserError, one_line

Item = TypeVar("Item")

REWRITE_SECONDS = 30


def _console(*, quiet: bool = False) -> Console:
    """Of `console.Stream`; names are no markup."""
    return Console(file=cast(IO[str], Stream()), highlight=False, markup=False, emoji=False, quiet=quiet)


class JsonLines:
    """Appends one object per event to a file: `step`, `stage`, `split`, then the metrics."""

    def __init__(self, path: Path | None, *, resume_step: int | None):
        """Opens `path` (None: writes nothing); what a run that goes on from `resume_step` tells again goes."""
        self._path = path
        if path is None:
            return
        kept = []
        if resume_step is not None and storage.exists(path):
            lines = storage.read_text(path, errors="replace").splitlines()
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
        self._lines = [f"{line}\n" for line in kept]
        storage.write_text(path, "".join(self._lines))
        self._written = time.monotonic()

    def write(self, *, step: int, stage: str, split: str, metrics: Mapping[str, float]) -> None:
        """One line, flushed at once; in a bucket, training metrics with those of the next half minute.

        Raises:
            ValueError: if a metric is not finite, which JSON has no word for.
        """
        if self._path is None:
            return
        line = json.dumps({"step": step, "stage": stage, "split": split, **metrics}, allow_nan=False)
        if storage.is_remote(self._path):
            self._lines.append(f"{line}\n")
            if split != "train" or time.monotonic() - self._written > REWRITE_SECONDS:
                self.flush()
        else:
            storage.append_text(self._path, f"{line}\n")

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def flush(self) -> None:
        """Writes what is not yet in the file: a bucket's objects cannot be appended to, so all of it."""
        if self._path is not None and storage.is_remote(self._path):
            storage.write_text(self._path, "".join(self._lines))
            self._written = time.monotonic()


def _stays(line: str, resume_step: int) -> bool:
    event = json.loads(line)
    # A checkpoint at step t is written after the training metrics up to t; evaluations at t are done again.
    return event["step"] <= resume_step if event["split"] == "train" else event["step"] < resume_step


class Reporter:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, *, start: int, quiet: bool = False):
        """total_steps: of the run; start: those already done; quiet: say nothing at all."""
        self._console = _console(quiet=quiet)
        self._total = total_steps
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
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
        self._console.print(one_line(line), soft_wrap=True)


def track(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """The items, with a progress bar on a terminal."""
    console = _console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=what)


def print_rows(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table of text."""
    table = Table(title=Text(one_line(title)), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    _console().print(table)


def print_table(title: str, metrics: Mapping[str, Any]) -> None:
    """The final figures: views in rows, classification metrics in columns; then boxes and attention."""
    columns = ("top_1_accuracy", "top_5_accuracy", "mean_per_class_accuracy", "calibration_error", "loss")
    table = Table(title=Text(one_line(title)), title_justify="left")
    table.add_column("view")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for view in ("coarse", "fine", "fused", "calibrated_coarse", "calibrated", "gated"):
        if f"{view}/loss" in metrics:
            values = [metrics[f"{view}/{column}"] for column in columns]
            table.add_row(view.replace("_", " "), *(f"{value:.2%}" for value in values[:-1]), f"{values[-1]:.4f}")
    console = _console()
    console.print(table)
    for group, title in (("box/", "fine view"), ("attention/", "attention")):
        figures = [
            f"{name.removeprefix(group).replace('_', ' ')} {value:.3f}"
            for name, value in metrics.items()
            if name.startswith(group)
        ]
        if figures:
            console.print(f"{title}: " + ", ".join(figures), soft_wrap=True)
