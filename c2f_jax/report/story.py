"""Gathered -> what the template shows: numbers as text, charts, and which images are worth a look."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from c2f_jax.evaluation.intervals import bootstrap
from c2f_jax.evaluation.outcomes import Outcomes, answer_of, by_class, difference, reliability, right
from c2f_jax.report import charts
from c2f_jax.report.choice import Choice, choose
from c2f_jax.report.gather import Gathered
from c2f_jax.report.pictures import Picture, draw

ROWS = 300  # classes in the table

VIEWS = {
    "coarse": "first look",
    "fine": "second look",
    "fused": "both looks",
    "calibrated_coarse": "first look, calibrated",
    "calibrated": "both, calibrated",
}
METRICS = {
    "top_1_accuracy": "accuracy",
    "top_5_accuracy": "top 5",
    "mean_per_class_accuracy": "mean of classes",
    "calibration_error": "calibration error",
    "loss": "loss",
}
FIGURES = {
    "attention/overlap": "cosine of two maps of an image",
    "attention/part_hit": "share of images whose attention peaks near a part",
    "box/mean_area": "area of the second look's box, of the photo",
    "box/share_of_view": "area of the second look's box, of the first look",
    "box/mean_iou": "overlap of the box with the object's (IoU)",
    "box/whole_image_iou": "overlap of the whole photo with the object's box",
    "box/middle_inside": "share of boxes that hold the middle of the object's",
    "box/parts_inside": "share of the object's parts inside the box",
}
METHODS = {
    "baseline": "average pooling, one look",
    "attention": "attention, looks again at an untrained region",
    "wsdan": "WS-DAN",
    "coarse2fine": "Coarse2Fine",
    "random_box": "control: trained on random boxes",
}


@dataclass(frozen=True)
class Card:
    """One image: its picture and what was said of it; `lines` by view: (view, class, probability, right)."""

    picture: Picture
    truth: str
    lines: tuple[tuple[str, str, str, bool], ...]
    right: bool
    caption: str = ""


@dataclass(frozen=True)
class Pair:
    """Images of class `true` that were taken for class `told`, and images of that class that were known."""

    true: str
    told: str
    count: int
    share: str
    mistaken: tuple[Card, ...]
    known: tuple[Card, ...]


def percent(value: float, digits: int = 1) -> str:
    """0.8123 -> "81.2 %"."""
    return f"{100.0 * value:.{digits}f} %"


def view_name(view: str, views: Iterable[str]) -> str:
    """In words; of one look alone "the look"."""
    if list(views) == ["coarse"]:
        return "the only look"
    return VIEWS.get(view, view)


def tell(run: Gathered) -> dict[str, Any]:
    """All that the template needs of one run."""
    outcomes = run.outcomes
    told: dict[str, Any] = {
        "name": run.name,
        "method": run.config.method,
        "method_words": METHODS.get(run.config.method, run.config.method),
        "dataset": run.config.dataset.name,
        "step": run.step,
        "notes": run.notes,
        "facts": facts(run),
        "settings": settings(run.config),
        "curves": training_curves(run.log),
        "results": results_table(run),
        "drawn_by": drawn_by(run),
        "others": other_figures(run.metrics),
        "classes": len(run.class_names),
    }
    if outcomes is None or run.splits is None:
        return told
    choice = choose(outcomes)
    pictures = draw(run.model, run.splits.test, sorted(choice.all()), with_maps=choice.maps)

    def cards(indices: Iterable[int], caption: Any = None) -> tuple[Card, ...]:
        return tuple(_card(run, outcomes, pictures[i], caption(i) if caption else "") for i in indices)

    answer = answer_of(outcomes.views)
    told |= {
        "images": len(outcomes.labels),
        "answer": view_name(answer, outcomes.views),
        "reliability": _reliability(outcomes),
        "gate": _gate(run),
        "second": _second_look(outcomes, run.groups, choice, cards),
        "table": class_table(run, outcomes),
        "pairs": _pairs(run, outcomes, choice, cards),
        "worst": cards(choice.worst),
        "best": cards(choice.best),
        "maps": cards(choice.maps) if pictures[choice.maps[0]].maps else (),
        "num_maps": run.config.model.num_maps,
        "boxes": _boxes(run, outcomes, choice, cards),
    }
    return told


def _card(run: Gathered, outcomes: Outcomes, picture: Picture, caption: str) -> Card:
    i, answer = picture.index, answer_of(outcomes.views)
    lines = tuple(
        (
            view_name(view, outcomes.views),
            run.class_names[int(said.predicted[i])],
            percent(float(said.confidence[i]), 0),
            bool(said.others[i] < 1),
        )
        for view, said in outcomes.views.items()
        if view in ("coarse", "fine", answer)
    )
    known = bool(outcomes.views[answer].others[i] < 1)
    return Card(picture, run.class_names[int(outcomes.labels[i])], lines, known, caption)


# --- What the run was. ---


def facts(run: Gathered) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, (name, value)...) of the run, its data, its machine."""
    results, config = run.results, run.config
    about = [("method", f"{config.method}: {METHODS.get(config.method, '')}"), ("backbone", config.model.backbone)]
    about += [("first weights", config.model.pretrained or config.init_from or "none: from scratch")]
    if "parameters" in results:
        about.append(("parameters", f"{results['parameters']:,}".replace(",", "\u202f")))
    about += [("seed", str(config.seed)), ("step of the checkpoint", str(run.step))]
    if "seconds" in results:
        about.append(("time in all", _duration(results["seconds"])))
        about.append(("of it in steps", _duration(results.get("train_seconds", 0.0))))
        about.append(("training images per second", f"{results.get('images_per_second', 0.0):.0f}"))
    data = [("data set", config.dataset.name)]
    data += [("path", str(config.dataset.path))] if config.dataset.path else []
    data.append(("classes", str(len(run.class_names))))
    if run.splits is not None:
        for part in ("train", "validation", "test"):
            data.append((f"{part} images", str(len(getattr(run.splits, part)))))
    data += [
        ("raw image", f"{config.dataset.raw_size} pixels" + (", squeezed" if not config.augment.keep_aspect else "")),
        ("first look", f"{config.model.view_size} pixels"),
    ]
    if config.method != "baseline":
        data.append(("second look", f"{config.region.view_size or config.model.view_size} pixels"))
    machine = [("device", f"{results['device_count']} × {results['device']}")] if "device" in results else []
    machine += [(name, str(version)) for name, version in results.get("versions", {}).items()]
    found = [("Run", about), ("Data", data), ("Machine and versions", machine)]
    return [(heading, rows) for heading, rows in found if rows]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def settings(config: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, (field, value)...), in the config's order."""
    stored = json.loads(config.to_json())
    alone = [(name, json.dumps(value)) for name, value in stored.items() if not isinstance(value, dict)]
    groups = [
        (name, [(key, json.dumps(entry, ensure_ascii=False)) for key, entry in value.items()])
        for name, value in stored.items()
        if isinstance(value, dict)
    ]
    return [("", alone), *groups]


