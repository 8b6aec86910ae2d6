"""docs/results.md and its plots, from the ablation's JSON lines alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks import lines as json_lines

Records = dict[tuple[str, int], dict[str, Any]]  # (row, seed) -> the line

SEEDS_OF_A_CLAIM = 5
RESAMPLES = 10_000
VIEWS = {"coarse": "#5b6770", "fine": "#c77700", "fused": "#1b5fa8"}  # colours of the plot
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
ABSENT = "–"
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


class Difference(NamedTuple):
    """A contrast's outcome, in fractions (of the test images, or of what is shown of a box).

    Attributes:
        mean: over images and seeds.
        seeds: how many.
        by_image: 95 % interval by the bootstrap over images and seeds.
        by_seed: 95 % interval by Student's t over the seeds' means; None for one seed.
        weighted: whether images count for as many parts as they show, and not all alike.
    """

    mean: float
    seeds: int
    by_image: tuple[float, float]
    by_seed: tuple[float, float] | None
    weighted: bool = False


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


def unpack(text: str, count: int) -> np.ndarray:
    """Hexadecimal, eight examples to a byte -> bool [count]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def paired_bootstrap(
    differences: np.ndarray, weights: np.ndarray | None = None, *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds and images, both drawn with replacement.

    Args:
        differences: [S, N], one model's correctness (or box) minus the other's on the same seed and image.
        weights: of the images in each mean, [N] above 0; None for equal ones.
        resamples: how many means to draw.

    Returns:
        The 2.5th and 97.5th percentile of the means; the draws are the same at each call.

    References:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals); seeds and images
        as crossed factors: Owen 2007, arXiv:0712.1111 (the pigeonhole bootstrap).
    """
    rng = np.random.default_rng(0)
    seeds, images = differences.shape
    weights = np.ones(images) if weights is None else weights

    def mean(rows: np.ndarray, columns: np.ndarray) -> float:
        return np.average(differences[rows].mean(axis=0)[columns], weights=weights[columns])

    means = [mean(rng.integers(seeds, size=seeds), rng.integers(images, size=images)) for _ in range(resamples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def t_interval(means: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of `means` [S], S at least 2, by Student's t: of what other seeds would give."""
    half = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    return float(np.mean(means) - half), float(np.mean(means) + half)


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
    means = np.average(stacked, axis=1, weights=weights)
    return Difference(
        float(means.mean()),
        len(stacked),
        paired_bootstrap(stacked, weights, resamples=resamples),
        t_interval(means) if len(stacked) > 1 else None,
        weights is not None,
    )


def reading(outcome: Difference) -> str:
    """What may be said of a difference: nothing that one of its intervals leaves open."""
    if outcome.seeds < SEEDS_OF_A_CLAIM:
        return f"no claim: {outcome.seeds} of {SEEDS_OF_A_CLAIM} seeds"
    lows, highs = zip(outcome.by_image, outcome.by_seed or outcome.by_image, strict=True)
    return "higher" if min(lows) > 0 else "lower" if max(highs) < 0 else "not told apart"


def mean_sd(values: Sequence[float | None], digits: int, scale: float = 1.0) -> str:
    """Mean ± standard deviation over seeds (the mean alone for one seed), a dash where nothing was measured."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return ABSENT
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {np.std(known, ddof=1):.{digits}f}"


def metric(records: Sequence[Mapping[str, Any]], name: str, region: str = "own") -> list[float | None]:
    """A test metric under a region, by seed; None where the row has no such region or metric."""
    return [(record["regions"].get(region) or {"metrics": {}})["metrics"].get(name) for record in records]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    rule = "|" + "---|" * len(header)
    return ["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows), ""]


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


def _contrast(contrast: Contrast, outcome: Difference | None) -> list[str]:
    labels = LABELS if outcome is None or outcome.weighted else LABELS | BY_IMAGE
    sides = [f"`{side.row}` {labels.get(side.view, side.view)}{REGIONS[side.region]}" for side in contrast[1:]]
    if outcome is None:
        return [contrast.name, *sides, ABSENT, ABSENT, ABSENT, "0", "not run"]

    def points(interval: tuple[float, float] | None) -> str:
        return ABSENT if interval is None else " to ".join(f"{100 * end:+.1f}" for end in interval)

    intervals = (points(outcome.by_image), points(outcome.by_seed))
    return [contrast.name, *sides, f"{100 * outcome.mean:+.1f}", *intervals, str(outcome.seeds), reading(outcome)]


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
        "--config.model.pretrained=FILE --config.seed=SEED`. Changed: the tree held more than the commit.",
        ["flags", "seeds", "commit"],
        _origin,
    ),
]


TRAINING_TEXT = (
    "Every row at its first seed. Above: the fine view's mean area and its IoU with the bird's box on the validation "
    "part. Below: the norm of the gradient that reaches an example's attention maps through the classes and through "
    "the box (fine stages alone have both; the box's is 0 where it is detached)."
)


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
        _plot(known, folder / f"{stem}.png")
        _plot_training(known, folder / f"{stem}_training.png")


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


def _plot(known: dict[str, list[dict[str, Any]]], path: Path) -> None:
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


def _plot_training(known: dict[str, list[dict[str, Any]]], path: Path) -> None:
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
