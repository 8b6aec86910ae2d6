"""Predictions for people and spreadsheets: a CSV file and pictures with heat and box."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from c2f_jax.data.images import decode
from c2f_jax.errors import UserError
from c2f_jax.inference.predict import TOP, Model, Prediction, list_images
from c2f_jax.runs.workdir import check_writable
from c2f_jax.runs.writers import track

OVERLAY_SIDE = 448  # pixels, of the longer side of each panel
MARGIN = 6
FRAME = (255, 209, 102)
INK = (32, 32, 32)


def predict_folder(
    model: Model, images: Path, output: Path, overlays: Path | None, *, mark_unknown: bool = False
) -> int:
    """Predicts every image below `images` into the CSV file `output`; returns how many could not be read.

    Args:
        model: from `load_model`.
        images: a folder, or an image file.
        output: CSV file, one row per image; see `header`. Appears when it is complete.
        overlays: folder for one picture per image at the same path with .png added, or None.
        mark_unknown: say of each image whether it is none of the classes.

    Raises:
        UserError: if there is no image, no threshold for unknown ones where they are to be marked, or `output` or
            `overlays` would overwrite something.
    """
    if output.exists():
        raise UserError(f"--output: {output} exists; choose another name, or move it away")
    if overlays is not None and overlays.exists() and (not overlays.is_dir() or any(overlays.iterdir())):
        raise UserError(f"--overlays: {overlays} exists and is not an empty folder; choose another")
    root, names = list_images(images)
    predictions = model.predict(images, mark_unknown=mark_unknown)
    check_writable("--output", output.parent)
    if overlays is not None:
        check_writable("--overlays", overlays)
    partial_output = output.with_name(output.name + ".part")
    unreadable = 0
    with partial_output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header(model.views, unknown=mark_unknown))
        for prediction in track(predictions, total=len(names), what="predict"):
            writer.writerow(row(prediction, model.views, unknown=mark_unknown))
            unreadable += prediction.error is not None
            if overlays is not None and prediction.error is None:
                path = overlays / f"{prediction.file}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                overlay(decode(root / prediction.file), prediction).save(path)
    partial_output.replace(output)
    return unreadable


def header(views: Sequence[str], *, unknown: bool = False) -> list[str]:
    """Columns: file, for each view five classes with probabilities, box in pixels, unknown if asked, and an error."""
    columns = ["file"]
    for view in reversed(views):  # the fused answer first
        for place in range(1, TOP + 1):
            columns += [f"{view}_{place}", f"{view}_{place}_probability"]
    columns += ["box_xmin", "box_ymin", "box_xmax", "box_ymax"]
    return [*columns, *(["unknown"] if unknown else []), "error"]


def row(prediction: Prediction, views: Sequence[str], *, unknown: bool = False) -> list[str]:
    """One image's fields, empty where there is nothing to say."""
    fields = [prediction.file]
    for view in reversed(views):
        for place in range(TOP):
            entry = prediction.top.get(view, [])[place : place + 1]
            fields += [entry[0][0], f"{entry[0][1]:.4f}"] if entry else ["", ""]
    fields += [f"{value:.1f}" for value in prediction.box] if prediction.box is not None else [""] * 4
    if unknown:
        fields.append("" if prediction.unknown is None else "yes" if prediction.unknown else "no")
    return [*fields, prediction.error or ""]


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
        yield f"{view}: " + ", ".join(f"{name} {value:.0%}" for name, value in prediction.top[view][:3])
