"""A sheet of images with what the model attended to, looked at again and said."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from c2f_jax.errors import one_line
from c2f_jax.kernels import compose, crop_and_resize, invert, ordered
from c2f_jax.models.two_looks import Look, attention_over_image, log_probabilities

Batch = Mapping[str, Any]  # arrays, of the host or a device

RIGHT, WRONG, TRUTH = "#1b7f3b", "#b3261e", "#ffd166"
LONGEST_NAME = 32  # characters


def save_sheet(
    file: IO[bytes],
    predict: Callable[[Batch], dict[str, Look]],
    batch: Batch,
    class_names: Sequence[str],
    *,
    columns: int = 2,
) -> None:
    """Writes a PNG: each raw image with its boxes, the mean attention over it, the fine view, and the prediction.

    Args:
        file: to write it to.
        predict: batch -> looks, as `steps.predict`.
        batch: `image` uint8 [B, R, R, 3], `window` [B, 4], `label` [B], `mask` [B], 0 for filling at the end; `box`
            [B, 4] of the photo, where known, is drawn dashed.
        class_names: by label.
        columns: images side by side.
    """
    # What is drawn is the raw image: boxes of the photo in its coordinates.
    in_raw = partial(compose, invert(jnp.asarray(batch["window"])))
    looks = {name: seen._replace(box=in_raw(seen.box)) for name, seen in predict(batch).items()}
    batch = {**batch, "box": in_raw(batch["box"])} if "box" in batch else batch
    scores = log_probabilities(looks)
    last = np.exp(scores["fused" if "fused" in scores else "coarse"])
    coarse_right = np.argmax(scores["coarse"], axis=-1)
    panels = _panels(batch, looks)
    count, names = int(np.sum(batch["mask"])), list(panels)

    rows = -(-count // columns)
    figure = Figure(figsize=(2.1 * len(names) * columns, 2.55 * rows + 0.3), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, len(names) * columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i in range(count):
        row = axes[i // columns, (i % columns) * len(names) :][: len(names)]
        for axis, name in zip(row, names, strict=True):
            axis.imshow(panels[name][i], interpolation="nearest" if name == "fine view" else "antialiased")
            axis.set_xlabel(name)
        _draw_boxes(row[0], batch, looks, i)
        label, guess = int(batch["label"][i]), int(np.argmax(last[i]))
        colour = RIGHT if guess == label else WRONG
        title = f"{caption(class_names[guess])}  {last[i, guess]:.0%}"
        if guess != label:
            title += f"\n(is: {caption(class_names[label])})"
        elif int(coarse_right[i]) != label:
            title += f"\n(first look: {caption(class_names[int(coarse_right[i])])})"
        row[0].set_title(title, fontsize=8, color=colour, loc="left", parse_math=False)
    with warnings.catch_warnings():
        # The font that comes with Matplotlib has not every letter: a box stands in its place, and a line for each of
        # them would say so.
        warnings.filterwarnings("ignore", message="(?s).*Glyph .* missing from")
        figure.savefig(file, dpi=110, format="png")


def caption(name: str) -> str:
    """A class's name for one line of a picture, cut where it is long."""
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _panels(batch: Batch, looks: dict[str, Look]) -> dict[str, np.ndarray]:
    images = np.asarray(batch["image"])
    panels: dict[str, np.ndarray] = {"image": images}
    if "attention_maps" in looks["coarse"].out:
        heat = np.asarray(attention_over_image(looks["coarse"], images.shape[1]))
        # Bright where attended, dimmed and grey elsewhere: the picture stays readable under it.
        grey = images.mean(axis=-1, keepdims=True) * 0.35
        panels["attention"] = (grey + heat[..., None] * (images - grey)).astype(np.uint8)
    if "fine" in looks:
        crops = crop_and_resize(batch["image"], looks["fine"].box, looks["fine"].view.shape[1], antialias=True)
        panels["fine view"] = np.clip(np.round(np.asarray(crops)), 0, 255).astype(np.uint8)
    return panels


def _draw_boxes(axis: Any, batch: Batch, looks: dict[str, Look], i: int) -> None:
    height, width = batch["image"].shape[1:3]
    boxes = [("white", "-", looks["fine"].box)] if "fine" in looks else []
    if "box" in batch:
        boxes.append((TRUTH, "--", batch["box"]))
    for colour, style, box in boxes:
        ymin, xmin, ymax, xmax = np.asarray(ordered(box))[i] * np.array([height, width, height, width])
        corner = (xmin - 0.5, ymin - 0.5)
        axis.add_patch(Rectangle(corner, xmax - xmin, ymax - ymin, fill=False, color=colour, linestyle=style, lw=1.2))
