"""A file of many rows that is written as they come, and gone on with after a kill.

Until it is complete it is called `<name>.part`, with `<name>.part.json` beside it, which says what command it is of:
rows that another command wrote are never mixed with these. Rows are whole or go: the last one, which a kill may have
cut, is always made again.
"""

import csv
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from c2f_jax import storage
from c2f_jax.errors import UserError
from c2f_jax.runs.spreadsheets import FORMAT
from c2f_jax.runs.workdir import write_json


class Rows:
    """An open part file; made by `resuming`.

    Attributes:
        done: for each row that is there already, what `lines` returned.
    """

    def __init__(self, file: TextIO, done: Sequence[Any]):
        self._file, self.done = file, tuple(done)

    def write(self, line: str) -> None:
        """Adds a row, with its end of line; it is in the hands of the operating system then."""
        self._file.write(line)
        self._file.flush()


def part_of(output: Path) -> Path:
    """What `output` is called until it is complete. A bucket's objects cannot be written row by row: here, then."""
    if not storage.is_remote(output):
        return output.with_name(output.name + ".part")
    place = hashlib.sha256(os.fsencode(output)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"c2f-jax-{place}" / f"{output.name}.part"


@contextmanager
def resuming(
    output: Path, command: Mapping[str, Any], lines: Callable[[Path], Iterator[tuple[str, Any]]], first_line: str = ""
) -> Iterator[Rows]:
    """The rows of `output`, which appears when the block ends; after an error or a kill the part stays.

    Args:
        output: a file that is not there.
        command: what the rows depend on, by name, as JSON has it.
        lines: reads a part file: each whole row as it stands there, and what `Rows.done` is to hold for it.
        first_line: what comes before all rows.

    Raises:
        UserError: if another process writes it, or what is there is another command's.
    """
    part = part_of(output)
    storage.make_folder(part.parent)
    about = part.with_name(part.name + ".json")
    with _alone(part.with_name(part.name + ".lock"), output):
        kept: list[tuple[str, Any]] = []
        if part.exists():
            _check(part, about, command)
            kept = list(lines(part))[:-1]
        write_json(about, dict(command))
        temporary = part.with_name(part.name + ".tmp")
        with temporary.open("w", **FORMAT) as file:  # type: ignore[call-overload]
            file.write(first_line)
            file.writelines(line for line, _ in kept)
        temporary.replace(part)
        with part.open("a", **FORMAT) as file:  # type: ignore[call-overload]
            yield Rows(file, [done for _, done in kept])
        if storage.is_remote(output):
            with part.open("rb") as written, storage.writing(output) as file:
                shutil.copyfileobj(written, file)
            part.unlink()
        else:
            part.replace(output)
        about.unlink()


@contextmanager
def _alone(path: Path, output: Path) -> Iterator[None]:
    """The lock is the operating system's: it dies with its process."""
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"--output: {output} is being written by another process: wait, or choose another name"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _check(part: Path, about: Path, command: Mapping[str, Any]) -> None:
    """Raises UserError unless the part is of this command."""
    try:
        there = json.loads(storage.read_text(about))
        differences = [f"{name}: {there.get(name)} there, {value} now" for name, value in command.items()]
        differences = [
            told for told, name in zip(differences, command, strict=True) if there.get(name) != command[name]
        ]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--output: {part} is there, and {about.name}, which says what it is of, cannot be read: move both away, "
            "or choose another name"
        ) from error
    if differences:
        raise UserError(
            f"--output: {part} was begun by another command ({'; '.join(differences)}): give that one to go on with "
            "it, move it away to begin anew, or choose another name"
        )


def csv_lines(part: Path) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Of a CSV file with a header: each row as it stands there, its first cell, and whether the last is an error."""
    with part.open(encoding="utf-8", newline="") as file:
        raw = _Remembering(file)
        rows = csv.reader(raw)
        header = next(rows, None)
        raw.taken()
        for row in rows:
            text = raw.taken()
            if header is not None and len(row) == len(header) and text.endswith("\n"):
                yield text, (row[0], bool(row[-1]))


class _Remembering:
    """Lines, and what has been read of them."""

    def __init__(self, file: TextIO):
        self._file, self._read = file, ""

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self._read += line
            yield line

    def taken(self) -> str:
        """What has been read since it was asked for."""
        read, self._read = self._read, ""
        return read


def json_lines(part: Path) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Of JSON lines: each as it stands there, its `file`, and whether there is an `error`."""
    with part.open(encoding="utf-8") as file:
        for line in file:
            try:
                said = json.loads(line)
                yield line, (str(said["file"]), said["error"] is not None)
            except (ValueError, KeyError, TypeError):
                continue
