"""Kills a small run at every kind of moment, by every signal, and compares what it ends with. JSON lines.

    python -m benchmarks.chaos [--single 32] [--several 10] [--seed 0]

An uninterrupted run comes first. Then runs that are killed again and again: each line is one kill, with its signal, the
moment it was meant for, the step reached, the step gone on from, and the seconds from the next start to the first new
step. A run of two processes (with two CPU devices each, over loopback) is killed by its first or its second one alone.
In the end parameters, statistics and optimiser state of each run are compared with the uninterrupted run's of as many
processes: `largest_difference` is 0 if all ended bit-equal. The exit code is 1 if not.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BOUNDARY, TOTAL, EVALUATED = 10, 20, (5, 10, 15, 20)
# 10 steps of 8 images in each stage, on 32 px views.
SETTINGS = (
    "--config.dataset.train_size=89",
    "--config.dataset.test_size=200",
    "--config.model.view_size=32",
    "--config.model.num_maps=4",
    "--config.stages.coarse_epochs=1",
    "--config.stages.fine_epochs=1",
    "--config.train.batch_size=8",
    "--config.train.eval_batch_size=8",
    "--config.train.eval_every_epochs=0.5",
    "--config.train.log_every_steps=1",
    "--config.train.checkpoint_every_steps=3",
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Started:
    """A run under way: one process, or several that make one run."""

    def __init__(
        self, workdir: Path, cache: Path, *, processes: int = 1, devices: int = 1, settings: Sequence[str] = ()
    ):
        """workdir: of the run; cache: of compiled programs; devices: of each process; settings: after `SETTINGS`."""
        self.began, self.workdir = time.monotonic(), workdir
        self.known = len(events(workdir))
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "launch.py", f"--workdir={workdir}", *SETTINGS, *settings]
        cluster: list[list[str]] = [[]]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            place = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
            cluster = [[*place, f"--process={number}"] for number in range(processes)]
        self.processes = [
            subprocess.Popen(
                [*command, *flags],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for flags in cluster
        ]

    def running(self) -> bool:
        """Whether all processes are."""
        return all(process.poll() is None for process in self.processes)

    def finish(self, timeout: float = 300) -> list[tuple[int, str]]:
        """(exit code, what it said) of each process."""
        said = [process.communicate(timeout=timeout)[0] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, said, strict=True)]


def events(workdir: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def saved(workdir: Path) -> int:
    """The last complete checkpoint's step, 0 for none."""
    return max((int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((workdir / "checkpoints").glob("*tmp*"))


def evaluating(workdir: Path) -> bool:
    """Whether the last thing told is a step after which the validation part is evaluated."""
    told = events(workdir)
    return bool(told) and told[-1]["split"] == "train" and told[-1]["step"] in EVALUATED


def reached(run: Started, draw: random.Random, moment: str) -> Callable[[], bool]:
    """A test that tells whether the moment has come."""
    workdir, delay, more = run.workdir, draw.uniform(0.3, 5.0), draw.randint(1, 4)
    return {
        "start": lambda: time.monotonic() - run.began > delay,
        "training": lambda: len(events(workdir)) >= run.known + more,
        "saving": lambda: saving(workdir) and len(events(workdir)) > run.known,
        "stage switch": lambda: saved(workdir) == BOUNDARY,
        "evaluation": lambda: len(events(workdir)) > run.known and evaluating(workdir),
        "final test": lambda: saved(workdir) == TOTAL and not (workdir / "results.json").exists(),
    }[moment]


# A run goes through these in order, and is killed at each; between them it is started again.
MOMENTS = ("start", "training", "saving", "evaluation", "stage switch", "training", "saving", "final test")


def kill_often(
    workdir: Path, cache: Path, draw: random.Random, kills: int, *, processes: int, devices: int
) -> list[dict[str, Any]]:
    """Trains in `workdir` to the end, killed up to `kills` times on the way; the lines of the kills."""
    lines: list[dict[str, Any]] = []
    for moment in MOMENTS[:kills] if kills < len(MOMENTS) else MOMENTS:
        run = Started(workdir, cache, processes=processes, devices=devices)
        came, before = reached(run, draw, moment), saved(workdir)
        resumed: float | None = None
        here = False
        while run.running() and not here:
            here = came()
            if resumed is None and len(events(workdir)) > run.known:
                resumed = time.monotonic() - run.began
            time.sleep(0.001)
        number, which = draw.choice(SIGNALS), draw.randrange(processes)
        hit = run.running()
        sent = time.monotonic()
        if hit:
            # One that is lost before they have met is waited for, for minutes, so that it can be started again.
            for process in run.processes if moment == "start" else [run.processes[which]]:
                process.send_signal(number)
        ends = run.finish()
        assert not any("Traceback" in text for _, text in ends), ends
        if hit:
            expected = {-number} if number == signal.SIGKILL else {128 + number}
            if moment == "start":  # by the signal itself, while Python starts
                expected |= {-number}
            assert ends[which][0] in expected, ends
            assert all(code in {*expected, 1} for code, _ in ends), ends
        told = [event["step"] for event in events(workdir) if event["split"] == "train"]
        lines.append(
            {
                "kill": hit,
                "moment": moment,
                "signal": number.name,
                "processes": processes,
                "process": which,
                "exit": [code for code, _ in ends],
                "seconds_to_end": round(time.monotonic() - sent, 1),
                "went_on_from": before,
                "step": max(told, default=0),
                "saved": saved(workdir),
                "steps_lost": max(told, default=0) - saved(workdir),
                # Of the process that was hit, or, where that can say nothing any more, of its partner.
                "said": [text.strip().splitlines()[-1] for code, text in ends if code >= 0 and text.strip()],
                "seconds_to_first_step": round(resumed, 1) if resumed is not None else None,
            }
        )
        if not hit:  # the run was over before the moment came
            break
    return lines


def state(workdir: Path) -> list[np.ndarray]:
    """Every array of the last checkpoint."""
    sys.path.insert(0, str(ROOT))
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from c2f_jax.runs.build import build
    from c2f_jax.runs.checkpoint import latest_step, read
    from c2f_jax.runs.workdir import read_config

    run, step = build(read_config(workdir)), latest_step(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(read(workdir, step, run.abstract_state(step)))]


def largest_difference(workdir: Path, whole: Path) -> float:
    """Between two runs' last checkpoints; infinite if one has not finished."""
    if not all((folder / "results.json").exists() for folder in (workdir, whole)):
        return float("inf")
    pairs = zip(state(workdir), state(whole), strict=True)
    return max(float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0)) for a, b in pairs)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--single", type=int, default=32, help="kills of runs of one process")
    parser.add_argument("--several", type=int, default=10, help="kills of runs of two")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    folder, worst, began = Path(tempfile.mkdtemp(prefix="chaos-")), 0.0, time.monotonic()
    cache = folder / "compiled"
    for processes, devices, kills in ((1, 1, options.single), (2, 2, options.several)):
        if not kills:
            continue
        whole = folder / f"whole-{processes}"
        (first, *_) = Started(whole, cache, processes=processes, devices=devices).finish()
        assert first[0] == 0, first[1]
        done, number = 0, 0
        while done < kills:
            workdir, number = folder / f"killed-{processes}-{number}", number + 1
            lines = kill_often(workdir, cache, draw, kills - done, processes=processes, devices=devices)
            for line in lines:
                print(json.dumps(line), flush=True)
            done += sum(line["kill"] for line in lines)
            if not (workdir / "results.json").exists():
                ends = Started(workdir, cache, processes=processes, devices=devices).finish()
                assert all(code == 0 for code, _ in ends), ends
            difference = largest_difference(workdir, whole)
            worst = max(worst, difference)
            print(
                json.dumps({"run": workdir.name, "processes": processes, "largest_difference": difference}), flush=True
            )
    shutil.rmtree(folder)
    seconds = round(time.monotonic() - began)
    print(json.dumps({"kills": options.single + options.several, "largest_difference": worst, "seconds": seconds}))
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
