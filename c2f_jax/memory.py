"""Memory for XLA's CPU back end: huge pages, kept from one step to the next."""

import contextlib
import os
import platform
import signal
import sys

TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"


def restart_with_huge_pages(**also: str) -> None:
    """Starts this program again with `TUNABLES`, once, where they do anything; call it first of all.

    XLA's CPU back end takes all of a step's memory from the system and gives it back at the step's end; each time the
    kernel hands it out anew in pieces of 4 KiB, cleared, which costs a seventh to a fifth of a training step. glibc
    (2.35 and later) reads these settings only when a program starts. Whoever sets GLIBC_TUNABLES is left alone.

    Args:
        also: other variables to start with, where they are not set.
    """
    wanted = also | ({"GLIBC_TUNABLES": TUNABLES} if platform.libc_ver()[0] == "glibc" else {})
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if missing:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os.environ.update(missing)
        # Ctrl-C is held back while the new interpreter starts, where it would be a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.execv(sys.executable, sys.orig_argv)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
