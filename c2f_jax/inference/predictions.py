"""Predictions for people and programs: a CSV file or JSON lines, and pictures with heat and box."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from c2f_jax import storage
from c2f_jax.console import tell
from c2f_jax.data.images import decode
from c2f_jax.errors import UserError, one_line
from c2f_jax.inference.predict import TOP, Model, Prediction, list_images
from c2f_jax.inference.resumable import csv_lines, json_lines, part_of, resuming
from c2f_jax.runs import spreadsheets
from c2f_jax.runs.writers import track
from c2f_jax.storage import check_writable

OVERLAY_SIDE = 448  # pixels, of the longer side of each panel
MARGIN = 6
FRAME = (255, 209, 102)
INK = (32, 32, 32)
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".xls", ".xlsx", ".ods", ".parquet", ".tsv")  # which a CSV file by that name would pretend to be


def check_output(output: Path) -> None:
    """Raises UserError if `predict_folder` would overwrite it, or it has the name of another kind of file, or no name
    that a file can have."""
    storage.check_name("--output", output)
    if output.suffix.lower() == ".json":
        raise UserError(f"--output: {output}: a file with an object per line is called {output.stem}.jsonl")
    if output.suffix.lower() in TABLES:
        raise UserError(f"--output: {output}: a table is written as CSV, which is called {output.stem}.csv")
    if storage.exists(output):
        raise UserError(f"--output: {output} exists; choose another name, or move it away")


def predict_folder(
    model: Model,
    images: Path,
    output: Path,
    overlays: Path | None,
    *,
    mark_unknown: bool = False,
    fast: bool = False,
    gate: float | None = None,
    top: int = TOP,
) -> int:
    """Predicts every image below `images` into the file `output`; returns how many could not be read.

    Killed and called again it goes on: what has been predicted is not predicted again.

    Args:
        model: from `load_model`.
        images: a folder, or an image file.
        output: with the suffix .jsonl or .ndjson JSON lines, see `as_object`; otherwise CSV, one row per image, see
            `header`. Appears when it is complete, see `resumable`.
        overlays: folder for one picture per image at the same path with .png added (a name that is too long for that
            is cut, see `storage.inside`), or None.
        mark_unknown: say of each image whether it is none of the classes.
        fast, gate, top: see `Model.predict`.

    Raises:
        UserError: if there is no image, no threshold for unknown ones where they are to be marked, or `output` or
            `overlays` would overwrite something.
    """
    check_output(output)
    root, names = _images(images, overlays)
    model.check_gate(fast=fast, gate=gate)
    if mark_unknown:
        model.threshold(fast=fast, gate=gate)
    taken = overlays is not None and (
        storage.is_file(overlays) or (storage.names(overlays) and not part_of(output).exists())
    )
    if taken:
        raise UserError(f"--overlays: {overlays} exists and is not an empty folder; choose another")
    check_writable("--output", output.parent)
    if overlays is not None:
        check_writable("--overlays", overlays)
    command = {
        "run": storage.resolved(model.workdir),
        "step": model.step,
        "images": storage.resolved(root),
        "overlays": None if overlays is None else storage.resolved(overlays),
        **{"unknown": mark_unknown, "fast": fast, "gate": gate, "top": top},
        "fusion": None if model.fusion is None else list(model.fusion),
    }
    views = model.views_by(fast=fast)
    top = min(top, max(TOP, len(model.class_names)))  # no columns for classes that there cannot be
    if output.suffix.lower() in JSON_LINES:
        first_line, line_of, lines = "", as_line, json_lines
        key_of: Any = str
    else:
        columns = header(views, unknown=mark_unknown, looks=gate is not None, top=top)
        first_line, lines, key_of = spreadsheets.line(columns), csv_lines, spreadsheets.text

        def line_of(prediction: Prediction) -> str:
            return spreadsheets.line(row(prediction, views, unknown=mark_unknown, looks=gate is not None, top=top))

    with resuming(output, command, lines, first_line) as rows:
        done, unreadable = Counter(file for file, _ in rows.done), sum(error for _, error in rows.done)
        left = []
        for name in names:  # in the order of the rows: two names may be one cell, "=a.png" and "'=a.png"
            if done[key_of(name)] > 0:
                done[key_of(name)] -= 1
            else:
                left.append(name)
        if rows.done:
            tell(f"going on: {len(names) - len(left)} of {len(names)} images are done")
        found = model.predict_below(root, left, mark_unknown=mark_unknown, fast=fast, gate=gate, top=top)
        for prediction in track(found, total=len(left), what="predict"):
            if overlays is not None and prediction.error is None:
                picture = overlay(decode(storage.join(root, prediction.file)), prediction)
                _save(picture, storage.inside(overlays, f"{prediction.file}.png"))
            rows.write(line_of(prediction))
            unreadable += prediction.error is not None
    return unreadable


def _save(picture: Image.Image, path: Path) -> None:
    storage.make_folder(path.parent)
    with storage.writing(path) as file:
        picture.save(file, "png")


def _images(images: Path, overlays: Path | None) -> tuple[Path, list[str]]:
    """`list_images`, without the pictures that an earlier start has put into a folder among them."""
    root, names = list_images(images)
    if overlays is None:
        return root, names
    here, there = Path(storage.resolved(root)), Path(storage.resolved(overlays))
    if not there.is_relative_to(here):
        return root, names
    made = there.relative_to(here).parts
    return root, [name for name in names if Path(name).parts[: len(made)] != made]


def header(views: Sequence[str], *, unknown: bool = False, looks: bool = False, top: int = TOP) -> list[str]:
    """Columns: file, for each view `top` classes with probabilities, box in pixels, unknown and number of looks if
    asked, and an error."""
    columns = ["file"]
    for view in reversed(views):  # the answer first
        for place in range(1, top + 1):
            columns += [f"{view}_{place}", f"{view}_{place}_probability"]
    columns += ["box_xmin", "box_ymin", "box_xmax", "box_ymax"]
    return [*columns, *(["unknown"] if unknown else []), *(["looks"] if looks else []), "error"]


def row(
    prediction: Prediction, views: Sequence[str], *, unknown: bool = False, looks: bool = False, top: int = TOP
) -> list[str]:
    """One image's fields, empty where there is nothing to say; text as `spreadsheets.text`."""
    fields = [spreadsheets.text(prediction.file)]
    for view in reversed(views):
        for place in range(top):
            entry = prediction.top.get(view, [])[place : place + 1]
            fields += [spreadsheets.text(entry[0][0]), f"{entry[0][1]:.4f}"] if entry else ["", ""]
    fields += [f"{value:.1f}" for value in prediction.box] if prediction.box is not None else [""] * 4
    if unknown:
        fields.append("" if prediction.unknown is None else "yes" if prediction.unknown else "no")
    if looks:
        fields.append(str(prediction.looks or ""))
    return [*fields, spreadsheets.text(prediction.error or "")]


