"""A parent for each of several processes: what ends a working process, it turns into one line and an exit code.

JAX's coordination service aborts a process whose partner is gone: no exception, no exit code of ours, a page of native
stack. So the work is done by a child, and this parent, which knows no JAX, hands signals down and tells what happened.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import IO, NoReturn

from c2f_jax import console

CHANNEL = "C2F_JAX_SUPERVISOR"  # tells a child the descriptor of its end of the channel
JOINED = b"joined"
LOST = (
    "another process of this run was lost (ended, killed, or out of reach); all end, and the same commands "
    "go on from the last checkpoint"
)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

# How jax's coordination service begins its last words (absl's log lines), before it aborts.
FATAL = re.compile(rb"^(F\d{4} \d\d:\d\d:\d\d|E\d{4} \d\d:\d\d:\d\d.*coordination)")
OF_COORDINATION = (b"JAX distributed service", b"coordination")


def supervise() -> int:
    """Starts this very program again as the child that does the work; returns the exit code when that has ended."""
    ours, its = socket.socketpair()
    # A signal that comes before the child is there is handed down when it is: nothing ends this parent alone.
    early: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def hand_down(number: int, _: object) -> None:
        early.append(number) if child is None else child.send_signal(number)

    signal.signal(signal.SIGINT, hand_down)
    signal.signal(signal.SIGTERM, hand_down)
    child = subprocess.Popen(
        sys.orig_argv,
        env=_environment(its.fileno()),
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Of its own: the terminal's Ctrl-C then reaches it once, through this parent, like every other signal.
        start_new_session=True,
    )
    its.close()
    for number in early:
        child.send_signal(number)
    last_words: list[bytes] = []
    assert child.stderr is not None
    reader = threading.Thread(target=_pass_on, args=(child.stderr, last_words), daemon=True)
    reader.start()
    code = child.wait()
    reader.join(timeout=5)
    ours.setblocking(False)
    try:
        joined = ours.recv(len(JOINED)) == JOINED
    except OSError:
        joined = False
    fatal = b"".join(last_words)
    if code == -signal.SIGABRT and any(words in fatal for words in OF_COORDINATION):
        told = (
            LOST
            if joined
            else "the processes of this run did not find each other: start every one with the same --coordinator and "
            "--processes, each with its own --process, and let the coordinator's port be reachable and free"
        )
        console.fail(told)
        return 1
    console.relay(fatal)
    if code < 0:
        ended = f"the working process was ended by {signal.Signals(-code).name}"
        console.fail(ended)
        return 128 - code
    return code


def _environment(descriptor: int) -> dict[str, str]:
    environment = {**os.environ, CHANNEL: str(descriptor)}
    # XLA's CPU back end has as many threads as cores; a collective blocks one for each device of this process, and
    # with none to spare for what its partners wait for, it blocks them all.
    environment.setdefault("PJRT_NPROC", str(max(8, 2 * (os.cpu_count() or 1))))
    # On CPU a collective (by Gloo) gives up after 30 seconds, less than one process may compile longer than another;
    # whoever is really gone is noticed by the coordinator. Other platforms' XLA need not know the flag.
    flags = environment.get("XLA_FLAGS", "")
    if environment.get("JAX_PLATFORMS") == "cpu" and "xla_cpu_collective_timeout_seconds" not in flags:
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_collective_timeout_seconds=3600".strip()
    return environment


def _pass_on(lines: IO[bytes], last_words: list[bytes]) -> None:
    """The child's errors as they come, but for its last words: the parent says that better, or later."""
    for line in lines:
        if last_words or FATAL.match(line):
            last_words.append(line)
        else:
            console.relay(line)


def is_supervised() -> bool:
    """Whether this process is such a child."""
    return CHANNEL in os.environ


class Channel:
    """The child's end: it tells the parent that the processes have met, and does not outlive it."""

    def __init__(self) -> None:
        if sys.platform == "linux":  # the kernel sees to it, even where a computation holds the interpreter
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Native code of collectives tells of its connections on the descriptor of standard output.
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        self._socket = socket.socket(fileno=int(os.environ[CHANNEL]))
        threading.Thread(target=self._end_with_parent, name="parent", daemon=True).start()

    def joined(self) -> None:
        """Says that all processes have found each other."""
        self._socket.sendall(JOINED)

    def _end_with_parent(self) -> NoReturn:
        self._socket.recv(1)  # the parent says nothing: this returns when it is gone
        os._exit(1)


def end_with_traceback(error: BaseException, *, wait: float) -> NoReturn:
    """Ends a child that has failed alone, without the parting that would wait for partners in vain.

    A partner that is lost often shows itself first as an error of some computation: for `wait` seconds the coordination
    service may find that out and abort this process, and then the parent tells what happened.
    """
    time.sleep(wait if isinstance(error, RuntimeError) else 0.0)
    traceback.print_exception(error)
    end(1)


def end(code: int) -> NoReturn:
    """Ends a child that is not joined to others, or whose others may be gone: jax's own way out waits, or crashes."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