# --- How it went. ---


def training_curves(log: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(heading, SVG, what it shows in words) of loss, accuracy and learning rate over all stages."""
    train = [event for event in log if event["split"] == "train"]
    validation = [event for event in log if event["split"] == "validation"]
    if not train:
        return []
    stages: list[tuple[str, float]] = []
    begins = 0
    for event in train:
        if not stages or stages[-1][0] != str(event.get("stage", "")):
            stages.append((str(event.get("stage", "")), begins))
        begins = event["step"]
    stages = stages if len(stages) > 1 else []

    def series(events: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
        points = [(event["step"], event[name]) for event in events if isinstance(event.get(name), int | float)]
        return [x for x, _ in points], [y for _, y in points]

    found = []
    for key, heading, options in (
        ("loss", "Loss", {"log": True}),
        ("top_1_accuracy", "Accuracy", {"percent": True}),
    ):
        drawn: list[charts.Line] = []
        for view in ("coarse", "fine", "fused"):
            for events, part, style in ((train, "train", "-"), (validation, "validation", "--")):
                x, y = series(events, f"{view}/{key}")
                if x:
                    drawn.append((f"{VIEWS[view]}, {part}", x, y, charts.COLOURS[view], style))
        if not drawn and (points := series(train, key))[0]:
            drawn.append(("train", *points, charts.COLOURS["coarse"], "-"))
        if drawn:
            svg = charts.lines(drawn, xlabel="step", ylabel=heading.lower(), salt=key, stages=stages, **options)
            ends = ", ".join(f"{name} {_figure(key, y[-1])}" for name, _, y, _, _ in drawn)
            found.append((heading, svg, f"{heading} over {train[-1]['step']} steps. At the end: {ends}."))
    x, y = series(train, "learning_rate")
    if x:
        drawn = [("learning rate", x, y, charts.SERIES[4], "-")]
        svg = charts.lines(drawn, xlabel="step", ylabel="learning rate", salt="rate", stages=stages)
        found.append(("Learning rate", svg, f"Learning rate over the steps, {max(y):.2g} at most."))
    return found


def _figure(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "loss" else percent(value)


# --- What came of it. ---


@dataclass(frozen=True)
class Cell:
    """A figure and, where known, its 95 % interval."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Results:
    """Columns, and rows of (view, cells)."""

    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)


