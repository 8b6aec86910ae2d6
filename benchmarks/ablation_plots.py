"""The plots of docs/results.md."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.ablation_tables import VIEWS, metric


def plot(known: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Top-1 by row: a dot per seed and view, a bar at the mean."""
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(known)), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for view, (name, colour) in enumerate(VIEWS.items()):
        labelled = False
        for i, rows in enumerate(known.values()):
            values = [100 * value for value in metric(rows, f"{name}/top_1_accuracy") if value is not None]
            if not values:
                continue
            height = i + 0.22 * (view - 1)
            label = "_" if labelled else name
            axis.plot(values, [height] * len(values), "o", color=colour, ms=3.5, alpha=0.6, mew=0, label=label)
            axis.plot([np.mean(values)] * 2, [height - 0.1, height + 0.1], color=colour, lw=2)
            labelled = True
    axis.set_yticks(range(len(known)), [f"{name} ({len(rows)})" for name, rows in known.items()])
    axis.invert_yaxis()
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    axis.set_xlabel("top-1, % of the CUB-50 test part (first 50 classes of CUB-200-2011); in brackets: seeds")
    figure.legend(loc="outside upper right", ncols=len(VIEWS), frameon=False)
    figure.savefig(path, dpi=110)


def plot_training(known: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Box and gradients over the steps, a line per row."""
    panels = (
        ("validation", "box/mean_area", "fine view's area, share of the image", "linear"),
        ("validation", "box/mean_iou", "IoU with the bird's box", "linear"),
        ("train", "gradient/attention_by_class", "gradient at the maps, by class", "log"),
        ("train", "gradient/attention_by_box", "gradient at the maps, by box", "log"),
    )
    figure = Figure(figsize=(9, 6.5), layout="constrained", facecolor="white")
    for axis, (part, name, label, scale) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for i, (row, (record, *_)) in enumerate(known.items()):
            entries = [entry for entry in record["history"][part] if entry.get(name, 0.0) > 0.0]
            if entries:
                style = "-" if i < 10 else "--"
                steps, values = zip(*((entry["step"], entry[name]) for entry in entries), strict=True)
                axis.plot(steps, values, style, marker=".", color=f"C{i % 10}", lw=1.2, label=row)
        if not axis.lines:
            axis.text(0.5, 0.5, "0 in every row", ha="center", transform=axis.transAxes)
            axis.set(xticks=[], yticks=[], ylabel=label)
            continue
        axis.set(xlabel="step", ylabel=label, yscale=scale)
        axis.grid(color="#dddddd")
        axis.set_axisbelow(True)
    handles = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
