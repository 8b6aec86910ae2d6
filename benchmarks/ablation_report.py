"""docs/results.md and its plots, from the ablation's JSON lines alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import lines as json_lines
from benchmarks.ablation_plots import plot, plot_training
from benchmarks.ablation_tables import TABLES, VIEWS
from benchmarks.lines import unpack
from benchmarks.over_seeds import (
    ABSENT,
    RESAMPLES,
    SEEDS_OF_A_CLAIM,
    Difference,
    between,
    compare,
    reading,
    table,
)

Records = dict[tuple[str, int], dict[str, Any]]  # (row, seed) -> the line

# Of the fine view in tests.
REGIONS = {
    "own": "",
    "central": ", central box",
    "object": ", annotated box",
    "attention": ", Coarse2Fine's box",
    "resized": ", at its best kappa",
    "shared": ", shared running statistics",
}
LABELS = {"iou": "IoU", "parts_inside": "parts inside"}  # beside the views
BY_IMAGE = {"parts_inside": "parts inside (mean of images)"}  # where it was not kept how many parts an image shows
LATER = {"region.background": 0.0}  # fields that some lines are older than, with what the program did before


class Shown(NamedTuple):
    """What a contrast takes of a row, image by image: the test region (of `REGIONS`), and a view, right or not;
    or of the fine view's box its "area", its "iou" with the bird's or the share of visible "parts_inside". Of parts
    each image counts for as many as it shows, as in `box/parts_inside`, or all alike where a line is too old to say how
    many (`BY_IMAGE`)."""

    row: str
    region: str
    view: str


class Contrast(NamedTuple):
    """A declared comparison, `one` minus `other`, on the same seeds and images."""

    name: str
    one: Shown
    other: Shown


class Group(NamedTuple):
    """Contrasts under a heading, and what is to be known of them."""

    title: str
    text: str
    contrasts: Sequence[Contrast]


def read_records(path: Path) -> Records:
    """The whole lines of `path`, by row and seed; none if there is no such file.

    Raises:
        ValueError: if a row and seed stand there twice.
    """
    records: Records = {}
    for record in json_lines.read(path):
        key = (record["name"], record["seed"])
        if key in records:
            raise ValueError(f"{path} holds {key[0]}, seed {key[1]} twice")
        records[key] = record
    return records


def of_row(records: Records, name: str) -> list[dict[str, Any]]:
    """The lines of a row, by seed.

    Raises:
        ValueError: if its runs were not made with the same settings.
    """
    rows = [records[key] for key in sorted(records) if key[0] == name]
    if any({**LATER, **row["overrides"]} != {**LATER, **rows[0]["overrides"]} for row in rows):
        raise ValueError(f"the runs of {name} were made with different overrides: they are not one row")
    return rows


def shown_values(record: Mapping[str, Any], shown: Shown) -> np.ndarray | None:
    """What is shown of a line, by image [N], as fractions; None where it was not measured."""
    region = record["regions"].get(shown.region)
    if region is None:
        return None
    if shown.view in VIEWS:
        return unpack(region["right"][shown.view], record["test_images"]).astype(np.float64)
    packed = region.get(shown.view)
    return None if packed is None else np.frombuffer(bytes.fromhex(packed), np.uint8) / 255


def parts_visible(records: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """How many parts each image shows, [N]; None if one of the lines does not say, or another than the first."""
    packed = {record.get("parts_visible") for record in records}
    (text,) = packed if len(packed) == 1 else (None,)
    return None if text is None else np.frombuffer(bytes.fromhex(text), np.uint8).astype(np.float64)


def difference(records: Records, contrast: Contrast, *, resamples: int = RESAMPLES) -> Difference | None:
    """The contrast on the seeds that both rows have; None where there is no such seed."""
    one, other = (
        {seed: (shown_values(record, shown), record) for (name, seed), record in records.items() if name == shown.row}
        for shown in contrast[1:]
    )
    differences, compared = [], []
    for seed in sorted(one.keys() & other.keys()):
        (first, of_first), (second, of_second) = one[seed], other[seed]
        if first is not None and second is not None:
            differences.append(first - second)
            compared += [of_first, of_second]
    if not differences:
        return None
    stacked = np.stack(differences)
    weights = parts_visible(compared) if contrast.one.view == "parts_inside" else None
    if weights is not None:
        stacked, weights = stacked[:, weights > 0], weights[weights > 0]
    return compare(stacked, weights, resamples=resamples)


TRAINING_TEXT = (
    "Every row at its first seed. Above: the fine view's mean area and its IoU with the bird's box on the validation "
    "part. Below: the norm of the gradient that reaches an example's attention maps through the classes and through "
    "the box (fine stages alone have both; the box's is 0 where it is detached)."
)


def _contrast(contrast: Contrast, outcome: Difference | None) -> list[str]:
    labels = LABELS if outcome is None or outcome.weighted else LABELS | BY_IMAGE
    sides = [f"`{side.row}` {labels.get(side.view, side.view)}{REGIONS[side.region]}" for side in contrast[1:]]
    if outcome is None:
        return [contrast.name, *sides, ABSENT, ABSENT, ABSENT, "0", "not run"]

    intervals = (between(outcome.by_image), between(outcome.by_seed))
    return [contrast.name, *sides, f"{100 * outcome.mean:+.1f}", *intervals, str(outcome.seeds), reading(outcome)]


def write_report(
    records: Records,
    names: Sequence[str],
    groups: Sequence[Group],
    folder: Path,
    *,
    stem: str = "results",
    lines: str = "ablation.jsonl",
    flag: str = "",
) -> None:
    """Writes `<stem>.md`, `<stem>.png` and `<stem>_training.png`.

    Args:
        records: of `read_records`.
        names: of the rows, in the order of the tables.
        groups: of the contrasts to be tested.
        folder: for the files.
        stem: of their names.
        lines, flag: the records' file below `benchmarks/results/` and the command's flags, which the page names.
    """
    known = {name: rows for name in names if (rows := of_row(records, name))}
    folder.mkdir(parents=True, exist_ok=True)
    origin = (
        f"Written by `python -m benchmarks.ablation report{flag}` from `benchmarks/results/{lines}`, one line per run;"
    )
    page = _page(records, known, names, groups, stem=stem, origin=origin)
    (folder / f"{stem}.md").write_text("\n".join(page))
    if known:
        plot(known, folder / f"{stem}.png")
        plot_training(known, folder / f"{stem}_training.png")


def _page(
    records: Records,
    known: dict[str, list[dict[str, Any]]],
    names: Sequence[str],
    groups: Sequence[Group],
    *,
    stem: str,
    origin: str,
) -> list[str]:
    lines = [
        "# Does the second look pay?",
        "",
        origin,
        "`benchmarks/ablation.py` declares rows and contrasts. **CUB-50 is the first 50 classes of CUB-200-2011**: no",
        "figure here may stand beside one of 200 classes, and none is the Coarse2Fine paper's (see",
        "[method.md](method.md)).",
        "",
        "All views that these runs were trained on were squeezed, by a fault mended since; those of tests",
        "were not. [findings.md](findings.md#raw-images-and-their-cells) has what that changed.",
        "",
    ]
    if not known:
        return [*lines, "Nothing has been run yet.", ""]
    everything = [record for rows in known.values() for record in rows]

    def all_of(*path: str) -> str:
        """Every value that stands there."""
        found = set()
        for value in everything:
            for key in path:
                value = value[key]
            found.add(str(value))
        return " or ".join(sorted(found))

    packages = ", ".join(f"{name} {all_of('versions', name)}" for name in everything[0]["versions"])
    lines += [
        f"{all_of('train_images')} training and {all_of('test_images')} test images; the last checkpoint, "
        "and within a run nothing is chosen by the test part. "
        f"On {all_of('device_count')} x {all_of('device')}; {packages}.",
        "Mean ± standard deviation over seeds; of one seed the value alone. Seeds by row: "
        + ", ".join(f"{name} {len(rows)}" for name, rows in known.items())
        + ".",
    ]
    missing = [name for name in names if name not in known]
    if missing:
        lines.append(f"Declared and not run yet: {', '.join(missing)}.")
    lines += [
        "Contrasts: percentage points, on the same seeds and images. Two 95 % intervals: of a paired bootstrap over "
        f"images and seeds ({RESAMPLES} resamples), which is too narrow where few seeds differ much, and of Student's "
        "t over the seeds, whose test images are the same. Nothing is claimed that either leaves open, nor with fewer "
        f"than {SEEDS_OF_A_CLAIM} seeds.",
        "",
        f"![Top-1 by row and view]({stem}.png)",
        "",
    ]
    for group in groups:
        lines += [f"## {group.title}", "", group.text, ""]
        lines += table(
            ["contrast", "one", "against", "difference", "by images and seeds", "by seeds", "seeds", "reading"],
            [_contrast(contrast, difference(records, contrast)) for contrast in group.contrasts],
        )
    for title, text, header, cells in TABLES:
        lines += [f"## {title}", "", text, ""]
        lines += table(
            ["row", "n", *header], [[f"`{name}`", str(len(rows)), *cells(rows)] for name, rows in known.items()]
        )
    return [*lines, "## Over training", "", TRAINING_TEXT, "", f"![Over training]({stem}_training.png)", ""]
