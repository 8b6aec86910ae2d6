"""Runs the units of one section in a process of its own, which may die without taking the other sections along."""

import ctypes
import dataclasses
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from typing import Any

from benchmarks import lines
from benchmarks.accelerator.common import Setting, one_line

ALONE = ("step", "train")  # a process for each unit: its peak of memory is its own, and nothing is left behind


def die_with_parent() -> None:
    """Whoever kills the program means this process, too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def over(records: list[dict[str, Any]], section: str, command: str) -> set[str]:
    """The section's units that need no further try: done, or tried in this command."""
    ends = (r for r in records if r["section"] == section and r["kind"] == "end")
    return {r["unit"] for r in ends if r["status"] == "done" or r["command"] == command}


def end_line(setting: Setting, unit: str, status: str, **details: Any) -> None:
    """That a unit is over: "done", "failed", "died" or "stopped"."""
    record = {"kind": "end", "section": setting.section, "unit": unit, "command": setting.command, "status": status}
    lines.append(setting.path, {**record, **details})
    if status != "done":
        print(f"  {setting.section}/{unit} {status}: {details.get('error', '')}", flush=True)


def jax_deprecations(caught: list[warnings.WarningMessage]) -> list[str]:
    """What jax says will go, each once, with the line that asked for it."""
    said = {
        f"{warning.filename.split('site-packages/')[-1]}:{warning.lineno}: {str(warning.message).splitlines()[0][:200]}"
        for warning in caught
        if issubclass(warning.category, DeprecationWarning | FutureWarning)
        and ("jax" in str(warning.message).lower() or f"{os.sep}jax{os.sep}" in warning.filename)
    }
    return sorted(said)


def run_unit(setting: Setting, name: str, unit: Any) -> None:
    """Its lines as they come, and how it ended."""
    began, details, status, differing = time.perf_counter(), {}, "done", []
    print(f"{setting.section}/{name}", flush=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            for line in unit():
                head = {"kind": "figure", "section": setting.section, "unit": name, "command": setting.command}
                lines.append(setting.path, {**head, "rehearsal": setting.rehearse, **line})
                print("  " + " ".join(f"{key}={value}" for key, value in line.items())[:300], flush=True)
                differing += [line["case"]] if line.get("passed") is False else []
        except Exception as error:
            traceback.print_exc()
            status, details = "failed", {"error": one_line(error)}
    if differing and status == "done":
        status, details = "failed", {"error": f"more than tolerated: {'; '.join(differing)}"}
    deprecated = jax_deprecations(caught)
    if deprecated:
        details["deprecations"] = deprecated
    end_line(setting, name, status, seconds=round(time.perf_counter() - began, 1), **details)


def as_argument(setting: Setting) -> str:
    """What `main` reads."""
    return json.dumps(dataclasses.asdict(setting))


def main(argv: list[str]) -> None:
    """argv: the setting as JSON."""
    die_with_parent()
    given = json.loads(argv[0])
    setting = Setting(**{**given, "only": tuple(given["only"])})
    module = importlib.import_module(f"benchmarks.accelerator.{setting.section}")
    chosen = {name: unit for name, unit in module.units(setting).items() if setting.wants(name)}
    # Told before any of them is begun, so that it is known which one a dead worker was at.
    plan = {"kind": "plan", "section": setting.section, "command": setting.command, "units": list(chosen)}
    lines.append(setting.path, plan)
    past = over(lines.read(setting.path), setting.section, setting.command)
    for name in (name for name in chosen if name not in past):
        if time.time() >= setting.deadline:
            return
        run_unit(setting, name, chosen[name])
        if setting.section in ALONE:
            return
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
