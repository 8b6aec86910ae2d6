"""Everything to be known of an accelerator, in one command that needs nothing but this folder of programs.

python -m benchmarks.accelerator --out DIR                        # all sections, in order of worth, for nine minutes
python -m benchmarks.accelerator --out DIR --only step train      # some of them; or some of a section:
python -m benchmarks.accelerator --out DIR --only step/resnet50 train/coarse2fine_seed0
python -m benchmarks.accelerator --out DIR --rehearse             # at tiny sizes, on a CPU: no figure of it counts

Sections: "correct" (kernels and training steps against float64 on this machine's CPU), "crop" (ways to crop, times over
the floor that bytes moved give), "step" (training steps beside PyTorch's), "train" (the grid of
`benchmarks/ablation_224.py`). Photos in CUB-200-2011's layout and EfficientNet-Lite0's weights are looked for at --data
and --weights, or where C2F_CUB_DIR and C2F_WEIGHTS_DIR say; without them what needs them says so.

DIR gets `accelerator.jsonl`, each line on the disk before the next is begun, `ablation_224.jsonl` with the trained
rows' lines, and `log.txt`. A command that finds lines of the same programs and the same device in DIR goes on: units
that are done there are not run again. It refuses a DIR with lines of others. Trained rows go on from their last
checkpoint below --runs, and those in `benchmarks/results/ablation_224.jsonl` are not trained again.

Once --minutes are used nothing more is begun, which a line says; what is still running 40 s later is stopped. The exit
code is 1 where a comparison or a unit failed, 2 where the command cannot be carried out.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lines
from benchmarks.accelerator.common import ROOT, Setting, source_digest
from benchmarks.accelerator.worker import as_argument, end_line, over

SECTIONS = ("correct", "crop", "step", "train")
GRACE = 40.0  # seconds beyond the budget for what is already running
WEIGHTS = "efficientnet_lite0_imagenet.safetensors"


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the lines")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing once they are used (default: 9)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="sections, or beginnings of section/unit")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, for a machine without an accelerator")
    parser.add_argument("--data", default=os.environ.get("C2F_CUB_DIR", ""), help="photos, default: C2F_CUB_DIR")
    folder = os.environ.get("C2F_WEIGHTS_DIR", "")
    weights = str(Path(folder) / WEIGHTS) if folder else ""
    parser.add_argument("--weights", default=weights, help=f"default: {WEIGHTS} in C2F_WEIGHTS_DIR")
    parser.add_argument("--runs", type=Path, help="folder for the checkpoints of trained rows (default: DIR.runs)")
    options = parser.parse_args(argv)
    for name in options.only:
        if name.split("/")[0] not in SECTIONS:
            parser.error(f"--only: {name} begins with no section; there are {', '.join(SECTIONS)}")
    return options


def environment() -> dict[str, str]:
    """Of the workers: memory taken as it is needed, since PyTorch wants some, and a CPU to compare with."""
    chosen = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1", **os.environ}
    platforms = chosen.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        chosen["JAX_PLATFORMS"] = f"{platforms},cpu"
    return chosen


def last_words(log: Path) -> str:
    """The end of what a worker said."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return (said or ["nothing said"])[-1][:400]


