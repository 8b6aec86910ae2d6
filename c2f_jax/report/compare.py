"""Several runs side by side: figures, curves, and the settings in which they differ."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from c2f_jax.evaluation.outcomes import answer_of, difference
from c2f_jax.report import charts
from c2f_jax.report.gather import Gathered
from c2f_jax.report.story import METRICS, Cell, intervals, percent, view_name


def side_by_side(runs: Sequence[Gathered]) -> dict[str, Any]:
    """What the template needs of two runs or more; the others are compared with the first."""
    letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(runs))]
    names = [f"{letter}: {run.name}" for letter, run in zip(letters, runs, strict=True)]
    return {
        "names": names,
        "paths": [str(run.workdir) for run in runs],
        "figures": _figures(runs),
        "differences": _differences(runs),
        "curves": _curves(runs, names),
    }


def _answer(run: Gathered) -> str:
    views = [name.split("/")[0] for name in run.metrics if name.endswith("/top_1_accuracy")]
    return answer_of(views) if views else ""


def _figures(runs: Sequence[Gathered]) -> list[tuple[str, list[Cell]]]:
    """(name, a cell of each run)."""
    rows: list[tuple[str, list[Cell]]] = []
    known = [intervals(run) for run in runs]
    answers = [_answer(run) for run in runs]

    def cell(i: int, view: str, metric: str) -> Cell:
        name = f"{view}/{metric}"
        if name not in runs[i].metrics:
            return Cell("–")
        value = runs[i].metrics[name]
        show = "{:.3f}".format if metric == "loss" else percent
        return Cell(show(value), " to ".join(show(end) for end in known[i].get(name, ())))

    rows.append(
        ("answers by", [Cell(view_name(answer, ["coarse", "fine"])) if answer else Cell("–") for answer in answers])
    )
    for metric, words in METRICS.items():
        rows.append((words, [cell(i, answer, metric) for i, answer in enumerate(answers)]))
    for view in ("coarse", "fine"):
        rows.append(
            (
                f"accuracy, {view_name(view, ['coarse', 'fine'])}",
                [cell(i, view, "top_1_accuracy") for i in range(len(runs))],
            )
        )
    rows.append(("accuracy less that of A, paired", [_difference(runs[0], run) for run in runs]))
    rows.append(
        (
            "training time",
            [Cell(f"{run.results['seconds'] / 60:.1f} min") if "seconds" in run.results else Cell("–") for run in runs],
        )
    )
    return [row for row in rows if any(cell.value != "–" for cell in row[1])]


def _difference(first: Gathered, other: Gathered) -> Cell:
    """By images that both were tested on, in the same order; nothing where these are not the same."""
    if first is other or first.outcomes is None or other.outcomes is None:
        return Cell("–")
    same = first.class_names == other.class_names and first.config.dataset.name == other.config.dataset.name
    if not same or not np.array_equal(first.outcomes.labels, other.outcomes.labels):
        return Cell("–", "other test images")
    one, two = (seen.views[answer_of(seen.views)] for seen in (first.outcomes, other.outcomes))
    gain, low, high = difference(one, two, first.groups if other.groups is None else other.groups)
    return Cell(f"{100 * gain:+.1f} points", f"{100 * low:+.1f} to {100 * high:+.1f}")


def _differences(runs: Sequence[Gathered]) -> list[tuple[str, list[str]]]:
    """(field, the value of each run), of the fields in which they differ."""
    flat = []
    for run in runs:
        values: dict[str, str] = {}
        for name, value in json.loads(run.config.to_json()).items():
            entries = (
                {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
            )
            values |= {key: json.dumps(entry, ensure_ascii=False) for key, entry in entries.items()}
        flat.append(values)
    fields = dict.fromkeys(name for values in flat for name in values)
    rows = [(name, [values.get(name, "–") for values in flat]) for name in fields]
    return [row for row in rows if len(set(row[1])) > 1]


def _curves(runs: Sequence[Gathered], names: Sequence[str]) -> list[tuple[str, str]]:
    """(heading, SVG) of the validation part, else of training."""
    found = []
    for key, heading in (("top_1_accuracy", "Accuracy"), ("loss", "Loss")):
        for split in ("validation", "train"):
            drawn: list[charts.Line] = []
            for i, (run, name) in enumerate(zip(runs, names, strict=True)):
                events = [event for event in run.log if event["split"] == split]
                points = []
                for event in events:
                    views = [view for view in ("fused", "coarse") if f"{view}/{key}" in event]
                    points += [(event["step"], event[f"{views[0]}/{key}"])] if views else []
                if points:
                    x, y = [x for x, _ in points], [y for _, y in points]
                    drawn.append(
                        (name, x, y, charts.SERIES[i % len(charts.SERIES)], "-" if i < len(charts.SERIES) else "--")
                    )
            if drawn:
                svg = charts.lines(
                    drawn,
                    xlabel="step",
                    ylabel=heading.lower(),
                    salt=f"compare-{key}",
                    percent=key != "loss",
                    log=key == "loss",
                )
                found.append((f"{heading}, {split} part", svg))
                break
    return found
