"""A data set made ready before anything is trained on it: fetched, prepared, counted, and shown."""

from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from c2f_jax import storage
from c2f_jax.console import tell
from c2f_jax.data.sources import Labelled, Splits
from c2f_jax.errors import UserError
from c2f_jax.evaluation import contact_sheet
from c2f_jax.runs.build import load_splits
from c2f_jax.runs.writers import print_rows

SUFFIXES = (".jpg", ".jpeg", ".png")


def prepare(config: Any, output: Path) -> None:
    """Prepares the data set of `config`, prints what is in it, and writes a contact sheet of its training part.

    Raises:
        UserError: if the data cannot be had, or are not whole, or the sheet cannot be written.
    """
    storage.check_name("--output", output)
    if output.suffix.lower() not in SUFFIXES or storage.is_dir(output):
        raise UserError(f"--output is a picture, {' or '.join(SUFFIXES)}; got {output}")
    storage.check_writable("--output", output.parent)
    splits = load_splits(config)
    for note in splits.notes:
        tell(note)
    name, classes = config.dataset.name, f"{len(splits.class_names)} classes"
    published = splits.published.get("classes")
    title = f"{name}: {classes}" + (f" (published: {published})" if published else "")
    print_rows(title, ("", "train", "validation", "test"), table(splits))
    counts = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
    told = ", ".join(f"{count} {part}" for part, count in counts.items())
    sheet = contact_sheet.draw(
        cast(Labelled, splits.train), splits.class_names, f"{name}: {classes}; {told}; here: train"
    )
    _save(sheet, output)
    tell(f"{output}: the contact sheet")


def table(splits: Splits) -> list[tuple[str, ...]]:
    """Rows: what, then of each part."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    columns = [_facts(splits, name, cast(Labelled, source)) for name, source in parts.items()]
    found = [(what, *(facts.get(what, "") for facts in columns)) for what in columns[0]]
    return [row for row in found if any(row[1:])]


def _facts(splits: Splits, part: str, source: Labelled) -> dict[str, str]:
    facts = {"images": f"{len(source):,}", "published": _published(splits, part)}
    if not len(source):
        return facts
    counts, example = np.bincount(source.labels), source[0]
    sizes, of = getattr(source, "sizes", None), ""
    if sizes is None:  # nobody knows without decoding
        indices = contact_sheet.chosen(source.labels)
        sizes, of = np.array([source[int(index)]["image"].shape[:2] for index in indices]), f" (of {len(indices)})"
    height, width = np.median(sizes, axis=0).astype(int)
    return facts | {
        "classes": str(np.count_nonzero(counts)),
        "images of a class": _range(counts[counts > 0]),
        "median width x height": f"{width} x {height}{of}",
        "width": _range(sizes[:, 1]),
        "height": _range(sizes[:, 0]),
        "boxes": "yes" if "box" in example else "no",
        "annotated parts": str(len(example["parts"])) if "parts" in example else "no",
    }


def _published(splits: Splits, part: str) -> str:
    """What should be there, and whether it is; the validation part is set aside from the training part."""
    count = splits.published.get(part)
    if count is None:
        return ""
    there = len(splits.test) if part == "test" else len(splits.train) + len(splits.validation)
    aside = " with validation" if part == "train" and len(splits.validation) else ""
    return f"{count:,}{aside}" + ("" if there == count else f", not {there:,}")


def _range(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _save(sheet: Image.Image, output: Path) -> None:
    picture = BytesIO()
    sheet.save(picture, "PNG" if output.suffix.lower() == ".png" else "JPEG", quality=88)
    storage.write_bytes(output, picture.getvalue())
