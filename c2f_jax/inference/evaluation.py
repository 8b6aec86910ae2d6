"""A finished run measured on other labelled photos: all of a tree or table, whatever parts it has."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2f_jax import storage
from c2f_jax.console import tell
from c2f_jax.data import checking, listing, splitting
from c2f_jax.data.photos import normalised_box
from c2f_jax.data.pipeline import ImageFile
from c2f_jax.errors import UserError, as_text
from c2f_jax.evaluation.confidence import kept
from c2f_jax.evaluation.evaluate import metric_sums
from c2f_jax.evaluation.fusion import calibrated, right_answers
from c2f_jax.evaluation.intervals import Judged, bootstrap, figures_of, judge, together
from c2f_jax.evaluation.metrics import Sums, finalise, merge
from c2f_jax.evaluation.scores import batch_scores
from c2f_jax.inference.predict import Model, answer_of
from c2f_jax.runs import outcome, spreadsheets
from c2f_jax.runs.none_of_these import told
from c2f_jax.runs.workdir import write_json
from c2f_jax.runs.writers import print_table, track
from c2f_jax.storage import check_writable
from c2f_jax.training import steps
from c2f_jax.training.losses import Task

REFUSE, SKIP = "refuse", "skip"


def check_outputs(output: Path) -> tuple[Path, Path, Path, Path]:
    """The files that `evaluate_photos` writes: `output` with the suffix .json, with .csv, .confusion.csv and
    .per_class.csv.

    Raises:
        UserError: if one of them exists, or they cannot be written.
    """
    output = (
        Path(storage.resolved(output)) if output.name in ("", "..") else output
    )  # "." has no name to add a suffix to
    stem = output.with_suffix("") if output.suffix in (".json", ".csv") else output
    summary, table, confused, per_class = (
        stem.with_name(f"{stem.name}.{name}") for name in ("json", "csv", outcome.CONFUSION, outcome.PER_CLASS)
    )
    for path in (summary, table, confused, per_class):
        storage.check_name("--output", path)
        if storage.exists(path):
            raise UserError(f"--output: {path} exists; choose another name, or move it away")
    check_writable("--output", output.parent)
    return summary, table, confused, per_class


def evaluate_photos(
    model: Model,
    place: Path,
    output: Path,
    *,
    unknown_classes: str = REFUSE,
    mark_unknown: bool = False,
    fast: bool = False,
    gate: float | None = None,
) -> dict[str, Any]:
    """All metrics of `model` on the labelled photos of a tree or a table, as fractions, losses in nats.

    Args:
        model: from `load_model`.
        place: the tree or table; every photo of it is taken, of whatever part.
        output: where the figures and each photo's predictions are written, see `check_outputs` and `header`; they
            appear when they are complete.
        unknown_classes: of photos of classes that the run does not know: "refuse" them, or "skip" and count them.
        mark_unknown: also how many photos the run's threshold for unknown ones keeps.
        fast, gate: as of `Model.predict`; then with classification metrics alone: `coarse` of the first look, and
            `calibrated` or, with a gate, `gated` of the answers.

    Returns:
        What is in the JSON file: the metrics, their intervals, and what they were measured on.

    Raises:
        UserError: if there are no labelled photos that can be used, the output exists, or a class is not known.
        FloatingPointError: if a figure is not finite.
    """
    summary, table, *tables = check_outputs(output)
    model.check_gate(fast=fast, gate=gate)
    threshold = model.threshold(fast=fast, gate=gate) if mark_unknown else None
    found = listing.read(place)
    items, skipped = _known(found, model.class_names, place, model.workdir, unknown_classes)
    for note in found.notes:
        tell(note)
    if skipped:
        tell(f"left out, of classes that the run does not know: {_counted(skipped)}")
    views, gated = model.views_by(fast=fast), gate is not None
    rows: list[list[str]] = []
    errors: dict[str, str] = {}
    seen: dict[str, list[Judged]] = defaultdict(list)  # by view
    twice = 0
    sums: list[Sums] = []
    if fast or gated:
        looked = _by_answers(model, found.root, items, fast=fast, gate=gate)
    else:
        if 0 < (boxless := sum(item.box is None for item in items)) < len(items):
            tell(f"{boxless} of {len(items)} images have no box: boxes are not used")
        looked = _by_both_looks(model, place, found.root, items, sums)
    for item, (error, values) in zip(track(items, total=len(items), what="evaluate"), looked, strict=True):
        rows.append(row(item, error, values, views, model.class_names, threshold, looks=gated))
        if error is not None:
            errors[item.path] = error
            continue
        twice += "fine" in values
        if gated:
            values = {"coarse": values["coarse"], "gated": values[answer_of(values)]}
        label = np.array([model.class_names.index(item.label)])
        for view, of_view in values.items():
            if np.isnan(of_view).any():
                raise FloatingPointError(f"the evaluation is not finite: {view} of {item.path}")
            seen[view].append(judge(of_view[None], label))
    for line in checking.unreadable_lines({item.path: _verdict(item.path, errors) for item in items}):
        tell(line)
    if len(errors) == len(items):
        first = min(errors)
        raise UserError(f"{place}: none of the {len(items)} images can be read; the first is {first} ({errors[first]})")
    judged = {view: together(parts) for view, parts in seen.items()}
    metrics = finalise(reduce(merge, sums)) if sums else {}
    for view, images in judged.items():
        metrics |= {f"{view}/{name}": value for name, value in figures_of(images).items()}
    broken = [name for name, value in metrics.items() if not np.isfinite(value)]
    if broken:
        raise FloatingPointError(f"the evaluation is not finite: {', '.join(broken)}")
    counts = Counter(item.label for item in items if item.path not in errors)
    answers = judged["gated" if gated else views[-1]]
    readable = [item for item in items if item.path not in errors]
    results = {
        **metrics,
        "intervals": bootstrap(judged, _groups(readable, model.config.dataset.group_by)),
        "images": len(readable),
        "unreadable": len(errors),
        "classes": len(counts),
        "images_by_class": dict(sorted(counts.items())),
        "left_out": dict(sorted(skipped.items())),
        "of": as_text(storage.resolved(place)),
        "run": as_text(storage.resolved(model.workdir)),
        "step": model.step,
        "method": model.config.method,
        **({"fast": True} if fast else {}),
        **({"gate": gate, "second_looks": twice / len(readable)} if gated else {}),
    }
    if threshold is not None:
        results["unknown"] = {"threshold": threshold, **kept(answers.confidence, answers.others < 1, threshold)}
    spreadsheets.write(table, [header(views, threshold, looks=gated), *rows])
    outcome.write_classes(answers.predicted, answers.labels, model.class_names, *tables)
    write_json(summary, results)
    print_table(f"{place}, {model.config.method}, step {model.step}", metrics)
    tell(
        f"{len(readable)} images of {len(counts)} of the run's {len(model.class_names)} classes"
        + (f"; {len(errors)} unreadable" if errors else "")
        + (f"; {results['second_looks']:.0%} looked at again" if gated else "")
    )
    if threshold is not None:
        tell(told(results["unknown"], threshold, "none of these"))
    tell(", ".join(str(path) for path in (summary, table, *tables)))
    return results


Looked = Iterator[tuple[str | None, dict[str, np.ndarray]]]  # by photo: why it cannot be read, log probabilities [C]


def _by_answers(model: Model, root: Path, items: Sequence[listing.Listed], *, fast: bool, gate: float | None) -> Looked:
    for file, said in model.said([storage.join(root, item.path) for item in items], fast=fast, gate=gate):
        with np.errstate(divide="ignore"):
            yield file.error, {view: np.log(said[view]) for view in model.views if view in said}


def _by_both_looks(model: Model, place: Path, root: Path, items: Sequence[listing.Listed], sums: list[Sums]) -> Looked:
    """sums: gets the metrics of each batch, as (sum, count) pairs."""
    program = jax.jit(partial(evaluation_step, model.task))
    boxes, position = all(item.box is not None for item in items), iter(items)
    for files, batch in model.batches([storage.join(root, item.path) for item in items]):
        chunk = list(islice(position, len(files)))
        batch |= _annotations(place, chunk, files, len(batch["image"]), model.class_names, boxes=boxes)
        of_batch, scores = model.run(program, batch)
        sums.append(of_batch)
        values = {view: scores[view] for view in model.views if view in scores}
        if model.fusion is not None:
            values["calibrated"] = np.asarray(calibrated(values, model.fusion))
            if "fine" in values:
                values["calibrated_coarse"] = np.asarray(calibrated({"coarse": values["coarse"]}, model.fusion))
        for i, file in enumerate(files):
            yield file.error, {view: value[i] for view, value in values.items()}


def _groups(items: Sequence[listing.Listed], group_by: str) -> list[str] | None:
    """Of each photo, by its table or as the run's were grouped; None where no photo has one."""
    pattern = splitting.compile_pattern(group_by)
    groups = [item.group or (pattern and splitting.group_of(pattern, item.path)) for item in items]
    if not any(groups):
        return None
    return [group or item.path for group, item in zip(groups, items, strict=True)]


