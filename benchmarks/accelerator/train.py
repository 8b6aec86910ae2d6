"""Rows of the ablation's second grid (`benchmarks/ablation_224.py`), each trained and measured in one command.

The whole line of a row, image by image, goes to `ablation_224.jsonl` beside the other lines; what stands there or in
`benchmarks/results/` is not trained again. A row that is stopped goes on from its last checkpoint.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ablation import GRIDS, RESULTS, run_row
from benchmarks.ablation_grid import Row
from benchmarks.ablation_report import read_records
from benchmarks.accelerator.common import Line, Setting, Unit, number

GRID = GRIDS["224"]
# Smaller views, a look at so many photos, and few steps; the network is the whole one, since its weights are.
REHEARSED = {"model.view_size": 4, "dataset.raw_size": 4}  # divided by these
IMAGES_OF_A_CLASS = 6


def units(setting: Setting) -> dict[str, Unit]:
    """All rows at the first seed, then at the others."""
    absent = setting.missing(weights=True)
    if absent is not None:
        return {"data": lambda: iter([{"case": "data", "error": absent}])}
    lines = setting.path.with_name(GRID.lines)
    trained = {**read_records(RESULTS / GRID.lines), **read_records(lines)}
    seeds = sorted({seed for row in GRID.rows for seed in row.seeds})
    return {
        f"{row.name}_seed{seed}": partial(train, setting, shortened(row) if setting.rehearse else row, seed, lines)
        for seed in (seeds[:1] if setting.rehearse else seeds)
        for row in GRID.rows
        if seed in row.seeds and (row.name, seed) not in trained
    }


def train(setting: Setting, row: Row, seed: int, lines: Path) -> Iterator[Line]:
    """One row at one seed; the report is made of the line in `lines`, this is what to look at first."""
    data = setting.data
    if setting.rehearse:
        data = str(few_photos(Path(setting.data), Path(setting.runs) / "few_photos"))
    measured = run_row(row, seed, data=data, weights=setting.weights, runs=Path(setting.runs), results=lines)
    metrics = measured["regions"]["own"]["metrics"]
    yield {
        "case": row.name,
        "seed": seed,
        **{
            name: number(metrics[name])
            for name in (f"{view}/top_1_accuracy" for view in ("coarse", "fine", "fused"))
            if name in metrics
        },
        "train_seconds": round(measured["train_seconds"]),
        "seconds": round(measured["seconds"]),
        "steps": measured["steps"],
        "test_images": measured["test_images"],
    }


def shortened(row: Row) -> Row:
    """The row at small sizes, one epoch in place of twelve."""
    config: dict[str, Any] = {name: row.overrides[name] // by for name, by in REHEARSED.items()}
    epochs = {name: value / 12.0 for name, value in row.overrides.items() if name.startswith("stages.")}
    return row._replace(changes={**row.changes, **config, **epochs, "train.eval_batch_size": 16})


def few_photos(data: Path, folder: Path) -> Path:
    """A data set of the first photos of each part of each class: links in `folder`, in the same layout."""
    table = {
        name: [line.split(" ", 1) for line in (data / f"{name}.txt").read_text().splitlines()]
        for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    of = {name: dict(rows) for name, rows in table.items()}
    count: dict[tuple[str, str], int] = {}
    kept = set()
    for image, label in of["image_class_labels"].items():
        part = (label, of["train_test_split"][image])
        count[part] = count.get(part, 0) + 1
        if count[part] <= IMAGES_OF_A_CLASS and int(label) <= 10:
            kept.add(image)
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for name in (*table, "parts/part_locs"):
        text = (data / f"{name}.txt").read_text().splitlines()
        rows = [line for line in text if line.split(" ", 1)[0] in kept]
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    classes = [line for line in (data / "classes.txt").read_text().splitlines() if int(line.split(" ")[0]) <= 10]
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    for name in [path.name for path in (data / "parts").iterdir() if path.name != "part_locs.txt"]:
        (folder / "parts" / name).write_bytes((data / "parts" / name).read_bytes())
    if not (folder / "images").exists():
        (folder / "images").symlink_to(data / "images")
    return folder
