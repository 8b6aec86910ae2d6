"""Does a second look that labels have taught pay on circuit boards? Rows of DeepPCB, a JSON line each; and their table.

    python -m benchmarks.boards run --data DIR --weights FILE --runs DIR [--only NAME ...] [--seeds 0]
    python -m benchmarks.boards report

DIR and FILE as for `configs/deep_pcb.py`, which every row starts from. A run goes on where it stopped; rows that are in
`benchmarks/results/boards.jsonl` are not run again. `report` prints the table in docs/findings.md from the lines alone.

Accuracies are of the official test part, after training on the same 1,500 images; differences are between the same test
images, resampled by whole boards. `inside`: the share of second looks that hold the defect's middle, of all boards and
of the four groups of boards that no training image is of. At the annotated defect the same network is asked again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import lines
from benchmarks.ablation_row import source_state
from c2f_jax.cli import keep_compiled
from c2f_jax.data.deep_pcb import load
from c2f_jax.evaluation.classification import rank
from c2f_jax.evaluation.discriminants import POWER
from c2f_jax.evaluation.intervals import Judged
from c2f_jax.evaluation.outcomes import difference
from c2f_jax.kernels import compose, contains, invert
from c2f_jax.memory import restart_with_huge_pages
from c2f_jax.models.two_looks import log_probabilities, square_at
from c2f_jax.runs import loop
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.evidence import GRID
from c2f_jax.runs.input_values import with_input_values
from c2f_jax.training.steps import predict
from c2f_jax.training.teaching import PART
from configs import deep_pcb

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "boards.jsonl"
UNTAUGHT: dict[str, Any] = {"region.teach": 0.0, "region.box_gradient": "none"}
ROWS: dict[str, dict[str, Any]] = {
    "taught": {},
    # One look of what two of 160 px cost in tests, for a little more than what they cost in training.
    "one_look": {**UNTAUGHT, "method": "attention", "model.view_size": 224, "stages.coarse_epochs": 12.0},
    "untaught": UNTAUGHT,
    # Both for as long again in fine stages, at the same cost: who has learned all there is?
    "taught_on": {"init_from": "taught", "stages.coarse_epochs": 0.0},
    "one_look_on": {
        **{**UNTAUGHT, "method": "attention", "model.view_size": 224, "stages.coarse_epochs": 8.0},
        "init_from": "one_look",
    },
    # Taught the annotated places in place of the table, so that the second looks are trained at defects.
    "oracle": {},
}
SHOWN = {
    "taught": "taught by labels",
    "one_look": "one look, 224 px",
    "taught_on": "taught by labels, then 8 epochs more",
    "one_look_on": "one look, then 8 epochs more",
    "untaught": "untaught",
    "oracle": "taught the annotated places",
}


def annotated(run: Run) -> np.ndarray:
    """The table [N, G, G] of one who knows where the defect is: its kind where a square holds it, nothing elsewhere."""
    side = PART * run.config.region.side
    middles = 0.5 * side + (1.0 - side) * np.arange(GRID) / (GRID - 1)
    train = run.splits.train
    boxes = np.stack([train[i]["box"] for i in range(len(train))])
    near = np.abs(middles[:, None] - 0.5 * (boxes[:, None, :2] + boxes[:, None, 2:])) < 0.5 * side  # [N, G, 2]
    holds = near[:, :, None, 0] & near[:, None, :, 1]
    return np.where(holds, 0.0, POWER * np.log(1.0 / len(run.splits.class_names))).astype(np.float32)


def measure(run: Run, model: dict[str, Any]) -> dict[str, Any]:
    """Of the test part: what was right by each view under "own" and "annotated" regions, and what held the defect."""
    side = run.config.region.side

    @partial(jax.jit, static_argnames="known")
    def look(batch: dict[str, jax.Array], known: bool) -> dict[str, jax.Array]:
        middle = 0.5 * (batch["box"][:, :2] + batch["box"][:, 2:])

        def region(out: dict[str, jax.Array], view: jax.Array) -> jax.Array:
            box = compose(invert(view), compose(invert(batch["window"]), batch["box"]))
            return square_at(0.5 * (box[:, :2] + box[:, 2:]), view, side=side)

        task = replace(run.task, test_region=region) if known else run.task
        looks = predict(task, model["params"], model["batch_stats"], batch)
        found = {view: rank(values, batch["label"]) < 1 for view, values in log_probabilities(looks).items()}
        return found | {"inside": contains(looks["fine"].box, middle[:, None])[:, 0], "mask": batch["mask"] > 0}

    found: dict[str, dict[str, list[np.ndarray]]] = {"own": {}, "annotated": {}}
    for batch in run.evaluation_batches(run.splits.test):
        for name, views in found.items():
            values = {view: np.asarray(right) for view, right in look(batch, name == "annotated").items()}
            for view, right in values.items():
                views.setdefault(view, []).append(right[values["mask"]])
    return {name: {view: _hex(np.concatenate(right)) for view, right in views.items()} for name, views in found.items()}


def train_and_measure(name: str, seed: int, *, data: str, weights: str, runs: Path) -> dict[str, Any]:
    """Trains the row in `runs`, or goes on; its line."""
    config = deep_pcb.get_config()
    row = ROWS[name]
    if "init_from" in row:  # another row
        row = {**row, "init_from": str(runs / f"{row['init_from']}-seed{seed}")}
    config.update_from_flattened_dict({**row, "seed": seed})
    config.update_from_flattened_dict({"dataset.path": data, "model.pretrained": weights})
    keep_compiled(config.compilation_cache)
    source, config = source_state(ROOT), with_input_values(config)
    run, (train, test, _) = build(config), load(data, cache_dir=config.dataset.cache_dir)
    if name == "oracle":
        table = annotated(run)
        loop.evidence_of = lambda *_: table
    known = {group(board) for board in train.groups}
    workdir = runs / f"{name}-seed{seed}"
    results = loop.train_and_evaluate(config, workdir)
    _, model = read_latest(workdir, run.abstract_model)
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in log if line["split"] == "train"][-10:]
    accuracies = {key for key in last[0] if key.endswith("top_1_accuracy")}
    return {
        **{"name": name, "seed": seed, "overrides": ROWS[name], **source, **loop.environment()},
        **{key: results[key] for key in ("train_seconds", "seconds", "step")},
        "training": {key: float(np.mean([line[key] for line in last])) for key in sorted(accuracies)},
        "metrics": {key: value for key, value in results.items() if "/" in key},
        "regions": measure(run, model),
        "boards": np.unique(test.groups, return_inverse=True)[1].tolist(),
        "new": _hex(np.array([group(board) not in known for board in test.groups])),
    }


def group(board: str) -> str:
    """Of boards that look alike: the first folder of the photo's path."""
    return board.split("/")[0]


