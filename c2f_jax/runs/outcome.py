"""What is made of the scores of a run's parts: calibrated figures, intervals, the gate's curve, tables of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c2f_jax.evaluation.classes import confusion_rows, per_class_rows
from c2f_jax.evaluation.fusion import Fusion, calibrated_scores, figures, gate_curve
from c2f_jax.evaluation.intervals import bootstrap, judge
from c2f_jax.evaluation.scores import Scores
from c2f_jax.runs import fusion, none_of_these, spreadsheets

CONFUSION, PER_CLASS = "confusion.csv", "per_class.csv"


def views(scores: Scores, how: Fusion | None) -> dict[str, np.ndarray]:
    """Log probabilities [N, C] of all views and of the answers that `how` makes of them, if there is one."""
    return scores.values | (calibrated_scores(scores, how) if how is not None and len(scores) else {})


class Outcome(NamedTuple):
    """What the end of a run finds; made by `of_run`.

    Attributes:
        figures: classification figures of the calibrated answers.
        results: further entries of `results.json`: `fusion`, `intervals` and, after two looks, `gate`.
        fitted: what is in `fusion.json`.
        unknown: what is in `unknown.json`, or None.
        answers: predicted labels of the test part [N].
        labels: true ones.
    """

    figures: dict[str, float]
    results: dict[str, Any]
    fitted: dict[str, Any]
    unknown: dict[str, Any] | None
    answers: np.ndarray
    labels: np.ndarray

    def write(self, workdir: Path, class_names: Sequence[str]) -> None:
        """All files but `results.json`."""
        tables = workdir / CONFUSION, workdir / PER_CLASS
        write_classes(self.answers, self.labels, class_names, *tables)
        fusion.write(workdir, self.fitted)
        if self.unknown is not None:
            none_of_these.write(workdir, self.unknown)

    def told(self) -> list[str]:
        """Lines for the console."""
        lines = [fusion.told(self.fitted)]
        if self.unknown is not None:
            threshold = self.unknown["threshold"]
            for part in ("validation", "test"):
                lines.append(none_of_these.told(self.unknown[part], threshold, f"{part}, none of these"))
        return lines


def of_run(validation: Scores, test: Scores, *, groups: Sequence[str] | None, step: int) -> Outcome:
    """Everything that the end of a run fits on the validation part and says of the test part.

    Args:
        validation: may be empty.
        test: of one image or more.
        groups: of the test images, where they are known.
        step: of the parameters.
    """
    fitted = fusion.fitted(validation, step=step)
    how = fusion.answers_of(fitted)
    return Outcome(
        calibrated_figures(test, how),
        {
            "fusion": {name: fitted[name] for name in (*Fusion._fields, "fitted_on", "images")},
            "intervals": intervals(test, how, groups),
            **gate(how, validation=validation, test=test),
        },
        fitted,
        None if how is None else none_of_these.fit(validation, test, fusion=how, step=step),
        answers(test, how),
        test.labels,
    )


def answers(scores: Scores, how: Fusion | None) -> np.ndarray:
    """Predicted labels [N]."""
    return next(reversed(views(scores, how).values())).argmax(axis=-1)


def calibrated_figures(scores: Scores, how: Fusion | None) -> dict[str, float]:
    """The classification figures of the answers that `how` makes of the looks, by view; none if it is None."""
    found = calibrated_scores(scores, how) if how is not None and len(scores) else {}
    return {
        f"{view}/{name}": value
        for view, values in found.items()
        for name, value in figures(values, scores.labels).items()
    }


def intervals(scores: Scores, how: Fusion | None, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """`evaluation.intervals.bootstrap` of all views' figures. groups: of each image, where they are known."""
    return bootstrap({view: judge(values, scores.labels) for view, values in views(scores, how).items()}, groups)


def gate(how: Fusion | None, **parts: Scores) -> dict[str, Any]:
    """`gate`: by part, its curve; nothing of one look, or where nothing was fitted."""
    if how is None or not all("fine" in part.values for part in parts.values()):
        return {}
    return {"gate": {name: gate_curve(part, how) for name, part in parts.items()}}


def write_classes(
    answers: np.ndarray, labels: np.ndarray, class_names: Sequence[str], confused: Path, per_class: Path
) -> None:
    """The two tables of classes.

    Args:
        answers: predicted labels, int [N].
        labels: true ones, int [N].
        class_names: by label.
        confused: the file of `evaluation.classes.confusion_rows`.
        per_class: that of `per_class_rows`.
    """
    spreadsheets.write(confused, confusion_rows(answers, labels, class_names))
    spreadsheets.write(per_class, per_class_rows(answers, labels, class_names))
