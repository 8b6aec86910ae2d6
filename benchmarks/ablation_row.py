"""One row of the ablation: trained by the project's own loop, its last checkpoint measured under several regions."""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.evaluation.classification import rank
from c2f_jax.evaluation.evaluate import metric_sums
from c2f_jax.evaluation.localization import best_ious, max_box_accuracy
from c2f_jax.evaluation.metrics import Sums, finalise, merge
from c2f_jax.kernels import area, compose, contains, invert, iou
from c2f_jax.models.two_looks import (
    Look,
    Region,
    attention_over_image,
    central_boxes,
    learned_region,
    log_probabilities,
    two_looks,
)
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.loop import environment, train_and_evaluate
from c2f_jax.training.losses import Task
from c2f_jax.training.steps import predict

CENTRAL_SIDES = tuple(i / 10 for i in range(4, 11))  # of the coarse view
KAPPAS = tuple(round(1.7 + 0.3 * i, 1) for i in range(8))  # 1.7 to 3.8: of the box of the attention
MAP_SIZE = 128  # cells a side of the mean attention over the image, for MaxBoxAccV2
OF_BOXES = ("area", "iou", "parts_inside")  # known by image
FOLLOWED = (  # over training
    *(f"{view}/top_1_accuracy" for view in ("coarse", "fine", "fused")),
    *(f"gradient/attention_by_{way}" for way in ("class", "box")),
    *(f"box/{name}" for name in ("mean_area", "mean_iou", "parts_inside")),
    "attention/overlap",
)


class Part(NamedTuple):
    """What was measured on a part of the data.

    Attributes:
        metrics: as in `results.json`.
        right: by view, bool [N] in the part's order.
        boxes: of the fine view's box, by what is known of it, [N] in 0 to 1; as in `look`.
        map_ious: best overlap by image and threshold [N, T], or None without attention or boxes.
    """

    metrics: dict[str, float]
    right: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]
    map_ious: np.ndarray | None

    def line(self) -> dict[str, Any]:
        """What a JSON line holds of it."""
        return {
            "metrics": self.metrics,
            "right": {view: np.packbits(values).tobytes().hex() for view, values in self.right.items()},
            **{name: np.rint(255 * values).astype(np.uint8).tobytes().hex() for name, values in self.boxes.items()},
        }


def train_and_measure(config: Any, workdir: Path, *, root: Path) -> dict[str, Any]:
    """Trains (or goes on), and measures the last checkpoint.

    Args:
        config: all fields of `configs/default.py`; with a validation part, which chooses the central box, kappa and
            the thresholds.
        workdir: of the run.
        root: of the repository, whose commit is told.

    Returns:
        What is known of the run, for a JSON line. `regions` holds the test metrics under "own" (the model's box; none
        looks twice for the baseline), "central" (the best fixed box of the coarse view), "object" (the annotated box;
        None where there is none), "attention" (Coarse2Fine's, of a network that was neither taught nor tested with
        it: WS-DAN's; None for others) and "resized" (Coarse2Fine's with the kappa of most overlap on the validation
        part: whether a box lies well, apart from how large it is; None without attention or annotated boxes), and
        "shared" (the model's own box, but running statistics that both kinds of view share; None without a fine stage).
        With them, by image in test order and in hexadecimal: `right`, whether the likeliest class was the true one by
        each view, eight to a byte, first bit highest, filled up with zeros; `area`, `iou` and `parts_inside` of the
        fine view's box in 255ths, a byte each, as far as they are known.

    Raises:
        ValueError: without a validation part.
    """
    source = source_state(root)  # of the code that is loaded, whatever is committed while it trains
    results = train_and_evaluate(config, workdir)
    run = build(config)
    if not len(run.splits.validation):
        raise ValueError("the central box and the thresholds are chosen on a validation part; there is none")
    step, read = read_latest(workdir, run.abstract_model)
    params, batch_stats = read["params"], read["batch_stats"]

    own = partial(jax.jit(partial(look, run.task)), params, batch_stats)
    central = partial(jax.jit(partial(look_at_centre, run.task)), params, batch_stats)
    side, chosen_by = choose_side(run, central)
    validation, test = (measure(run.evaluation_batches(part), own) for part in (run.splits.validation, run.splits.test))
    fixed = measure(run.evaluation_batches(run.splits.test), partial(central, side))
    mapping = params.get("inverse_mapping", {})
    known, resized, kappa, by_kappa = None, None, None, {}
    if "box" in run.splits.test[0]:
        at_object = partial(jax.jit(partial(look_at_object, run.task)), params, batch_stats)
        known = measure(run.evaluation_batches(run.splits.test), at_object)
        if "kappa" in mapping:
            at_kappa = partial(jax.jit(partial(look_at_attention, run.task)), params, batch_stats)
            kappa, by_kappa = choose_kappa(run, at_kappa)
            resized = measure(run.evaluation_batches(run.splits.test), partial(at_kappa, kappa))
    soft = None
    if config.method == "wsdan":
        at_attention = partial(jax.jit(partial(look_at, run.task, region=learned_region)), params, batch_stats)
        soft = measure(run.evaluation_batches(run.splits.test), at_attention)
    shared = None
    if run.stages[-1].name == "fine":
        with_shared = partial(jax.jit(partial(look, run.task)), params, share_statistics(batch_stats))
        shared = measure(run.evaluation_batches(run.splits.test), with_shared)
    boxes = None
    if validation.map_ious is not None and test.map_ious is not None:
        boxes = max_box_accuracy(validation.map_ious, test.map_ious)._asdict()
    per_step = config.train.batch_size / len(run.splits.train)
    return {
        **source,
        **environment(),
        "train_images": len(run.splits.train),
        "test_images": len(run.splits.test),
        "view_size": config.model.view_size,
        "epochs": sum(stage.steps for stage in run.stages) * per_step,
        "steps": step,
        "train_seconds": results["train_seconds"],
        "seconds": results["seconds"],
        "train_views": sum(stage.steps * views_of(stage.name, config) for stage in run.stages) * per_step,
        "parameters": results["parameters"],
        "kappa": float(jax.nn.softplus(mapping["kappa"])) if "kappa" in mapping else None,
        "overlap_at_start": overlap_at_start(run),
        "history": history(workdir),
        "max_box_accuracy": boxes,
        "validation": validation.metrics,
        "regions": {
            "own": test.line(),
            "central": {"side": side, "validation_by_side": chosen_by, **fixed.line()},
            "object": None if known is None else known.line(),
            "attention": None if soft is None else soft.line(),
            "shared": None if shared is None else shared.line(),
            "resized": None if resized is None else {"kappa": kappa, "validation_by_kappa": by_kappa, **resized.line()},
        },
    }