def intervals(run: Gathered) -> dict[str, tuple[float, float]]:
    """95 % intervals by metric: the run's own; of one that has not ended, or of an earlier version, made here."""
    if run.has_ended and "intervals" in run.results:
        found = run.results["intervals"]["of"]
    else:
        found = bootstrap(run.outcomes.views, run.groups)["of"] if run.outcomes is not None else {}
    return {name: (low, high) for name, (low, high) in found.items()}


def drawn_by(run: Gathered) -> str:
    """What the intervals' bootstrap draws, in words."""
    stored = run.results.get("intervals", {}).get("by") if run.has_ended else None
    by_group = run.groups is not None if stored is None else stored == "group"
    return "whole groups of images" if by_group else "images"


def results_table(run: Gathered) -> Results:
    """Views in rows, metrics in columns."""
    known = intervals(run)
    views = [view for view in VIEWS if f"{view}/top_1_accuracy" in run.metrics]
    rows = []
    for view in views:
        cells = []
        for metric in METRICS:
            name = f"{view}/{metric}"
            if name not in run.metrics:
                cells.append(Cell("–"))
                continue
            ends = [_figure(metric, end) for end in known[name]] if name in known else []
            cells.append(Cell(_figure(metric, run.metrics[name]), " to ".join(ends)))
        rows.append((view_name(view, views), cells))
    return Results(list(METRICS.values()), rows)


