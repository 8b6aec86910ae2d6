"""What the program tells: every line that it writes to a terminal or a pipe goes out here, and nowhere else.

So names of files and classes may hold what they like: a line stays a line, and is told in whatever encoding the
terminal has. A reader who has gone (`launch.py | head`), a stream that was closed from the start and a log on a disk
that is full silence the program and do not end it.
"""

import contextlib
import os
import sys
from typing import Any

from c2f_jax import program
from c2f_jax.errors import one_line


def tell(line: str) -> None:
    """A line on standard output."""
    Stream("stdout").write(f"{one_line(line)}\n")


def warn(line: str) -> None:
    """A line on standard error."""
    Stream("stderr").write(f"{one_line(line)}\n")


def fail(line: str) -> None:
    """A line on standard error that says why the program ends."""
    warn(f"{program.name()}: {line}")


class Stream:
    """Standard output or error, whichever `sys` has by then, as a text file that takes everything and never raises."""

    def __init__(self, name: str = "stdout"):
        self._name = name

    @property
    def _stream(self) -> Any:
        return getattr(sys, self._name)  # None if it was closed when the program started

    @property
    def encoding(self) -> str:
        """Of the stream; what it lacks is spelled out."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes and flushes."""
        stream = self._stream
        if stream is not None:
            try:
                stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
                stream.flush()
            except (OSError, ValueError) as error:  # ValueError: it has been closed
                self._silence(error)
        return len(text)

    def flush(self) -> None:
        """`write` has flushed."""

    def isatty(self) -> bool:
        """Whether somebody looks on."""
        stream = self._stream
        with contextlib.suppress(ValueError):
            return stream is not None and bool(stream.isatty())
        return False

    def fileno(self) -> int:
        """Of the stream; raises OSError if it has none."""
        if self._stream is None:
            raise OSError("no such stream")
        return int(self._stream.fileno())

    def _silence(self, error: Exception) -> None:
        """What is told from here on goes nowhere, also what is left in the stream's buffer."""
        with contextlib.suppress(OSError, ValueError):
            descriptor = self.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        if self._name == "stdout" and isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            warn(f"standard output cannot be written ({error.strerror}): nothing more is told there")


def open_standard_streams() -> None:
    """Puts nothing where a standard stream is closed (`>&-`); call it before any file is opened.

    Otherwise the next file that is opened takes its number, and gets what libraries have to say.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def unicode_names() -> dict[str, str]:
    """Variables that make Python take file names for UTF-8 where the locale says otherwise, and the terminal as it is.

    A run's classes are called by folders: they must not depend on the terminal that it is started from.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return {}
    return {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{Stream().encoding}:backslashreplace"}


def flush() -> None:
    """Before the interpreter ends, which would make an exit code of its own of a reader who has gone."""
    for name in ("stdout", "stderr"):
        Stream(name).write("")


def relay(lines: bytes) -> None:
    """What another program told on its standard error, told on ours."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.buffer.write(lines)
        sys.stderr.flush()
