"""Attention maps before and after training, drawn without the photos.

python -m benchmarks.attention_maps OUTPUT.png WORKDIR [WORKDIR ...]    # finished runs with attention on the same data

A row per test image, spread evenly over the test part. For each run two pairs of panels, before the first step
(normalised by the statistics of a test batch) and at the last checkpoint: the mean of the maps over the coarse view,
with the annotated box (dashed), and the M maps themselves, each image's on one scale.

Prints a JSON line for each: `same_peak` is the share of the batch's images whose mean map peaks in the commonest cell,
1 where attention does not depend on the image.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.ablation_row import look_untrained, object_boxes
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.workdir import read_config
from c2f_jax.training.steps import predict

OBJECT = "#ffd166"


def maps_of(run: Run, workdir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(maps before training, maps after it, annotated boxes in the coarse view) of a batch spread over the test part.

    Maps: [B, H, W, M]. Boxes: [B, 4] as fractions of the view, or None where there are none.
    """
    test = run.splits.test
    count = min(run.config.train.eval_batch_size, len(test))
    spread = [test[int(i)] for i in np.linspace(0, len(test) - 1, count)]
    (batch,) = run.evaluation_batches(spread)

    state = run.create_state()
    before = jax.jit(partial(look_untrained, run.task))(state.params, state.batch_stats, batch)
    _, read = read_latest(workdir, run.abstract_model)
    trained = read["params"], read["batch_stats"]
    after = jax.jit(partial(predict, run.task))(*trained, batch)
    first, last = (np.asarray(looks["coarse"].out["attention_maps"], np.float32)[:count] for looks in (before, after))
    boxes = np.asarray(object_boxes(run.task, batch))[:count] if "box" in batch else None
    return first, last, boxes


def same_peak(maps: np.ndarray) -> float:
    """Share of images whose mean map peaks in the cell where most do. maps: [B, H, W, M]."""
    peaks = np.argmax(maps.mean(axis=-1).reshape(len(maps), -1), axis=-1)
    return float(np.max(np.bincount(peaks)) / len(maps))


def mosaic(maps: np.ndarray) -> np.ndarray:
    """Maps [H, W, M] -> [rows * (H + 1) - 1, columns * (W + 1) - 1]: nearly square, row by row, nan between them."""
    height, width, count = maps.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1), columns * (width + 1)), np.nan, np.float32)
    for i in range(count):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = maps[..., i]
    return sheet[:-1, :-1]


def draw(path: Path, columns: Sequence[tuple[str, np.ndarray]], boxes: np.ndarray | None, shown: Sequence[int]) -> None:
    """Writes the sheet. columns: (title, maps [B, H, W, M]); boxes: [B, 4] or None; shown: which of the B images."""
    size = (2.4 * len(columns), 1.25 * len(shown) + 0.4)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(shown), 2 * len(columns), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for j, (title, maps) in enumerate(columns):
        axes[0, 2 * j].set_title(title, fontsize=8, loc="left")
        for row, i in zip(axes, shown, strict=True):
            mean, parts = row[2 * j], row[2 * j + 1]
            mean.imshow(maps[i].mean(axis=-1), cmap="magma", vmin=0.0, extent=(0, 1, 1, 0))
            parts.imshow(mosaic(maps[i]), cmap="magma", vmin=0.0)
            if boxes is not None:
                ymin, xmin, ymax, xmax = np.clip(boxes[i], 0.0, 1.0)
                frame = Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, color=OBJECT, ls="--", lw=1.2)
                mean.add_patch(frame)
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="of the picture, .png")
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="WORKDIR")
    parser.add_argument("--images", type=int, default=6)
    options = parser.parse_args()
    columns: list[tuple[str, np.ndarray]] = []
    for workdir in options.workdirs:
        config = read_config(workdir)
        before, after, boxes = maps_of(build(config), workdir)
        for title, maps in (("before training", before), ("after", after)):
            columns.append((f"{config.model.attention_init}, {title}", maps))
            about = {"method": config.method, "view_size": config.model.view_size, "seed": config.seed}
            about |= {"maps": columns[-1][0], "images": len(maps), "same_peak": round(same_peak(maps), 4)}
            print(json.dumps(about), flush=True)
    shown = np.linspace(0, len(before) - 1, options.images + 2)[1:-1].astype(int)
    draw(options.output, columns, boxes, shown)


if __name__ == "__main__":
    main()
