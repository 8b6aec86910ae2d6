"""A sheet of a data set's photos, by class, with their boxes and parts: for a person to look at before training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from c2f_jax.data.sources import Labelled
from c2f_jax.errors import one_line

COLUMNS, ROWS = 8, 6
TILE, CAPTION, GAP, HEAD = 220, 34, 8, 40  # pixels
_INK, _FAINT, _GROUND, _FRAME = (20, 20, 20), (110, 110, 110), (255, 255, 255), (236, 236, 236)
_BOX, _PART = (255, 40, 40), (40, 220, 255)


def chosen(labels: np.ndarray) -> np.ndarray:
    """Which examples: as many of each class, spread over it, as the sheet holds; of too many classes some, one of each.

    labels: int [N] -> indices, class by class.
    """
    classes = np.unique(labels)
    classes = classes[_spread(len(classes), COLUMNS * ROWS)]
    each = COLUMNS * ROWS // len(classes)
    members = [np.flatnonzero(labels == label) for label in classes]
    return np.concatenate([of[_spread(len(of), each)] for of in members])


def _spread(size: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(int))


def draw(source: Labelled, class_names: Sequence[str], title: str) -> Image.Image:
    """The sheet of a part. An example's caption is its class, its number in the part and its size as it is read."""
    indices = chosen(source.labels)
    rows = -(-len(indices) // COLUMNS)
    width = COLUMNS * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEAD + rows * (TILE + CAPTION + GAP) + GAP), _GROUND)
    pen = ImageDraw.Draw(sheet)
    large, small = (ImageFont.load_default(size=size) for size in (18, 13))
    pen.text((GAP, 10), _fitting(title, large, width - 2 * GAP), _INK, large)
    for place, index in enumerate(indices):
        example = source[int(index)]
        left = GAP + place % COLUMNS * (TILE + GAP)
        top = HEAD + place // COLUMNS * (TILE + CAPTION + GAP)
        tile = _tile(example)
        sheet.paste(_FRAME, (left, top, left + TILE, top + TILE))
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        height, across = example["image"].shape[:2]
        pen.text((left, top + TILE + 2), _fitting(class_names[example["label"]], small, TILE), _INK, small)
        pen.text((left, top + TILE + 17), f"{index}: {across} x {height}", _FAINT, small)
    return sheet


def _tile(example: Mapping[str, Any]) -> Image.Image:
    photo = Image.fromarray(np.asarray(example["image"]))
    width, height = (max(1, round(side * TILE / max(photo.size))) for side in photo.size)
    tile = photo.resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(tile)
    sides = np.array([tile.height, tile.width])
    if "parts" in example:
        for (y, x), visible in zip(example["parts"] * sides, example["part_visible"], strict=True):
            if visible:
                pen.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), _PART, _INK)
    if "box" in example:
        ymin, xmin, ymax, xmax = np.clip(example["box"] * np.tile(sides, 2), 0, np.tile(sides - 1, 2))
        pen.rectangle((xmin, ymin, xmax, ymax), outline=_BOX, width=2)
    return tile


def _fitting(text: str, font: Any, width: int) -> str:
    """The text, cut so that it takes no more pixels."""
    text = one_line(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
