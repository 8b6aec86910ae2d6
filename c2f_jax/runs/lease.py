"""Who trains in a workdir, by files alone: the lock of a bucket, where no operating system frees one.

Each trainer has a file of its own in `train.lock/`, writes it anew every `RENEW` seconds, and takes it away at its end.
Whoever comes first writes a file, and only then looks who else is there: of two that come at once at least one sees the
other, since a bucket lists what was written before. A file that nobody has renewed for `LEASE` seconds is one of a
trainer that was killed. Clocks of two machines are never compared: whoever comes watches, by its own.
"""

import errno
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from c2f_jax import console, storage
from c2f_jax.errors import UserError

RENEW = 10.0  # seconds
LEASE = 45.0


class Lease:
    """The only one of `folder`, from entering on; as a context manager."""

    def __init__(self, folder: Path, what: str):
        """folder: where the files are; what: whose it is, for messages."""
        self._folder, self._what = folder, what
        self._name = f"{time.time():.0f}-{secrets.token_hex(8)}"
        self._ended = threading.Event()
        self._lost = ""

    def __enter__(self) -> "Lease":
        self._write()
        # While it waits, too: of two that have seen each other, each then sees that the other lives.
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()
        try:
            self._wait_for_the_dead()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewer.join(timeout=LEASE)  # or what it is just writing would be there again
        try:
            storage.remove(self._folder / self._name)
        except OSError as error:
            console.warn(f"{self._folder / self._name} could not be taken away ({storage.told(error)})")

    def check(self) -> None:
        """Raises OSError if it may be somebody else's by now: nothing must be written any more."""
        if self._lost:
            why = f"this process is its trainer no longer ({self._lost}): no two may be"
            raise OSError(errno.ESTALE, why, self._what)

    def _write(self) -> None:
        text = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}\n"
        storage.write_text(self._folder / self._name, text)

    def _others(self) -> dict[str, str]:
        """Name -> content of the files of others."""
        found = {}
        for name in storage.names(self._folder):
            if name != self._name:
                try:
                    found[name] = storage.read_text(self._folder / name, errors="replace")
                except FileNotFoundError:  # it has just ended
                    continue
        return found

    def _wait_for_the_dead(self) -> None:
        """Takes the files of trainers away that do not renew them.

        Raises:
            UserError: if one does, or comes at the same time.
        """
        began, seen = time.monotonic(), self._others()
        if seen:
            console.warn(f"{self._what} was left locked, or is being trained: this takes up to {LEASE:.0f} s to see")
        while others := self._others():
            if any(seen.get(name) != text for name, text in others.items()):
                who = next(text for name, text in others.items() if seen.get(name) != text).split()
                raise UserError(
                    f"{self._what} is being trained by another process ({' '.join(who[:2])}): wait for it, stop it, or "
                    "choose another --workdir"
                )
            if time.monotonic() - began > LEASE:
                for name in others:
                    storage.remove(self._folder / name)
                return
            time.sleep(min(1.0, RENEW / 4))

    def _renew(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(RENEW):
            try:
                if not storage.is_file(self._folder / self._name):
                    self._lost = "its lock was taken"
                    return
                if not self._ended.is_set():
                    self._write()
                last = time.monotonic()
            except OSError as error:
                if time.monotonic() - last > LEASE - RENEW:
                    self._lost = f"{self._folder} cannot be reached: {storage.told(error)}"
                    return
