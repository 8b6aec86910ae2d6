"""What a report tells of a run, read or measured; nothing in the run's folder is changed."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2f_jax import storage
from c2f_jax.console import warn
from c2f_jax.data import pipeline
from c2f_jax.data.sources import Source, Splits
from c2f_jax.errors import UserError
from c2f_jax.evaluation.classification import classification_sums
from c2f_jax.evaluation.evaluate import metric_sums
from c2f_jax.evaluation.fusion import Fusion, calibrated
from c2f_jax.evaluation.intervals import judge
from c2f_jax.evaluation.metrics import finalise, merge
from c2f_jax.evaluation.outcomes import Outcomes, joined
from c2f_jax.inference.predict import Model, model_of_run
from c2f_jax.kernels import iou, ordered
from c2f_jax.models.two_looks import log_probabilities
from c2f_jax.runs import parallel
from c2f_jax.runs.build import load_splits, raw_images
from c2f_jax.runs.held_out import check_test_part
from c2f_jax.runs.workdir import read_config, resolved
from c2f_jax.runs.writers import track
from c2f_jax.training import steps
from c2f_jax.training.losses import Task

NUMBERS = {"step", "seconds", "train_seconds", "images_per_second", "parameters"}  # of results.json
VIEWS = ("coarse", "fine", "fused", "calibrated_coarse", "calibrated")


@dataclass(frozen=True)
class Gathered:
    """A run, looked at.

    Attributes:
        workdir: its folder.
        config: its own, or as it was looked at with.
        class_names: by label.
        results: what is in `results.json`; empty while it trains.
        log: the lines of `metrics.jsonl`.
        step: of the checkpoint that was looked at.
        model: of that checkpoint.
        splits: its data; None if they cannot be had.
        outcomes: of the test part; None without data.
        metrics: of the test part: measured, or of `results.json` without data.
        notes: what a reader should know before all else.
    """

    workdir: Path
    config: Any
    class_names: tuple[str, ...]
    results: dict[str, Any]
    log: list[dict[str, Any]]
    step: int
    model: Model
    splits: Splits | None
    outcomes: Outcomes | None
    metrics: dict[str, float]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called beside others."""
        return storage.resolved(self.workdir).rstrip("/").rpartition("/")[2]

    @property
    def groups(self) -> Sequence[str] | None:
        """What each test image is one of several of (a board, an animal); None where nothing is known of any."""
        return None if self.splits is None else getattr(self.splits.test, "groups", None)

    @property
    def has_ended(self) -> bool:
        """Whether its training has."""
        return self.results.get("step") == self.step


def gather(workdir: Path, config: Any) -> Gathered:
    """Reads a run, and measures its test part where that can be had.

    Raises:
        UserError: if there is no run or no checkpoint.
    """
    model = model_of_run(workdir, config)
    results, log = read_results(workdir), read_log(workdir / "metrics.jsonl")
    notes: list[str] = []
    splits: Splits | None = None
    outcomes: Outcomes | None = None
    metrics: dict[str, float] = {}
    try:
        splits = load_splits(config)
        notes += [note] if (note := check_test_part(workdir, config, splits)) else []
    except UserError as error:
        if resolved(config.dataset.path) != resolved(read_config(workdir).dataset.path):
            raise  # who names another place wants to see those photos
        splits = None
        notes.append(f"The photos cannot be had, so this report has no pictures: {error}")
        warn(notes[-1])
    if splits is not None and len(splits.test):
        outcomes, metrics = look_at(model, splits.test, f"test part of {workdir}")
    elif splits is not None:
        notes.append("There is no test image, so nothing could be measured.")
    if results.get("step") != model.step:
        notes.append(f"The training has not ended: this is its checkpoint of step {model.step}.")
    if outcomes is None and results.get("step") == model.step:
        metrics = {name: value for name, value in results.items() if "/" in name and isinstance(value, float)}
    return Gathered(
        workdir, config, model.class_names, results, log, model.step, model, splits, outcomes, metrics, tuple(notes)
    )


def look_at(model: Model, source: Source, what: str) -> tuple[Outcomes, dict[str, float]]:
    """Outcomes and all metrics of `source`, which has an image or more."""
    program = jax.jit(partial(_measure, model.task, model.fusion))
    parts, total = [], None
    batch_size = parallel.fitting(model.config.train.eval_batch_size)
    steps_needed = -(-len(source) // batch_size)
    for batch in track(_batches(model, source, batch_size), total=steps_needed, what=what):
        sums, values, overlap = model.run(program, batch)
        total = merge(total, sums)
        real = batch["mask"] > 0
        labels = batch["label"][real]
        views = {view: judge(values[view][real], labels) for view in VIEWS if view in values}  # jit has sorted them
        parts.append(Outcomes(labels, views, None if overlap is None else overlap[real]))
    assert total is not None
    return joined(parts), finalise(total)


def _measure(task: Task, fusion: Fusion | None, params: Any, batch_stats: Any, batch: Any) -> tuple[Any, Any, Any]:
    looks = steps.predict(task, params, batch_stats, batch)
    overlap = iou(ordered(looks["fine"].box), batch["box"]) if "fine" in looks and "box" in batch else None
    scores, sums = log_probabilities(looks), metric_sums(looks, batch)
    answers = {}
    if fusion is not None:
        answers["calibrated"] = calibrated(scores, fusion)
        if "fine" in scores:
            answers["calibrated_coarse"] = calibrated({"coarse": scores["coarse"]}, fusion)
    for view, values in answers.items():
        found = classification_sums(values, batch["label"], batch["mask"])
        sums = {**sums, **{f"{view}/{name}": pair for name, pair in found.items()}}
    return sums, {**scores, **answers}, overlap


def _batches(model: Model, source: Source, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    return pipeline.evaluation_batches(
        source, batch_size=batch_size, raw=raw_images(model.config), process=0, processes=1
    )


def in_batches(model: Model, source: Source, program: Callable[..., Any]) -> Iterator[dict[str, np.ndarray]]:
    """Of each example of `source`, in order, what `program` (compiled; as `Model.run` takes it) says of it."""
    batch_size = parallel.fitting(min(model.config.train.eval_batch_size, len(source)))
    for batch in _batches(model, source, batch_size):
        found = model.run(program, batch)
        for i in np.flatnonzero(batch["mask"] > 0):
            yield {name: value[i] for name, value in found.items()}


def read_results(workdir: Path) -> dict[str, Any]:
    """What a run's end has written; {} if it has not ended. All that is used of it has the right type."""
    path = workdir / "results.json"
    again = "the training command once more writes it anew"
    try:
        found = json.loads(storage.read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from error
    try:
        for name in NUMBERS.intersection(found.keys()):
            float(found[name])
        for low, high in found.get("intervals", {"of": {}})["of"].values():
            float(low), float(high)
        for point in found.get("gate", {"test": []})["test"]:
            float(point["gate"]), float(point["second_looks"]), float(point["top_1_accuracy"])
        dict(found.get("versions", {}))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not what a run writes ({error}); {again}") from error
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; one that a kill has cut off is left out."""
    events = []
    for line in storage.read_text(path, errors="replace").splitlines() if storage.exists(path) else ():
        try:
            event = json.loads(line)
            events.append({**event, "step": int(event["step"]), "split": str(event["split"])})
        except (ValueError, KeyError, TypeError):
            continue
    return events
