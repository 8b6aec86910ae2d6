"""Does the second look pay? Trains a declared grid of runs, one JSON line each, and writes docs/results.md from them.

python -m benchmarks.ablation run --data DIR --weights FILE --runs DIR       # goes on where it stopped
python -m benchmarks.ablation run ... --only attention coarse2fine_none --seeds 0 1
python -m benchmarks.ablation report

DIR and FILE as for `configs/cub50_lite0.py`, which every row of the grid starts from. `run` takes all rows at the first
seed, then all at the next; each is trained in a process of its own, whose output goes to a `.log` beside its workdir
below --runs, and measured on the test part under two regions: its own, and the best fixed central box. Rows that are in
`benchmarks/results/ablation.jsonl` are not run again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ablation_report import Contrast, Shown, read_records, write_report
from c2f_jax.cli import keep_compiled
from c2f_jax.memory import restart_with_huge_pages
from configs import cub50_lite0

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ablation.jsonl"
DOCS = ROOT / "docs"

CONTRASTED = (0, 1, 2, 3, 4)  # seeds that a claimed contrast needs

# What the grid began with. Every row says it, so that a row means the same whatever the shipped config says later.
_BASE: dict[str, Any] = {
    "region.floor": 0.0,
    "region.kappa": 2.0,
    "loss.drop_view": False,
    "stages.coarse_epochs": 4.0,
    "stages.fine_epochs": 8.0,
}
_ONE_LOOK: dict[str, Any] = {"method": "attention", "stages.coarse_epochs": 12.0}
_WSDAN: dict[str, Any] = {"method": "wsdan", "stages.coarse_epochs": 12.0}
# As many views as WS-DAN's, of the same kinds but for the second look's region.
_DROP: dict[str, Any] = {"loss.drop_view": True, "stages.coarse_epochs": 0.0, "stages.fine_epochs": 12.0}
# What is fainter than a tenth of the maximum is no region; on two networks trained without, kappa by the fused loss on
# the validation part, of 2.2, 2.6 and 3.
_FLOOR: dict[str, Any] = {"region.floor": 0.1, "region.kappa": 2.6}
# Maps of 4 x 4 cells spread wider: with kappa 2 the second view is no closer than the first.
_SMALL: dict[str, Any] = {"model.view_size": 64, "region.kappa": 1.6}


class Row(NamedTuple):
    """A run per seed: `configs/cub50_lite0.py` with `_BASE` and, over it, `changes`."""

    name: str
    changes: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def overrides(self) -> dict[str, Any]:
        """All that is set in the config."""
        return {**_BASE, **self.changes}


# The most important first. What neither says is the config's: coarse2fine, box_gradient none, 16 maps.
GRID = [
    Row("coarse2fine_none", {}, CONTRASTED),
    Row("attention", _ONE_LOOK, CONTRASTED),
    Row("random_box", {"method": "random_box"}, CONTRASTED),
    # About twice the work per view of 128 px: what the second look costs, spent on the first.
    Row("attention_wide", {**_ONE_LOOK, "model.view_size": 176}, CONTRASTED),
    Row("wsdan", _WSDAN, CONTRASTED),
    Row("coarse2fine_drop", _DROP, CONTRASTED),
    Row("coarse2fine_drop_floor", {**_DROP, **_FLOOR}, CONTRASTED),
    Row("wsdan_floor", {**_WSDAN, **_FLOOR}, CONTRASTED),  # trained as `wsdan`, tested with our box too
    Row("attention_floor", {**_ONE_LOOK, **_FLOOR}, CONTRASTED),  # trained as `attention`, tested with the other box
    Row("coarse2fine_floor", _FLOOR, CONTRASTED),
    # What of it is the region's, what the drop views': the same at random boxes; as many views without drop views.
    Row("random_box_drop_floor", {"method": "random_box", **_DROP, **_FLOOR}, CONTRASTED),
    Row("coarse2fine_floor_18", {"stages.coarse_epochs": 0.0, "stages.fine_epochs": 18.0, **_FLOOR}, CONTRASTED),
    # As many training views as 12 x 3 epochs of two looks and a drop view, or of WS-DAN.
    Row("attention_floor_36", {**_ONE_LOOK, "stages.coarse_epochs": 36.0, **_FLOOR}, CONTRASTED),
    Row("coarse2fine_mapping", {"region.box_gradient": "mapping"}, CONTRASTED),
    Row("coarse2fine_all", {"region.box_gradient": "all"}, CONTRASTED),
    # Views of one scale, as WS-DAN has them: how much of a second look's training is scale augmentation.
    *(
        Row(f"{name}_0875", {**overrides, "augment.min_side": 0.875, "augment.max_side": 0.875}, CONTRASTED)
        for name, overrides in (("attention", _ONE_LOOK), ("coarse2fine", {}))
    ),
    # Views a quarter as long as the photos, as 448 px are to a camera's: more detail for a second look to add.
    *(
        Row(f"{name}_64", {**overrides, **_SMALL}, CONTRASTED)
        for name, overrides in (
            ("coarse2fine", {}),
            ("attention", _ONE_LOOK),
            ("random_box", {"method": "random_box"}),
            ("wsdan", _WSDAN),
            ("coarse2fine_drop", _DROP),
            ("random_box_drop", {"method": "random_box", **_DROP}),
        )
    ),
    # As many training views as 4 + 2 x 8 epochs of two looks.
    Row("attention_64_20", {**_ONE_LOOK, "stages.coarse_epochs": 20.0, **_SMALL}, CONTRASTED),
    # As many as 12 x 3 epochs with drop views, or WS-DAN's.
    Row("attention_64_36", {**_ONE_LOOK, "stages.coarse_epochs": 36.0, **_SMALL}, CONTRASTED),
    # No coarse stage, so no second start of the learning rate; as many views as attention_64_36.
    Row("coarse2fine_64_0_18", {"stages.coarse_epochs": 0.0, "stages.fine_epochs": 18.0, **_SMALL}, CONTRASTED),
    # Sixty views: when one look has learned all it can.
    Row("coarse2fine_drop_64_20", {**_DROP, "stages.fine_epochs": 20.0, **_SMALL}, CONTRASTED),
    Row("wsdan_64_20", {**_WSDAN, "stages.coarse_epochs": 20.0, **_SMALL}, CONTRASTED),
    Row("coarse2fine_64_40", {"stages.coarse_epochs": 20.0, "stages.fine_epochs": 20.0, **_SMALL}, CONTRASTED),
    Row("attention_64_60", {**_ONE_LOOK, "stages.coarse_epochs": 60.0, **_SMALL}, CONTRASTED),
    Row("attention_64_lecun", {**_ONE_LOOK, "model.attention_init": "lecun_normal", **_SMALL}, CONTRASTED),
    Row("coarse2fine_64_mapping", {"region.box_gradient": "mapping", **_SMALL}, CONTRASTED),
    Row("coarse2fine_64_all", {"region.box_gradient": "all", **_SMALL}, CONTRASTED),
    Row("attention_96", {**_ONE_LOOK, "model.view_size": 96}, CONTRASTED),  # a little more work than two of 64 px
    # Equal seconds: about as many views as the 4 + 2 x 8 of two looks.
    Row("attention_24", {**_ONE_LOOK, "stages.coarse_epochs": 24.0}),
    # Twice the schedule, for which one look may no longer be enough to learn from.
    Row("coarse2fine_24", {"stages.coarse_epochs": 8.0, "stages.fine_epochs": 16.0}),
    *(
        Row(
            name,
            {
                "method": "baseline",
                "model.output_stride": stride,
                "optimizer.head_factor": 10.0,
                "optimizer.clip_norm": 0.0,
                "stages.coarse_epochs": 20.0,
                "augment.min_side": 0.875,
                "augment.max_side": 0.875,
            },
        )
        for name, stride in (("baseline", 32), ("baseline_s16", 16))
    ),
    # One change each to coarse2fine_none.
    Row("lecun_normal", {"model.attention_init": "lecun_normal"}),
    Row("no_center_loss", {"loss.center_weight": 0.0}),
    Row("raw_128", {"dataset.raw_size": 128}),
    Row("epochs_2_10", {"stages.coarse_epochs": 2.0, "stages.fine_epochs": 10.0}),
    Row("maps_8", {"model.num_maps": 8}),
    Row("maps_32", {"model.num_maps": 32}),
    Row("kappa_1.73", {"region.kappa": 1.73}),
    Row("channels_64", {"model.feature_channels": 64}),
]


def _fused(row: str, region: str = "own") -> Shown:
    return Shown(row, region, "fused")


_OURS = _fused("coarse2fine_none")
CONTRASTS = [
    Contrast("(a) one look trained, second look through its untrained box", _OURS, _fused("attention")),
    Contrast("(b) one look trained, second look at a fixed central box", _OURS, _fused("attention", "central")),
    Contrast("(c) one look at a wide view, about the same work", _OURS, Shown("attention_wide", "own", "coarse")),
    Contrast("(d) two looks trained at random boxes", _OURS, _fused("random_box")),
    Contrast("WS-DAN's three views", _OURS, _fused("wsdan")),
    Contrast("as many views as WS-DAN's", _fused("coarse2fine_drop"), _fused("wsdan")),
    Contrast(
        "(a) with drop views and a floor, equal epochs", _fused("coarse2fine_drop_floor"), _fused("attention_floor")
    ),
    Contrast("(a) the same, equal views", _fused("coarse2fine_drop_floor"), _fused("attention_floor_36")),
    Contrast("WS-DAN, before it was shown our box", _fused("coarse2fine_drop_floor"), _fused("wsdan")),
    Contrast("WS-DAN, against drop views and a floor", _fused("coarse2fine_drop_floor"), _fused("wsdan_floor")),
    Contrast(
        "the same, both looking where Coarse2Fine does",
        _fused("coarse2fine_drop_floor"),
        _fused("wsdan_floor", "attention"),
    ),
    Contrast(
        "the same, both looking at the bird's annotated box",
        _fused("coarse2fine_drop_floor", "object"),
        _fused("wsdan_floor", "object"),
    ),
    Contrast("(d) with drop views and a floor", _fused("coarse2fine_drop_floor"), _fused("random_box_drop_floor")),
    Contrast("as many views without drop views", _fused("coarse2fine_drop_floor"), _fused("coarse2fine_floor_18")),
    Contrast(
        "(c) with drop views and a floor", _fused("coarse2fine_drop_floor"), Shown("attention_wide", "own", "coarse")
    ),
    Contrast("a floor, without drop views", _fused("coarse2fine_floor"), _OURS),
    Contrast("a floor, with drop views", _fused("coarse2fine_drop_floor"), _fused("coarse2fine_drop")),
    Contrast("a perfect second box in tests", _fused("coarse2fine_none", "object"), _OURS),
    Contrast("box gradient mapping, against none", _fused("coarse2fine_mapping"), _OURS),
    Contrast("box gradient all, against none", _fused("coarse2fine_all"), _OURS),
    Contrast("views of one scale: two looks trained, or one", _fused("coarse2fine_0875"), _fused("attention_0875")),
    Contrast("64 px: two looks trained, or one", _fused("coarse2fine_64"), _fused("attention_64")),
    Contrast("64 px: two looks, or one for as many views", _fused("coarse2fine_64"), _fused("attention_64_20")),
    Contrast("64 px: the same, without a coarse stage", _fused("coarse2fine_64_0_18"), _fused("attention_64_36")),
    Contrast("64 px, sixty views: two looks, or one", _fused("coarse2fine_64_40"), _fused("attention_64_60")),
    Contrast("64 px, sixty: with drop views, or one look", _fused("coarse2fine_drop_64_20"), _fused("attention_64_60")),
    Contrast("64 px, sixty: with drop views, or WS-DAN", _fused("coarse2fine_drop_64_20"), _fused("wsdan_64_20")),
    Contrast("64 px: the attention's boxes, or random ones", _fused("coarse2fine_64"), _fused("random_box_64")),
    Contrast("64 px: two looks, or WS-DAN's three views", _fused("coarse2fine_64"), _fused("wsdan_64")),
    Contrast(
        "64 px, with drop views: the learned region, or WS-DAN's crops",
        _fused("coarse2fine_drop_64"),
        _fused("wsdan_64"),
    ),
    Contrast(
        "64 px, with drop views, or one look for as many views",
        _fused("coarse2fine_drop_64"),
        _fused("attention_64_36"),
    ),
    Contrast(
        "64 px, with drop views: the learned region, or random boxes",
        _fused("coarse2fine_drop_64"),
        _fused("random_box_drop_64"),
    ),
    Contrast("64 px: one look, orthogonal or LeCun normal", _fused("attention_64"), _fused("attention_64_lecun")),
    Contrast("64 px: box gradient all, against none", _fused("coarse2fine_64_all"), _fused("coarse2fine_64")),
    Contrast("two looks of 64 px, or one of 96 px", _fused("coarse2fine_64"), Shown("attention_96", "own", "coarse")),
]


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
        last = ([line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["nothing said"])[-1]
        print(f"{name}: failed with exit code {done.returncode}: {last}", flush=True)


def run_row(row: Row, seed: int, *, data: str, weights: str, runs: Path, results: Path) -> None:
    """Trains and measures, and appends the line to `results`."""
    # Imported late: the process that only waits for others need not hold JAX.
    from benchmarks.ablation_row import train_and_measure

    config = config_of(row, seed, data=data, weights=weights)
    keep_compiled(config.compilation_cache)
    measured = train_and_measure(config, runs / f"{row.name}-seed{seed}", root=ROOT)
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps({"name": row.name, "seed": seed, "overrides": row.overrides, **measured}) + "\n")


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report", help="write docs/results.md and its plots")
    names = [row.name for row in GRID]
    grid, one = commands.add_parser("run", help="train what is missing"), commands.add_parser("row", help="one of them")
    for command in (grid, one):
        command.add_argument("--data", required=True, help="folder or archive in CUB-200-2011's layout")
        command.add_argument("--weights", required=True, help="ImageNet weights of EfficientNet-Lite0, safetensors")
        command.add_argument("--runs", required=True, type=Path, help="folder for the runs' workdirs")
    grid.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names, help="only these rows")
    grid.add_argument("--seeds", nargs="+", type=int, help="only these of the rows' seeds")
    one.add_argument("name", choices=names)
    one.add_argument("seed", type=int)
    options = parser.parse_args(argv)

    if options.command == "report":
        write_report(read_records(RESULTS), [row.name for row in GRID], CONTRASTS, DOCS)
        return
    # Absolute: rows are trained from the root of the repository.
    places = {
        "data": str(Path(options.data).resolve()),
        "weights": str(Path(options.weights).resolve()),
        "runs": options.runs.resolve(),
    }
    if options.command == "row":
        (row,) = (row for row in GRID if row.name == options.name)
        run_row(row, options.seed, results=RESULTS, **places)
    else:
        rows = [row for row in GRID if row.name in options.only]
        run(rows, options.seeds, RESULTS, lambda row, seed: start_process(row, seed, **places))


if __name__ == "__main__":
    restart_with_huge_pages()
    main(sys.argv[1:])
