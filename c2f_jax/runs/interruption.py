"""SIGTERM and Ctrl-C: noted while a step or a save is under way, obeyed at once while nothing could be lost.

Nothing is raised out of a signal handler. Such an exception comes out wherever the program happens to be: in a callback
of the garbage collector it is swallowed, in a library it can leave half of a thing behind, and while a long program is
compiled it waits. A thread that reads the signals from a pipe has none of that.
"""

import os
import signal
import sys
import threading
from contextlib import suppress

from c2f_jax import program
from c2f_jax.console import Stream

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """The signals that have come. As a context manager of the program's main thread it takes them over.

    The first one ends the program at once, unless it comes after `defer`: then it is noted in `signal` for the program
    to obey when it can. A second Ctrl-C ends the program at once in any case.

    Attributes:
        signal: the number of the first signal noted, 0 for none.
    """

    def __init__(self, parting: str = "interrupted", heard: str = "finishing this step and saving"):
        """parting: what to say when the program is ended at once; heard: when a signal is noted."""
        self.signal = 0
        self._parting, self._heard = parting, heard
        self._deferred = False
        self._lock = threading.Lock()

    def __enter__(self) -> "Interruption":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # The handlers do nothing; that they are there makes Python's own C handler write the number into the pipe.
        # Who is told to ignore one (a shell's background job, nohup) does.
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in heeded}
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)  # the thread reads the end, and closes its own side

    def defer(self, deferred: bool = True) -> None:
        """From now on the first signal is noted, and the program has to look at `signal`; or, False, obeyed at once."""
        with self._lock:
            self._deferred = deferred

    def _watch(self) -> None:
        while number := os.read(self._reader, 1):
            if number[0] in SIGNALS:
                self._take(number[0])
        os.close(self._reader)

    def _take(self, number: int) -> None:
        with self._lock:
            first, deferred = not self.signal, self._deferred
            self.signal = self.signal or number
        if not deferred or (not first and number == signal.SIGINT):
            _end(number, self._parting)
        if first:
            _say(self._heard + ("; Ctrl-C again ends at once" if number == signal.SIGINT else ""))


def _say(line: str) -> None:
    # By hand: the main thread may hold the lock of `sys.stderr`.
    start = "\r" if Stream("stderr").isatty() else ""
    with suppress(OSError):  # nobody reads it any more
        os.write(2, f"{start}{program.name()}: {line}\n".encode())


def _end(number: int, parting: str) -> None:
    if Stream().isatty():
        with suppress(OSError):
            os.write(sys.stdout.fileno(), b"\x1b[?25h")  # a progress bar hides the cursor
    _say(parting)
    os._exit(128 + number)