def as_object(prediction: Prediction) -> dict[str, Any]:
    """One image as JSON has it: `file`; `class` and `probability`, the answer; `top`, by view; `box` in pixels;
    `looks`; `unknown` if asked; `error`. None where there is nothing to say."""
    names = ("xmin", "ymin", "xmax", "ymax")
    said: dict[str, Any] = {"file": prediction.file, "class": None, "probability": None}
    if prediction.error is None:
        said["class"], said["probability"] = prediction.best
    said["top"] = {
        view: [{"class": name, "probability": value} for name, value in entries]
        for view, entries in reversed(prediction.top.items())
    }
    said["box"] = None if prediction.box is None else dict(zip(names, prediction.box, strict=True))
    said["looks"] = prediction.looks
    if prediction.unknown is not None:
        said["unknown"] = prediction.unknown
    return {**said, "error": prediction.error}


def as_line(prediction: Prediction) -> str:
    """`as_object` as a line; what has no code in UTF-8 is spelled as JSON spells it."""
    return json.dumps(as_object(prediction), allow_nan=False) + "\n"


def overlay(image: np.ndarray, prediction: Prediction) -> Image.Image:
    """The image with its box, the same under the attention's heat, and the second look, side by side.

    Args:
        image: uint8 [H, W, 3], as `decode` gives it.
        prediction: of this image.
    """
    photo = Image.fromarray(image)
    scale = OVERLAY_SIDE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    small = photo.resize(size, Image.Resampling.LANCZOS)
    panels = [small.copy()]
    if prediction.attention is not None:
        heat = Image.fromarray(np.asarray(prediction.attention, np.float32)).resize(size, Image.Resampling.BICUBIC)
        weight = np.clip(np.asarray(heat), 0.0, 1.0)[..., None]
        pixels = np.asarray(small, np.float32)
        # Bright where attended, grey and dim elsewhere: the photo stays readable.
        dim = 0.35 * pixels.mean(axis=-1, keepdims=True)
        panels.append(Image.fromarray((dim + weight * (pixels - dim)).astype(np.uint8)))
    if prediction.box is not None:
        xmin, ymin, xmax, ymax = prediction.box
        for panel in panels:
            corners = [value * scale for value in (xmin, ymin, xmax - 1 / scale, ymax - 1 / scale)]
            if corners[2] > corners[0] and corners[3] > corners[1]:
                ImageDraw.Draw(panel).rectangle(corners, outline=FRAME, width=2)
        side = size[1]
        panels.append(photo.resize((side, side), Image.Resampling.BICUBIC, box=(xmin, ymin, xmax, ymax)))
    font = ImageFont.load_default(size=16)
    lines = list(_captions(prediction))
    height = size[1] + 2 * MARGIN + 20 * len(lines)
    width = sum(panel.width for panel in panels) + MARGIN * (len(panels) + 1)
    sheet = Image.new("RGB", (width, height), "white")
    left = MARGIN
    for panel in panels:
        sheet.paste(panel, (left, MARGIN))
        left += panel.width + MARGIN
    for i, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((MARGIN, size[1] + MARGIN + 20 * i), line, fill=INK, font=font)
    return sheet


def _captions(prediction: Prediction) -> Iterator[str]:
    if prediction.unknown:
        yield "unknown: none of these"
    for view in reversed(prediction.top):
        yield one_line(f"{view}: " + ", ".join(f"{name} {value:.0%}" for name, value in prediction.top[view][:3]))