def run_worker(setting: Setting, log: Path) -> int | None:
    """Its exit code; None if it had to be stopped."""
    command = [sys.executable, "-m", "benchmarks.accelerator.worker", as_argument(setting)]
    with log.open("a") as file:
        worker = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=file)
        try:
            return worker.wait(timeout=max(1.0, setting.deadline + GRACE - time.time()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            worker.kill()
            worker.wait()


def run_section(setting: Setting, log: Path) -> None:
    """All of its units, by as many workers as it takes."""
    while True:
        if time.time() >= setting.deadline:
            leave_out(setting)
            return
        before = len(lines.read(setting.path))
        code = run_worker(setting, log)
        left = pending(setting)
        if code != 0 and left != []:
            unit = "(all)" if left is None else left[0]
            if code is None:
                end_line(setting, unit, "stopped", error=f"still running {GRACE:g} s after the budget was used")
            else:
                end_line(setting, unit, "died", error=f"exit code {code}: {last_words(log)}")
        if left is None:
            return
        if not pending(setting) or len(lines.read(setting.path)) == before:
            return


def leave_out(setting: Setting) -> None:
    """Says in a line what was not begun."""
    left = pending(setting)
    if left != []:
        told, units = "the budget of minutes is used", "all" if left is None else left
        record = {"kind": "left out", "section": setting.section, "command": setting.command}
        lines.append(setting.path, {**record, "units": units, "why": told})
        print(f"{setting.section}: not begun: {'all' if left is None else ', '.join(left)}; {told}", flush=True)


def pending(setting: Setting) -> list[str] | None:
    """The section's units that are not over; None before a worker has told which there are."""
    records = lines.read(setting.path)
    plans = [r for r in records if r["kind"] == "plan" and r["section"] == setting.section]
    plans = [r for r in plans if r["command"] == setting.command]
    if not plans:
        return None
    past = over(records, setting.section, setting.command)
    return [unit for unit in plans[-1]["units"] if unit not in past]


def refusal(machines: Sequence[dict[str, Any]]) -> str | None:
    """Why lines of the last of these machines do not belong to those of the first; None where they do."""
    first, last = machines[0], machines[-1]
    for name, called in (("rehearsal", "sizes"), ("device", "device"), ("source", "programs")):
        if first[name] != last[name]:
            return f"it holds lines of other {called} ({name} {first[name]!r}, now {last[name]!r})"
    return None


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    options = options_of(argv)
    began = time.time()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    log, file = out / "log.txt", out / "accelerator.jsonl"
    runs = (options.runs or out.with_name(f"{out.name}.runs")).resolve()
    setting = Setting(
        section="machine",
        command=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        file=str(file),
        deadline=began + 60.0 * options.minutes,
        rehearse=options.rehearse,
        only=tuple(options.only),
        data=str(Path(options.data).resolve()) if options.data else "",
        weights=str(Path(options.weights).resolve()) if options.weights else "",
        runs=str(runs),
    )
    probe = dataclasses.replace(setting, file=str(out / "machine.jsonl"), only=())
    probe.path.unlink(missing_ok=True)
    print(f"{setting.command}: {file}", flush=True)
    run_section(probe, log)
    found = [record for record in lines.read(probe.path) if record["kind"] == "figure"]
    probe.path.unlink(missing_ok=True)
    if not found:
        return fail(f"jax does not find its device: {last_words(log)}")
    machine = {**found[0], "kind": "machine", "source": source_digest(), "minutes": options.minutes}
    if machine["platform"] == "cpu" and not options.rehearse:
        return fail("jax finds no accelerator here; --rehearse runs everything at tiny sizes on a CPU")
    earlier = [record for record in lines.read(file) if record["kind"] == "machine"]
    why = refusal([*earlier, machine])
    if why is not None:
        return fail(f"{out} cannot be gone on with: {why}; give another --out")
    lines.append(file, machine)
    setting = dataclasses.replace(
        setting,
        copy_rate=machine.get("copy_bytes_per_second", 0.0),
        product_rate=machine.get("bf16_operations_per_second", 0.0),
    )
    for section in SECTIONS:
        if not options.only or any(name.split("/")[0] == section for name in options.only):
            run_section(dataclasses.replace(setting, section=section), log)
    return tell(lines.read(file), setting.command, time.time() - began)


def fail(message: str) -> int:
    """Tells it in one line; the exit code of a command that cannot be carried out."""
    print(f"benchmarks.accelerator: {message}", file=sys.stderr)
    return 2


def tell(records: Sequence[dict[str, Any]], command: str, seconds: float) -> int:
    """Seconds and lines of each section, what failed, and the exit code."""
    mine = [record for record in records if record["command"] == command]
    failed = [
        f"{r['section']}/{r['unit']}: {r.get('error', '')}" for r in mine if r.get("status") in ("failed", "died")
    ]
    for section in SECTIONS:
        ends = [r for r in mine if r["section"] == section and r["kind"] == "end"]
        figures = sum(r["section"] == section and r["kind"] == "figure" for r in mine)
        if ends:
            took = sum(r.get("seconds", 0.0) for r in ends)
            print(f"{section}: {figures} figures, {len(ends)} units, {took:.0f} s")
    for line in failed:
        print(f"FAILED {line}")
    print(json.dumps({"seconds": round(seconds), "lines": len(mine), "failed": len(failed)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
