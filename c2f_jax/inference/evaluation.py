"""A finished run measured on other labelled photos: all of a tree or table, whatever parts it has."""

import csv
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2f_jax.data import checking, listing
from c2f_jax.data.photos import normalised_box
from c2f_jax.data.pipeline import ImageFile
from c2f_jax.errors import UserError
from c2f_jax.evaluation.confidence import kept
from c2f_jax.evaluation.evaluate import metric_sums
from c2f_jax.evaluation.fusion import calibrated, right_answers
from c2f_jax.evaluation.metrics import Sums, finalise, merge
from c2f_jax.evaluation.scores import batch_scores, joined
from c2f_jax.inference.predict import Model
from c2f_jax.runs.fusion import calibrated_figures
from c2f_jax.runs.none_of_these import told
from c2f_jax.runs.workdir import check_writable, write_json
from c2f_jax.runs.writers import print_table, track
from c2f_jax.training import steps
from c2f_jax.training.losses import Task

REFUSE, SKIP = "refuse", "skip"


def check_outputs(output: Path) -> tuple[Path, Path]:
    """The two files that `evaluate_photos` writes: `output` with the suffix .json, and with .csv.

    Raises:
        UserError: if one of them exists, or they cannot be written.
    """
    stem = output.with_suffix("") if output.suffix in (".json", ".csv") else output
    paths = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".csv")
    for path in paths:
        if path.exists():
            raise UserError(f"--output: {path} exists; choose another name, or move it away")
    check_writable("--output", output.parent)
    return paths


def evaluate_photos(
    model: Model,
    place: Path,
    output: Path,
    *,
    unknown_classes: str = REFUSE,
    mark_unknown: bool = False,
) -> dict[str, Any]:
    """All metrics of `model` on the labelled photos of a tree or a table, as fractions, losses in nats.

    Args:
        model: from `load_model`.
        place: the tree or table; every photo of it is taken, of whatever part.
        output: where the figures and each photo's predictions are written, see `check_outputs` and `header`; they
            appear when they are complete.
        unknown_classes: of photos of classes that the run does not know: "refuse" them, or "skip" and count them.
        mark_unknown: also how many photos the run's threshold for unknown ones keeps.

    Returns:
        What is in the JSON file: the metrics and what they were measured on.

    Raises:
        UserError: if there are no labelled photos that can be used, the output exists, or a class is not known.
        FloatingPointError: if a figure is not finite.
    """
    summary, table = check_outputs(output)
    threshold = model.threshold if mark_unknown else None
    found = listing.read(place)
    items, skipped = _known(found, model.class_names, place, model.workdir, unknown_classes)
    for note in found.notes:
        print(note)
    if skipped:
        print(f"left out, of classes that the run does not know: {_counted(skipped)}")
    rows: list[list[str]] = []
    errors: dict[str, str] = {}
    sure: list[float] = []
    right: list[bool] = []
    total: Sums | None = None
    scores: list[dict[str, np.ndarray]] = []
    program = jax.jit(partial(evaluation_step, model.task))
    boxes = all(item.box is not None for item in items)
    position = iter(track(items, total=len(items), what="evaluate"))
    for files, batch in model.batches([found.root / item.path for item in items]):
        chunk = [next(position) for _ in files]
        batch |= _annotations(place, chunk, files, len(batch["image"]), model.class_names, boxes=boxes)
        sums, said = model.run(program, batch)
        total = merge(total, sums)
        scores.append(said)
        said = {view: said[view] for view in model.views if view in said}
        if model.fusion is not None:
            said["calibrated"] = np.asarray(calibrated(said, model.fusion))
        said["right"] = right_answers(said[model.views[-1]], batch["label"])
        for i, (item, file) in enumerate(zip(chunk, files, strict=True)):
            if file.error is not None:
                errors[item.path] = file.error
            values = {name: value[i] for name, value in said.items()}
            rows.append(row(item, file.error, values, model, threshold))
            if file.error is None:
                sure.append(float(np.exp(values[model.views[-1]].max())))
                right.append(bool(values["right"]))
    for line in checking.unreadable_lines({item.path: _verdict(item.path, errors) for item in items}):
        print(line)
    if len(errors) == len(items):
        first = min(errors)
        raise UserError(f"{place}: none of the {len(items)} images can be read; the first is {first} ({errors[first]})")
    assert total is not None
    metrics = finalise(total) | calibrated_figures(joined(scores), model.fusion)
    broken = [name for name, value in metrics.items() if not np.isfinite(value)]
    if broken:
        raise FloatingPointError(f"the evaluation is not finite: {', '.join(broken)}")
    counts = Counter(item.label for item in items if item.path not in errors)
    results = {
        **metrics,
        "images": len(sure),
        "unreadable": len(errors),
        "classes": len(counts),
        "images_by_class": dict(sorted(counts.items())),
        "left_out": dict(sorted(skipped.items())),
        "of": str(place.expanduser().resolve()),
        "run": str(model.workdir.expanduser().resolve()),
        "step": model.step,
        "method": model.config.method,
    }
    if threshold is not None:
        results["unknown"] = {"threshold": threshold, **kept(np.array(sure), np.array(right), threshold)}
    _write(table, header(model.views, threshold), rows)
    write_json(summary, results)
    print_table(f"{place}, {model.config.method}, step {model.step}", metrics)
    print(
        f"{len(sure)} images of {len(counts)} of the run's {len(model.class_names)} classes"
        + (f"; {len(errors)} unreadable" if errors else "")
    )
    if threshold is not None:
        print(told(results["unknown"], threshold, "none of these"))
    print(f"{summary}, {table}")
    return results


