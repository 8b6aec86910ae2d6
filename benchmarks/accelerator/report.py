"""The section "On accelerators" of docs/speed.md, from the lines of `python -m benchmarks.accelerator` alone.

python -m benchmarks.accelerator.report [FILE]      # default: benchmarks/results/accelerator.jsonl
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lines
from benchmarks.accelerator.common import ROOT

PAGE = ROOT / "docs" / "speed.md"
LINES = ROOT / "benchmarks" / "results" / "accelerator.jsonl"
BEGIN, END = "<!-- accelerators: begin -->", "<!-- accelerators: end -->"
NOT_YET = "not measured yet"
INTRODUCTION = """## On accelerators

One command for a machine with a GPU or TPU, which needs no network and writes each line as soon as it is known
(`--help` says what, and what of it can be had alone; `--rehearse` runs the same at tiny sizes on a CPU):

    python -m benchmarks.accelerator --out DIR --minutes 9

Photos and weights are looked for in `C2F_CUB_DIR` and `C2F_WEIGHTS_DIR`. Copied to `benchmarks/results/`, its
`accelerator.jsonl` becomes the tables below by `python -m benchmarks.accelerator.report`, and `ablation_224.jsonl`
becomes `docs/results_224.md` by `python -m benchmarks.ablation report --grid 224`.
"""

Record = dict[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table; a dash where nothing is known."""
    cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *(f"| {' | '.join(row)} |" for row in cells),
        "",
    ]


def figures_of(records: Sequence[Record], section: str) -> list[Record]:
    """The section's figures, of equals the last: a unit that was begun twice is told twice."""
    last = {}
    for record in records:
        if record["section"] == section and record["kind"] == "figure":
            key = (record["unit"], record["case"], record.get("implementation"), record.get("seed"))
            last.pop(key, None)
            last[key] = record
    return list(last.values())


def section_lines(records: Sequence[Record]) -> list[str]:
    """The whole section.

    Raises:
        ValueError: for lines of a rehearsal, which are no figures, and for lines of several machines.
    """
    machines = [record for record in records if record["kind"] == "machine"]
    if any(record["rehearsal"] for record in machines):
        raise ValueError("these are lines of a rehearsal: no figure of theirs is one of an accelerator")
    if len({machine["device"] for machine in machines}) > 1:
        raise ValueError("these are lines of several devices; give one file for each")
    page = [*INTRODUCTION.splitlines(), "", *(of_machine(machines[-1]) if machines else [])]
    for title, write, section in (
        ("Correct", of_correct, "correct"),
        ("Crop", of_crop, "crop"),
        ("Step", of_step, "step"),
        ("Training", of_train, "train"),
    ):
        found = figures_of(records, section)
        page += [f"### {title}", "", *(write(found) if found else [f"{NOT_YET.capitalize()}.", ""])]
    return page


def of_machine(machine: Record) -> list[str]:
    """What it is and its ceilings."""

    def rate(name: str, unit: str) -> str:
        return f"{machine[name] / 1e12:.3g} {unit}" if name in machine else NOT_YET

    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return [
        f"{machine['device_count']} x {machine['device']}, driver {machine['driver']}; {versions}. A large copy moves "
        f"{rate('copy_bytes_per_second', 'TB/s')}, read and written; a large bfloat16 product runs at "
        f"{rate('bf16_operations_per_second', 'TFLOP/s')}.",
        "",
    ]


def of_correct(found: Sequence[Record]) -> list[str]:
    """Every comparison by its largest error as a share of what is tolerated; failures by name."""
    rows, failed = [], [record["case"] for record in found if record.get("passed") is False]
    for record in found:
        if "tolerances" in record:
            errors = record["errors"]
            told = ", ".join(f"{name} {errors[name]} ({limit:g})" for name, limit in record["tolerances"].items())
            rows.append([record["case"], told, "yes" if record["passed"] else "**no**"])
        else:
            told = ", ".join(f"{name}: {said}" for name, said in record.get("failed", {}).items())
            rows.append([record["case"], told or None, "yes" if record["passed"] else "**no**"])
    summary = f"{len(found) - len(failed)} of {len(found)} comparisons with float64 on the host's CPU passed. Relative "
    summary += "errors, in brackets what is tolerated."
    return [summary, "", *table(["comparison", "errors", "passed"], rows)]


def of_crop(found: Sequence[Record]) -> list[str]:
    """A row for each case and mode, a column for each implementation."""
    names = list(dict.fromkeys(r["implementation"] for r in found))
    rows: dict[tuple[str, str], Record] = {}
    for r in found:
        over = f" ({r['over_floor']:g})" if r.get("over_floor") else ""
        cell = f"{r['milliseconds']:g}{over}" if "milliseconds" in r else r.get("error")
        rows.setdefault((r["case"], r["mode"]), {"floor": r.get("floor_ms")})[r["implementation"]] = cell
    cells = [[*key, row["floor"], *(row.get(name) for name in names)] for key, row in rows.items()]
    text = (
        f"Batches of {found[0]['batch']}, milliseconds; in brackets times the floor (fewest bytes, at the copy's rate)."
    )
    return [text, "", *table(["case", "mode", "floor", *names], cells)]


def of_step(found: Sequence[Record]) -> list[str]:
    """Images a second, shares, memory; and what the host hands on."""
    steps = [r for r in found if "implementation" in r]
    rows = [
        [
            r["case"],
            r["batch"],
            r["implementation"],
            r.get("images_per_second", r.get("error")),
            r.get("speed"),
            r.get("share_of_peak"),
            r.get("peak_mib"),
            r.get("compile_seconds"),
        ]
        for r in steps
    ]
    header = ["step", "batch", "by", "images/s", "speed", "share of peak", "peak, MiB", "compile, s"]
    hosts = [
        f"{r['case']}: {r.get('images_per_second', r.get('error'))}"
        + (f" images/s of {r['raw_size']} px on {r['host_cores']} cores" if "raw_size" in r else "")
        for r in found
        if "implementation" not in r
    ]
    text = "`speed` is PyTorch's time over this one's; the share of peak counts XLA's operations of our program."
    return [text, "", *table(header, rows), *(f"{told}." for told in hosts), *([""] if hosts else [])]


def of_train(found: Sequence[Record]) -> list[str]:
    """Top-1 of what was trained; intervals and readings are the report's of the grid."""
    names = ("coarse", "fine", "fused")
    rows = [
        [
            r["case"],
            r.get("seed"),
            *(r.get(f"{name}/top_1_accuracy") for name in names),
            r.get("seconds", r.get("error")),
        ]
        for r in found
    ]
    return ["Readings are in `docs/results_224.md`.", "", *table(["row", "seed", *names, "seconds"], rows)]


def replaced(page: str, section: Sequence[str]) -> str:
    """The page with another text between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n" + "\n".join(section).rstrip() + f"\n{END}{after}"


def main(argv: Sequence[str]) -> None:
    """Writes the page."""
    path = Path(argv[0]) if argv else LINES
    if argv and not path.is_file():
        sys.exit(f"benchmarks.accelerator.report: there is no file {path}")
    try:
        section = section_lines(lines.read(path))
    except ValueError as error:
        sys.exit(f"benchmarks.accelerator.report: {path}: {error}")
    PAGE.write_text(replaced(PAGE.read_text(), section))


if __name__ == "__main__":
    main(sys.argv[1:])