def other_figures(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Of boxes and attention."""
    return [
        (FIGURES.get(name, name.replace("/", ": ").replace("_", " ")), f"{value:.3f}")
        for name, value in metrics.items()
        if name.startswith(("box/", "attention/"))
    ]


def _reliability(outcomes: Outcomes) -> dict[str, Any]:
    bins = {view: reliability(said) for view, said in outcomes.views.items() if view != "calibrated_coarse"}
    drawn = [(view_name(view, bins), found, charts.COLOURS.get(view, charts.SERIES[4])) for view, found in bins.items()]
    answer = answer_of(outcomes.views)
    rows = [
        (f"{number / len(bins[answer]):.0%} to {(number + 1) / len(bins[answer]):.0%}", one)
        for number, one in enumerate(bins[answer])
        if one is not None
    ]
    return {
        "chart": charts.reliability(drawn, salt="reliability"),
        "rows": [(where, one.images, percent(one.confidence), percent(one.accuracy)) for where, one in rows],
    }


def _gate(run: Gathered) -> dict[str, Any] | None:
    """Of `results.json`: a run that has ended, of two looks, with a validation part."""
    curve = run.results.get("gate", {}).get("test") if run.has_ended else None
    if not curve:
        return None
    x, y = [point["second_looks"] for point in curve], [point["top_1_accuracy"] for point in curve]
    chart = charts.lines(
        [("", x, y, charts.COLOURS["calibrated"], "-")],
        xlabel="share of images looked at twice",
        ylabel="accuracy",
        percent=True,
        shares=True,
        salt="gate",
    )
    gates = [min(1.0, point["gate"]) for point in curve]
    rows = [(percent(gate), percent(share, 0), percent(right)) for gate, share, right in zip(gates, x, y, strict=True)]
    return {"chart": chart, "rows": rows}


def _second_look(outcomes: Outcomes, groups: Sequence[str] | None, choice: Choice, cards: Any) -> dict[str, Any] | None:
    if "fine" not in outcomes.views:
        return None
    one, both = outcomes.views["coarse"], outcomes.views[answer_of(outcomes.views)]
    first, answer = right(one), right(both)
    gain, low, high = difference(one, both, groups)
    return {
        "both": int(np.sum(first & answer)),
        "fixed": int(np.sum(~first & answer)),
        "broke": int(np.sum(first & ~answer)),
        "neither": int(np.sum(~first & ~answer)),
        "gain": f"{100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})",
        "fixed_cards": cards(choice.fixed),
        "broke_cards": cards(choice.broke),
    }


def class_table(run: Gathered, outcomes: Outcomes) -> dict[str, Any]:
    """Accuracy by class, the worst first: up to `ROWS` of them; and a chart of all."""
    counts = by_class(outcomes, len(run.class_names))
    seen = np.flatnonzero(counts.images)
    views = [view for view in VIEWS if view in counts.right and view != "calibrated_coarse"]
    accuracy = {view: counts.right[view][seen] / counts.images[seen] for view in views}
    thin = np.unique(np.linspace(0, len(seen) - 1, 201).round().astype(int))  # of 8,000 classes
    answer = answer_of(outcomes.views)
    order = np.argsort(accuracy[answer], kind="stable")
    rows = [
        {
            "name": run.class_names[seen[i]],
            "images": int(counts.images[seen[i]]),
            "values": [(percent(accuracy[view][i], 0), round(100 * accuracy[view][i], 1)) for view in views],
        }
        for i in order[:ROWS]
    ]
    drawn = [
        (
            view_name(view, views),
            (thin / max(1, len(seen) - 1)).tolist(),
            np.sort(accuracy[view])[thin].tolist(),
            charts.COLOURS.get(view, charts.SERIES[4]),
            "-",
        )
        for view in views
        if view in ("coarse", answer)
    ]
    chart = charts.lines(
        drawn,
        xlabel="classes, from the worst to the best",
        ylabel="accuracy",
        percent=True,
        shares=True,
        salt="classes",
    )
    return {
        "chart": chart,
        "views": [view_name(view, views) for view in views],
        "rows": rows,
        "seen": len(seen),
        "left_out": max(0, len(seen) - ROWS),
        "unseen": len(run.class_names) - len(seen),
    }


def _pairs(run: Gathered, outcomes: Outcomes, choice: Choice, cards: Any) -> list[Pair]:
    images = np.bincount(outcomes.labels, minlength=len(run.class_names))
    return [
        Pair(
            run.class_names[true],
            run.class_names[told],
            count,
            percent(count / images[true], 0),
            cards(mistaken),
            cards(known),
        )
        for true, told, count, mistaken, known in choice.pairs
    ]


def _boxes(run: Gathered, outcomes: Outcomes, choice: Choice, cards: Any) -> dict[str, Any] | None:
    overlap = outcomes.overlap
    if overlap is None:
        return None
    mean = float(np.mean(overlap))
    chart = charts.histogram(
        overlap, xlabel="overlap with the object's box (IoU)", ylabel="images", salt="iou", marks=[("mean", mean)]
    )
    rows = [("mean", f"{mean:.3f}")]
    rows += [(f"share of {level} or more", percent(float(np.mean(overlap >= level)))) for level in (0.3, 0.5, 0.7)]
    if "box/whole_image_iou" in run.metrics:
        rows.append(("mean of a box of the whole image", f"{run.metrics['box/whole_image_iou']:.3f}"))

    def caption(i: int) -> str:
        return f"IoU {overlap[i]:.2f}"

    return {"chart": chart, "rows": rows, "far": cards(choice.far, caption), "near": cards(choice.near, caption)}