def evaluation_step(
    task: Task, params: Any, batch_stats: dict[str, Any], batch: dict[str, jax.Array]
) -> tuple[Sums, dict[str, jax.Array]]:
    """Pure: a batch as of `eval_step` -> (its metrics, its `batch_scores`)."""
    looks = steps.predict(task, params, batch_stats, batch)
    return metric_sums(looks, batch), batch_scores(looks, batch)


def header(views: Sequence[str], threshold: float | None = None) -> list[str]:
    """Columns: file, its class, the predicted one, whether it is right; by view the likeliest class, its probability
    and that of the true class; whether it is unknown, where that was asked; an error at the end."""
    columns = ["file", "class", "predicted", "right"]
    for view in reversed(views):  # the fused answer first
        columns += [f"{view}_1", f"{view}_1_probability", f"{view}_class_probability"]
    return [*columns, *(["unknown"] if threshold is not None else []), "error"]


def row(
    item: listing.Listed, error: str | None, said: dict[str, np.ndarray], model: Model, threshold: float | None
) -> list[str]:
    """One photo's fields, empty where there is nothing to say."""
    views, asked = model.views, threshold is not None
    if error is not None:
        return [item.path, item.label, *[""] * (2 + 3 * len(views) + asked), error]
    label, best = model.class_names.index(item.label), said[views[-1]]
    fields = [item.path, item.label, model.class_names[int(best.argmax())], "yes" if said["right"] else "no"]
    for view in reversed(views):
        likeliest, probabilities = int(said[view].argmax()), np.exp(said[view])
        fields += [model.class_names[likeliest], *(f"{probabilities[i]:.4f}" for i in (likeliest, label))]
    if threshold is not None:
        fields.append("yes" if np.exp(best.max()) < threshold else "no")
    return [*fields, ""]


def _known(
    found: listing.Listing, class_names: Sequence[str], place: Path, workdir: Path, unknown_classes: str
) -> tuple[list[listing.Listed], Counter[str]]:
    """(photos of the run's classes, how many there are of each other class)."""
    known = set(class_names)
    items = [item for item in found.items if item.label in known]
    others = Counter(item.label for item in found.items if item.label not in known)
    if others and not items:
        raise UserError(
            f"{place}: none of its {len(others)} classes is one of {workdir}: {_counted(others)}; "
            f"the run knows {listing.some(class_names)}"
        )
    if others and unknown_classes != SKIP:
        raise UserError(
            f"{place}: {len(others)} classes that {workdir} does not know: {_counted(others)}; rename or remove them, "
            "or leave them out with --unknown_classes=skip"
        )
    if not items:
        raise UserError(f"{place}: holds no labelled image")
    return items, others


def _counted(classes: Counter[str]) -> str:
    return listing.some(f"{name} ({count})" for name, count in sorted(classes.items()))


def _annotations(
    place: Path,
    items: Sequence[listing.Listed],
    files: Sequence[ImageFile],
    size: int,
    class_names: Sequence[str],
    *,
    boxes: bool,
) -> dict[str, np.ndarray]:
    """`label`, `mask` and, if all photos have one, `box` of a batch of `size`; filling and unreadable ones masked."""
    label, mask = np.zeros(size, np.int32), np.zeros(size, np.float32)
    box = np.tile(np.array([0, 0, 1, 1], np.float32), (size, 1))
    for i, (item, file) in enumerate(zip(items, files, strict=True)):
        if file.error is None:
            label[i], mask[i] = class_names.index(item.label), 1.0
            if boxes:
                box[i] = normalised_box(place, item, checking.Verdict(None, file.height, file.width))
    return {"label": label, "mask": mask} | ({"box": box} if boxes else {})


def _verdict(path: str, errors: dict[str, str]) -> checking.Verdict:
    return checking.Verdict(errors.get(path))


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    partial_path = path.with_name(path.name + ".part")
    with partial_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    partial_path.replace(path)
