"""The tables of docs/results.md: what each says of a row's lines, one of each seed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.lines import unpack
from benchmarks.over_seeds import ABSENT, mean_sd

VIEWS = {"coarse": "#5b6770", "fine": "#c77700", "fused": "#1b5fa8"}  # colours of the plot


def metric(records: Sequence[Mapping[str, Any]], name: str, region: str = "own") -> list[float | None]:
    """A test metric under a region, by seed; None where the row has no such region or metric."""
    return [(record["regions"].get(region) or {"metrics": {}})["metrics"].get(name) for record in records]


def _accuracy(rows: Sequence[dict[str, Any]]) -> list[str]:
    def percent(view: str, region: str = "own") -> str:
        return mean_sd(metric(rows, f"{view}/top_1_accuracy", region), 1, 100.0)

    sides = ", ".join(f"{record['regions']['central']['side']:g}" for record in rows)
    others = (percent("fused", region) for region in ("object", "attention"))
    return [*(percent(view) for view in VIEWS), percent("fused", "central"), sides, *others]


def _last_view(rows: Sequence[dict[str, Any]]) -> list[str]:
    last = "fused" if "fused/loss" in rows[0]["regions"]["own"]["metrics"] else "coarse"
    percents = (
        mean_sd(metric(rows, f"{last}/{name}"), 1, 100.0) for name in ("mean_per_class_accuracy", "top_5_accuracy")
    )
    errors = (mean_sd(metric(rows, f"{view}/calibration_error"), 1, 100.0) for view in VIEWS)
    losses = (mean_sd(metric(rows, f"{view}/loss"), 3) for view in VIEWS)
    soft = mean_sd(metric(rows, "fused/loss", "attention"), 3)
    return [last, *percents, *errors, *losses, soft]


def _place(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = ("box/mean_area", "box/mean_iou", "box/parts_inside", "attention/part_hit")
    accuracies = [(record["max_box_accuracy"] or {}).get("value") for record in rows]
    return [
        *(mean_sd(metric(rows, name), 2) for name in names),
        mean_sd(metric(rows, "box/mean_iou", "resized"), 3),
        mean_sd([record["overlap_at_start"] for record in rows], 2),
        mean_sd(metric(rows, "attention/overlap"), 2),
        mean_sd(accuracies, 2),
        mean_sd([record["kappa"] for record in rows], 2),
    ]


def _second_look(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Shares of the test images by what the looks say of them, over seeds."""
    cells: list[list[float]] = [[], [], [], []]
    for record in rows:
        packed = record["regions"]["own"]["right"]
        if "fine" not in packed:
            return [ABSENT] * len(cells)
        coarse, fine, fused = (unpack(packed[view], record["test_images"]) for view in VIEWS)
        shares = (~coarse & fused, coarse & ~fused, coarse != fine, coarse | fine)
        for cell, share in zip(cells, shares, strict=True):
            cell.append(float(np.mean(share)))
    return [mean_sd(cell, 1, 100.0) for cell in cells]


def _cost(rows: Sequence[dict[str, Any]]) -> list[str]:
    first = rows[0]
    views = "2" if "fused/loss" in first["regions"]["own"]["metrics"] else "1"
    return [
        f"{first['view_size']} px",
        f"{first['epochs']:.1f}",
        str(first["steps"]),
        f"{first['train_views']:.1f}",
        views,
        mean_sd([record["train_seconds"] for record in rows], 0),
        f"{first['parameters'] / 1e6:.2f}",
    ]


def _origin(rows: Sequence[dict[str, Any]]) -> list[str]:
    flags = " ".join(f"`--config.{name}={value}`" for name, value in rows[0]["overrides"].items())
    seeds = ", ".join(str(record["seed"]) for record in rows)
    commits = {f"{(record['commit'] or 'unknown')[:10]}{'' if record['clean'] else ' (changed)'}" for record in rows}
    return [flags or "nothing", seeds, ", ".join(sorted(commits))]


Cells = Callable[[Sequence[dict[str, Any]]], list[str]]
TABLES: list[tuple[str, str, list[str], Cells]] = [
    (
        "Accuracy",
        "Top-1 on the test part, percent. Fine and fused look again at the model's own box; the next column looks "
        "again at the middle of the view instead, its side (a share of the view, by seed) chosen on the validation "
        "part; then at the bird's annotated box: what a perfect localisation would add to this network; the last, for "
        "WS-DAN, at the box that Coarse2Fine would have taken of its attention.",
        ["coarse", "fine", "fused", "fused, central box", "its sides", "annotated box", "Coarse2Fine's box"],
        _accuracy,
    ),
    (
        "Per class, top-5, calibration, loss",
        "Mean per-class accuracy and top-5 in percent, of the view named; expected calibration error in percent (15 "
        "bins) and loss in nats, of each view; the last column, for WS-DAN, as in the table above.",
        [
            *("view", "per class", "top-5", "ECE coarse", "fine", "fused"),
            *("loss coarse", "fine", "fused", "fused, Coarse2Fine's box"),
        ],
        _last_view,
    ),
    (
        "Where it looks",
        "Box: the fine view, its area as a share of the image, its IoU with the bird's box, the share of visible parts "
        "inside. Part hit: the peak of the mean attention lies within 0.1 of the root of the bird's box area of a "
        "visible part, distances as fractions of the image. IoU at best kappa: of Coarse2Fine's box with the kappa of "
        "most overlap on the validation part, whatever its size. Overlap: mean cosine of two maps of an image, before "
        "the first step (validation part, each batch's own statistics) and at the end. MaxBoxAccV2: mean over "
        "IoU 0.3, 0.5 and 0.7, thresholds chosen on the validation part. Kappa: half a box's side in standard "
        "deviations, at the end.",
        [
            "area",
            "IoU",
            "parts inside",
            "part hit",
            "IoU at best kappa",
            "overlap at the start",
            "at the end",
            "MaxBoxAccV2",
            "kappa",
        ],
        _place,
    ),
    (
        "What the second look changes",
        "Percent of the test images. Fixed: wrong by the coarse look, right by both; broken: the other way round. One "
        "of the two: right by either look, what a perfect choice between them would reach.",
        ["fixed", "broken", "looks disagree on being right", "one of the two"],
        _second_look,
    ),
    (
        "Cost",
        "Views: forward and backward in training, per training image over all epochs; forward in a test by the last "
        "view of the accuracy table. A second test view is test-time work, not augmentation: nothing else is averaged. "
        "Seconds: wall clock of the training steps, as long as the machine's other work makes it.",
        ["view", "epochs", "steps", "training views", "test views", "training seconds", "million parameters"],
        _cost,
    ),
    (
        "What was run",
        "Added to `python launch.py --config configs/cub50_lite0.py --config.dataset.path=DIR "
        "--config.model.pretrained=FILE --config.seed=SEED` of the commit (today's file has other "
        "`augment.min_side` and `region.cell_offset`). Changed: the tree held more than the commit.",
        ["flags", "seeds", "commit"],
        _origin,
    ),
]