def _hex(bits: np.ndarray) -> str:
    return np.packbits(bits).tobytes().hex()


def _bits(text: str, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count].astype(bool)


def report(records: Sequence[dict[str, Any]]) -> None:
    """Prints the table of rows at their seeds, and differences of the taught ones from the others."""
    print("| row | seed | training | first look | second | both | at the defect | inside | new boards | minutes |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    by = {(record["name"], record["seed"]): record for record in records}
    for name in ROWS:
        for (row, seed), record in by.items():
            if row != name:
                continue
            count = len(record["boards"])
            own, known = (
                {view: _bits(text, count) for view, text in record["regions"][region].items()}
                for region in ("own", "annotated")
            )
            new, one = _bits(record["new"], count), name.startswith("one_look")
            seen = [f"{100 * value:.1f}" for value in record["training"].values()]
            shown = [f"{100 * own[view].mean():.1f}" for view in ("coarse", "fine", "fused")]
            more = [f"{100 * known['fused'].mean():.1f}", f"{100 * own['inside'].mean():.1f}"]
            more.append(f"{100 * own['inside'][new].mean():.1f}")
            cells = [SHOWN[name], str(seed), " / ".join(seen), shown[0], *(["–"] * 5 if one else [*shown[1:], *more])]
            print("| " + " | ".join([*cells, f"{record['train_seconds'] / 60:.0f}"]) + " |")
    for (name, seed), record in by.items():
        rival = "taught_on" if name == "one_look_on" else "taught"
        ours = by.get((rival, seed))
        if ours is None or name == "taught":
            continue
        count, view = len(record["boards"]), "coarse" if name.startswith("one_look") else "fused"
        theirs, taught = (
            _judged(_bits(one["regions"]["own"][answer], count)) for one, answer in ((record, view), (ours, "fused"))
        )
        mean, low, high = difference(theirs, taught, [str(board) for board in record["boards"]])
        print(
            f"\nseed {seed}, {SHOWN[rival]}, less {SHOWN[name]}: {100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        )


def _judged(right: np.ndarray) -> Judged:
    """What `difference` asks for, of answers of which nothing else is known."""
    nothing = np.zeros(len(right))
    return Judged(nothing, nothing, nothing, np.where(right, 0, 1), nothing)


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report", help="print the table")
    several = commands.add_parser("run", help="train what is missing")
    several.add_argument("--data", required=True, help="DeepPCB's folder or archive")
    several.add_argument("--weights", required=True, help="ImageNet weights of EfficientNet-Lite0, safetensors")
    several.add_argument("--runs", required=True, type=Path, help="folder for the runs' workdirs")
    several.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    several.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args(argv)
    if options.command == "report":
        report(lines.read(RESULTS))
        return
    evidence_of = loop.evidence_of
    for seed in options.seeds:
        for name in options.only:
            if any((line["name"], line["seed"]) == (name, seed) for line in lines.read(RESULTS)):
                continue
            places = {"data": options.data, "weights": options.weights, "runs": options.runs}
            lines.append(RESULTS, train_and_measure(name, seed, **places))
            loop.evidence_of = evidence_of


if __name__ == "__main__":
    restart_with_huge_pages()
    main(sys.argv[1:])