def views_of(stage: str, config: Any) -> int:
    """Views forward and backward, per image, in a step of the stage."""
    return {"coarse": 1, "fine": 3 if config.loss.drop_view else 2, "wsdan": 3}[stage]


def overlap_at_start(run: Run) -> float | None:
    """`attention/overlap` on the validation part before the first step; None without attention maps.

    Each batch is normalised by its own statistics, as in training's first step: running ones have seen no view yet.
    """
    state = run.create_state()

    @jax.jit
    def sums_of(params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> Sums:
        return metric_sums(look_untrained(run.task, params, batch_stats, batch), batch)

    total: Sums | None = None
    for batch in run.evaluation_batches(run.splits.validation):
        total = merge(total, sums_of(state.params, state.batch_stats, batch))
    return finalise(total or {}).get("attention/overlap")


def share_statistics(batch_stats: dict[str, Any]) -> dict[str, Any]:
    """Both kinds of view normalised by the mean of their running statistics: what one set that every look moves would
    hold, but for how fast it forgets. Training is the same with either, since it normalises by the batch."""
    mean = jax.tree.map(lambda *values: sum(values) / len(values), *batch_stats.values())
    return dict.fromkeys(batch_stats, mean)


def look_untrained(task: Task, params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> dict[str, Look]:
    """The coarse look in tests before the first step, normalised by the statistics of the batch itself."""
    return two_looks(
        task.network,
        params,
        batch_stats,
        batch["image"],
        central_boxes(jnp.full((len(batch["image"]), 2), task.test_side)),
        region=None,
        view_size=task.view_size,
        fine_size=task.fine_size,
        prepare=task.normalise,
        train=True,
    )


def history(workdir: Path) -> dict[str, list[dict[str, float]]]:
    """From the run's log: by evaluation of the validation part the metrics of `FOLLOWED`, by logged training step the
    gradients' norms and the accuracies; each entry with its step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        part: [
            {name: value for name, value in line.items() if name == "step" or name in FOLLOWED}
            for line in lines
            if line["split"] == part
        ]
        for part in ("train", "validation")
    }


def look(task: Task, params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> tuple[Sums, dict[str, jax.Array]]:
    """All metrics of a batch, and by example: "right/<view>" bool [B]; of the fine view's box, where there is one, its
    `area` [B], and where they are known its `iou` with the object's and the share of visible `parts_inside` (0 where
    none is visible); and with attention maps `attention` over the image.

    Args:
        task: what is evaluated, with its own rule for the second look.
        params, batch_stats: of the train state.
        batch: as for `eval_step`.
    """
    looks = predict(task, params, batch_stats, batch)
    examples = {f"right/{view}": rank(values, batch["label"]) < 1 for view, values in log_probabilities(looks).items()}
    if "fine" in looks:
        box = looks["fine"].box
        examples["area"] = area(box)
        if "box" in batch:
            examples["iou"] = iou(box, batch["box"])
        if "parts" in batch:
            visible = batch["part_visible"]
            inside = jnp.sum(contains(box, batch["parts"]) * visible, axis=-1)
            examples["parts_inside"] = inside / jnp.maximum(jnp.sum(visible, axis=-1), 1)
    if "attention_maps" in looks["coarse"].out:
        examples["attention"] = attention_over_image(looks["coarse"], MAP_SIZE)
    return metric_sums(looks, batch), examples


def look_at(
    task: Task, params: Any, batch_stats: Any, batch: dict[str, jax.Array], *, region: Region
) -> tuple[Sums, dict[str, jax.Array]]:
    """`look` with a second look by another rule than the task's; without attention."""
    sums, examples = look(replace(task, test_region=region), params, batch_stats, batch)
    return sums, {name: values for name, values in examples.items() if name != "attention"}


def look_at_centre(
    task: Task, params: Any, batch_stats: Any, side: jax.Array, batch: dict[str, jax.Array]
) -> tuple[Sums, dict[str, jax.Array]]:
    """`look_at` the middle of the coarse view, `side` of it long (an argument: compiled once)."""
    boxes = central_boxes(jnp.full((len(batch["label"]), 2), side))
    return look_at(task, params, batch_stats, batch, region=lambda out, view: compose(view, boxes))


def look_at_attention(
    task: Task, params: Any, batch_stats: Any, kappa: jax.Array, batch: dict[str, jax.Array]
) -> tuple[Sums, dict[str, jax.Array]]:
    """`look_at` Coarse2Fine's box with another kappa (an argument: compiled once)."""
    mapping = {**params["inverse_mapping"], "kappa": jnp.log(jnp.expm1(kappa))}  # softplus makes it kappa
    return look_at(task, {**params, "inverse_mapping": mapping}, batch_stats, batch, region=learned_region)


def look_at_object(
    task: Task, params: Any, batch_stats: Any, batch: dict[str, jax.Array]
) -> tuple[Sums, dict[str, jax.Array]]:
    """`look_at` the object's annotated box: what a perfect localisation would give this network."""
    boxes = object_boxes(task, batch)
    return look_at(task, params, batch_stats, batch, region=lambda out, view: compose(view, boxes))


def object_boxes(task: Task, batch: dict[str, jax.Array]) -> jax.Array:
    """The annotated boxes [B, 4] in the coordinates of the coarse view in tests."""
    view = compose(batch["window"], central_boxes(jnp.full((len(batch["image"]), 2), task.test_side)))
    return compose(invert(view), batch["box"])


def measure(batches: Iterable[dict[str, jax.Array]], step: Any) -> Part:
    """All of a part: sums of the metrics, and what is known by example, without the filling. step: batch -> `look`."""
    total: Sums | None = None
    found: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        sums, examples = step(batch)
        total = merge(total, sums)
        counted = np.asarray(batch["mask"]) > 0
        examples = {name: np.asarray(values)[counted] for name, values in examples.items()}
        if "attention" in examples:
            maps = examples.pop("attention")
            if "box" in batch:
                examples["map_ious"] = best_ious(maps, np.asarray(batch["box"])[counted])
        for name, values in examples.items():
            found.setdefault(name, []).append(values)
    whole = {name: np.concatenate(values) for name, values in found.items()}
    right = {name.removeprefix("right/"): values for name, values in whole.items() if name.startswith("right/")}
    boxes = {name: whole[name] for name in OF_BOXES if name in whole}
    return Part(finalise(total or {}), right, boxes, whole.get("map_ious"))


def choose_side(run: Run, step: Any) -> tuple[float, dict[str, float]]:
    """(the side of most fused validation accuracy, of equals the one of least loss; accuracies by side)."""
    found = {
        side: measure(run.evaluation_batches(run.splits.validation), partial(step, side)).metrics
        for side in CENTRAL_SIDES
    }
    best = max(found, key=lambda side: (found[side]["fused/top_1_accuracy"], -found[side]["fused/loss"]))
    return best, {str(side): metrics["fused/top_1_accuracy"] for side, metrics in found.items()}


def choose_kappa(run: Run, step: Any) -> tuple[float, dict[str, float]]:
    """(the kappa whose boxes overlap most with the annotated ones on the validation part; mean IoU by kappa)."""
    found = {
        kappa: measure(run.evaluation_batches(run.splits.validation), partial(step, kappa)).metrics["box/mean_iou"]
        for kappa in KAPPAS
    }
    return max(found, key=found.__getitem__), {str(kappa): overlap for kappa, overlap in found.items()}


def source_state(root: Path) -> dict[str, Any]:
    """`commit`, and whether the tree is `clean` apart from what the ablation writes itself; None outside of git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git at all
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    written = (":(exclude)benchmarks/results", ":(exclude)docs/results*")
    changes = git("status", "--porcelain", "--", ".", *written)
    return {"commit": git("rev-parse", "HEAD"), "clean": None if changes is None else not changes}