def evaluation_step(
    task: Task, params: Any, batch_stats: dict[str, Any], batch: dict[str, jax.Array]
) -> tuple[Sums, dict[str, jax.Array]]:
    """Pure: a batch as of `eval_step` -> (its metrics, its `batch_scores`)."""
    looks = steps.predict(task, params, batch_stats, batch)
    return metric_sums(looks, batch), batch_scores(looks, batch)


def header(views: Sequence[str], threshold: float | None = None, *, looks: bool = False) -> list[str]:
    """Columns: file, its class, the predicted one, whether it is right; by view the likeliest class, its probability
    and that of the true class; whether it is unknown and how many looks there were, where asked; an error at the end.
    """
    columns = ["file", "class", "predicted", "right"]
    for view in reversed(views):  # the answer first
        columns += [f"{view}_1", f"{view}_1_probability", f"{view}_class_probability"]
    return [*columns, *(["unknown"] if threshold is not None else []), *(["looks"] if looks else []), "error"]


def row(
    item: listing.Listed,
    error: str | None,
    said: dict[str, np.ndarray],
    views: Sequence[str],
    class_names: Sequence[str],
    threshold: float | None,
    *,
    looks: bool = False,
) -> list[str]:
    """One photo's fields, empty where there is nothing to say. said: log probabilities [C] by view."""
    asked = (threshold is not None) + looks
    if error is not None:
        return [item.path, item.label, *[""] * (2 + 3 * len(views) + asked), error]
    label, best = class_names.index(item.label), said[answer_of(said)]
    right = right_answers(best[None], np.array([label]))[0]
    fields = [item.path, item.label, class_names[int(best.argmax())], "yes" if right else "no"]
    for view in reversed(views):
        if view not in said:
            fields += [""] * 3
            continue
        likeliest, probabilities = int(said[view].argmax()), np.exp(said[view])
        fields += [class_names[likeliest], *(f"{probabilities[i]:.4f}" for i in (likeliest, label))]
    if threshold is not None:
        fields.append("yes" if np.exp(best.max()) < threshold else "no")
    return [*fields, *(["2" if "fine" in said else "1"] if looks else []), ""]


def _known(
    found: listing.Listing, class_names: Sequence[str], place: Path, workdir: Path, unknown_classes: str
) -> tuple[list[listing.Listed], Counter[str]]:
    """(photos of the run's classes, how many there are of each other class)."""
    known = {name: name for name in class_names}
    for name in class_names:
        known.setdefault(name.strip(), name)  # a table's cells are read without the spaces around
    items = [item._replace(label=known[item.label]) for item in found.items if item.label in known]
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
