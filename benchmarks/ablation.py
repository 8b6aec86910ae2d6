"""Does the second look pay? Trains a declared grid of runs, one JSON line each, and writes docs/results.md from them.

python -m benchmarks.ablation run --data DIR --weights FILE --runs DIR       # goes on where it stopped
python -m benchmarks.ablation run ... --only attention coarse2fine_none --seeds 0 1
python -m benchmarks.ablation run --grid 224 ...      # the second grid, for an accelerator (benchmarks.accelerator)
python -m benchmarks.ablation report [--grid 224]

DIR and FILE as for `configs/cub50_lite0.py`, which every row of the grid starts from. `run` takes all rows at the first
seed, then all at the next; each is trained in a process of its own, whose output goes to a `.log` beside its workdir
below --runs, and measured on the test part under its own region and others (`ablation_row.py`). Rows that are in
`benchmarks/results/ablation.jsonl` are not run again; the second grid has `ablation_224.jsonl` and `results_224.md`.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import lines
from benchmarks.ablation_224 import GRID_224
from benchmarks.ablation_grid import GRID, Row
from benchmarks.ablation_report import read_records, write_report
from c2f_jax.cli import keep_compiled
from c2f_jax.memory import restart_with_huge_pages
from configs import cub50_lite0

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
GRIDS = {"128": GRID, "224": GRID_224}


def config_of(row: Row, seed: int, *, data: str, weights: str) -> Any:
    """The row's config; a field that does not exist is an error."""
    config = cub50_lite0.get_config()
    config.lock()
    config.update_from_flattened_dict({**row.overrides, "seed": seed})
    config.update_from_flattened_dict({"dataset.path": data, "model.pretrained": weights})
    return config


def run(rows: Sequence[Row], seeds: Sequence[int] | None, results: Path, start: Callable[[Row, int], None]) -> None:
    """Calls `start` for every row and seed that `results` lacks, seed by seed; seeds: None for each row's own."""
    for seed in sorted({seed for row in rows for seed in row.seeds}):
        for row in rows:
            # Read each time: another process may have taken some of the rows.
            wanted = seed in row.seeds and (seeds is None or seed in seeds)
            if wanted and (row.name, seed) not in read_records(results):
                start(row, seed)


def start_process(row: Row, seed: int, *, data: str, weights: str, runs: Path) -> None:
    """Trains and measures in a process of its own, so that its memory is released; tells the outcome in one line."""
    runs.mkdir(parents=True, exist_ok=True)
    name = f"{row.name}, seed {seed}"
    log = runs / f"{row.name}-seed{seed}.log"
    command = [sys.executable, "-m", "benchmarks.ablation", "row", row.name, str(seed)]
    command += ["--data", data, "--weights", weights, "--runs", str(runs)]
    print(f"{name}: {log}", flush=True)
    with log.open("a") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = ([said for said in log.read_text(errors="replace").splitlines() if said.strip()] or ["nothing said"])[-1]
        print(f"{name}: failed with exit code {done.returncode}: {last}", flush=True)


def run_row(row: Row, seed: int, *, data: str, weights: str, runs: Path, results: Path) -> dict[str, Any]:
    """Trains and measures, and appends the line, which is returned, to `results`."""
    # Imported late: the process that only waits for others need not hold JAX.
    from benchmarks.ablation_row import train_and_measure

    config = config_of(row, seed, data=data, weights=weights)
    keep_compiled(config.compilation_cache)
    measured = train_and_measure(config, runs / f"{row.name}-seed{seed}", root=ROOT)
    record = {"name": row.name, "seed": seed, "overrides": row.overrides, **measured}
    lines.append(results, record)
    return record


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="write a grid's report and its plots below docs/")
    rows = {row.name: (row, grid) for grid in GRIDS.values() for row in grid.rows}
    several, one = commands.add_parser("run", help="train what is missing"), commands.add_parser("row", help="one row")
    for command in (report, several):
        command.add_argument("--grid", choices=GRIDS, default="128", help="pixels of its views (default: 128)")
    for command in (several, one):
        command.add_argument("--data", required=True, help="folder or archive in CUB-200-2011's layout")
        command.add_argument("--weights", required=True, help="ImageNet weights of EfficientNet-Lite0, safetensors")
        command.add_argument("--runs", required=True, type=Path, help="folder for the runs' workdirs")
    several.add_argument("--only", nargs="+", choices=rows, metavar="NAME", help="only these rows of the grid")
    several.add_argument("--seeds", nargs="+", type=int, help="only these of the rows' seeds")
    one.add_argument("name", choices=rows)
    one.add_argument("seed", type=int)
    options = parser.parse_args(argv)

    if options.command == "report":
        grid = GRIDS[options.grid]
        names = [row.name for row in grid.rows]
        flag = "" if grid is GRID else f" --grid {options.grid}"
        files = {"stem": grid.stem, "lines": grid.lines, "flag": flag}
        write_report(read_records(RESULTS / grid.lines), names, grid.contrasts, DOCS, **files)
        return
    # Absolute: rows are trained from the root of the repository.
    places = {
        "data": str(Path(options.data).resolve()),
        "weights": str(Path(options.weights).resolve()),
        "runs": options.runs.resolve(),
    }
    if options.command == "row":
        row, grid = rows[options.name]
        run_row(row, options.seed, results=RESULTS / grid.lines, **places)
    else:
        grid = GRIDS[options.grid]
        wanted = [row for row in grid.rows if options.only is None or row.name in options.only]
        run(wanted, options.seeds, RESULTS / grid.lines, lambda row, seed: start_process(row, seed, **places))


if __name__ == "__main__":
    restart_with_huge_pages()
    main(sys.argv[1:])
