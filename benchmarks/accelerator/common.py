"""What the sections share: the setting they run in, figures that JSON can hold, and timing on a device."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import timing

ROOT = Path(__file__).resolve().parents[2]

Line = dict[str, Any]
Unit = Callable[[], Iterator[Line]]  # what is run, failed or left out as one; gives its lines as they are known

ROUND = 0.02  # seconds that a round of calls shall take at least: what asking for it costs is then small
MOST_CALLS = 50


@dataclass(frozen=True)
class Setting:
    """What a section is run with.

    Attributes:
        section: its name.
        command: names this start of the program; figures of one command belong together.
        file: where the lines go.
        deadline: seconds since the epoch; from then on nothing is begun.
        rehearse: tiny sizes.
        only: beginnings of "section/unit"; empty: everything.
        data, weights: photos in CUB-200-2011's layout and EfficientNet-Lite0's weights; empty: not there.
        runs: folder for checkpoints.
        copy_rate, product_rate: the measured ceilings, bytes and operations a second; 0: not known.
    """

    section: str
    command: str
    file: str
    deadline: float
    rehearse: bool
    only: tuple[str, ...] = ()
    data: str = ""
    weights: str = ""
    runs: str = ""
    copy_rate: float = 0.0
    product_rate: float = 0.0

    @property
    def path(self) -> Path:
        """`file`."""
        return Path(self.file)

    def missing(self, *, weights: bool) -> str | None:
        """Photos, and weights where they are wanted, that are not where they should be: one line; None if all are."""
        absent = []
        if not self.data or not Path(self.data).is_dir():
            absent.append(f"no photos at {self.data or '--data or C2F_CUB_DIR'}")
        if weights and (not self.weights or not Path(self.weights).is_file()):
            absent.append(f"no weights at {self.weights or '--weights or C2F_WEIGHTS_DIR'}")
        return "; ".join(absent) or None

    def wants(self, unit: str) -> bool:
        """Whether `only` names the unit."""
        return not self.only or any(f"{self.section}/{unit}".startswith(name) for name in self.only)


def source_digest(root: Path = ROOT) -> str:
    """Of all program text that the figures depend on; known also where there is no git."""
    digest = hashlib.sha256()
    for path in sorted(path for part in ("c2f_jax", "configs", "benchmarks") for path in (root / part).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def number(value: Any, digits: int = 4) -> float | str:
    """`digits` significant digits; "nan" and "inf", which JSON does not have as numbers, in words."""
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else str(value)


def one_line(error: BaseException) -> str:
    """The type and the first line of what it says, no longer than a line of a log should be."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}"[:400]


def in_turn(works: Mapping[str, timing.Work], repeats: int) -> dict[str, list[float]]:
    """`timing.in_turn`, milliseconds of one call; short ones are queued, so that a device is not left waiting."""
    counts = {}
    for name, work in works.items():
        work()  # whatever is compiled, chosen or loaded at the first call
        began = time.perf_counter()
        work()
        counts[name] = max(1, min(MOST_CALLS, math.ceil(ROUND / (time.perf_counter() - began))))
    times = timing.in_turn({name: work.queued(counts[name]) for name, work in works.items()}, repeats)
    return {name: [value / counts[name] for value in values] for name, values in times.items()}
