"""What every benchmark here needs: two threads for everybody, calls timed in turn, and what a figure depends on."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from c2f_jax.memory import restart_with_huge_pages

THREADS = 2


def prepare(huge_pages: bool = True, threads: int = THREADS) -> None:
    """So many cores for this process; before JAX or PyTorch is imported, which count cores once.

    huge_pages: as training has them; a plain process of somebody who takes a kernel alone has not.
    """
    if huge_pages:
        restart_with_huge_pages()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Work(NamedTuple):
    """Something to time on a device, which may go on after the call that asks for it has returned.

    Attributes:
        start: asks for it once; returns what `finish` takes.
        finish: waits until it is done.
        temp_mib: MiB that its program sets aside beside arguments and results, where known.
    """

    start: Callable[[], Any]
    finish: Callable[[Any], Any]
    temp_mib: float | None = None

    def __call__(self) -> Any:
        """Once, waiting."""
        return self.finish(self.start())

    def queued(self, count: int) -> Callable[[], Any]:
        """`count` times one after the other, waiting for the last alone, as training asks for its steps."""

        def call() -> Any:
            for _ in range(count - 1):
                self.start()
            return self()

        return call


def in_turn(
    calls: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds of each call, round after round, so that a busy moment of the machine falls on all of them.

    In each round a call is made once before it is timed: what another one left in caches and in the heap is not its
    fault, and training makes the same call again and again.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            call()
            start = clock()
            call()
            times[name].append(1000.0 * (clock() - start))
    return times


def summary(times: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """By name: median and least milliseconds; `speed` is the median over rounds of reference time over own time."""
    return {
        name: {
            "milliseconds": round(statistics.median(values), 4),
            "fastest": round(min(values), 4),
            "speed": round(statistics.median(b / a for a, b in zip(values, times[reference], strict=True)), 3),
        }
        for name, values in times.items()
    }


def resident_mib() -> float:
    """The largest this process has been; not `getrusage`, whose figure a child process inherits."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak_mib(build: Callable[[], Callable[[], Any]]) -> float:
    """MiB by which this process grows while a call is built and made twice. For a process that does nothing else."""
    import jax

    jax.block_until_ready(jax.numpy.zeros(8) + 1.0)
    before = resident_mib()
    call = build()
    call()
    call()
    return resident_mib() - before


def in_own_process(module: str, *arguments: str) -> float:
    """The last line that `python -m module --alone arguments...` prints."""
    command = [sys.executable, "-m", module, "--alone", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def environment(threads: int = THREADS) -> dict[str, Any]:
    """Device, cores and versions."""
    import jax

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "device": jax.devices()[0].device_kind,
        "cores": threads,
        "versions": {name: of(name) for name in ("jax", "flax", "torch")},
    }
