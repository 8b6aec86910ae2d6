"""One row of the ablation: trained by the project's own loop, its last checkpoint measured under several regions."""

import json
import subprocess
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lines import pack
from c2f_jax.evaluation.classification import rank
from c2f_jax.evaluation.evaluate import metric_sums
from c2f_jax.evaluation.localization import best_ious, max_box_accuracy
from c2f_jax.evaluation.metrics import Sums, finalise, masked, merge
from c2f_jax.kernels import area, compose, contains, invert, iou, soft_box
from c2f_jax.models.two_looks import (
    Look,
    attention_over_image,
    central_boxes,
    learned_region,
    log_probabilities,
    look,
    two_looks,
)
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.loop import environment, train_and_evaluate
from c2f_jax.training.losses import Batch, Task

# What the validation part chooses from; `regions_of` gives each a name.
CENTRAL = {i / 10: f"central {i / 10}" for i in range(4, 11)}  # by side, of the coarse view
RESIZED = {kappa: f"resized {kappa}" for kappa in (1.7, 2.0, 2.3, 2.6, 2.9, 3.2, 3.5, 3.8)}
MAP_SIZE = 128  # cells a side of the mean attention over the image, for MaxBoxAccV2
OF_BOXES = ("area", "iou", "parts_inside")  # known by image
FOLLOWED = (  # over training
    *(f"{view}/top_1_accuracy" for view in ("coarse", "fine", "fused")),
    *(f"gradient/attention_by_{way}" for way in ("class", "box")),
    *(f"box/{name}" for name in ("mean_area", "mean_iou", "parts_inside")),
    "attention/overlap",
)
REGIONS = ("own", "central", "object", "attention", "shared", "resized")  # of the second look in tests
Found = tuple[Sums, dict[str, jax.Array]]  # of a batch: sums of its metrics, and what is known by example
Looks = Callable[[Any, Batch, Iterable[str]], dict[str, Found]]  # batch statistics, batch, names -> by name


class First(NamedTuple):
    """The first look at a batch, and what follows from it before any second one.

    Attributes:
        coarse: its box in raw coordinates.
        boxes: of `regions_of`.
        overlaps: with the annotated boxes, of each of these.
        attention: over the image, [B, MAP_SIZE, MAP_SIZE]; None without attention or annotated boxes.
    """

    coarse: Look
    boxes: dict[str, jax.Array | None]
    overlaps: Sums
    attention: jax.Array | None


class Part(NamedTuple):
    """What was measured on a part of the data under a region.

    Attributes:
        metrics: as in `results.json`; `box/parts_inside` is the share of all visible parts.
        right: by view, bool [N] in the part's order.
        boxes: of the fine view's box, by what is known of it, [N] in 0 to 1; as in `second_look`.
        visible: how many parts of each image are, int [N]: the weights with which the mean of `boxes["parts_inside"]`
            is that of `metrics`. None where parts are not known.
        map_ious: best overlap by image and threshold [N, T], or None without attention or boxes.
    """

    metrics: dict[str, float]
    right: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]
    visible: np.ndarray | None
    map_ious: np.ndarray | None

    def line(self) -> dict[str, Any]:
        """What a JSON line holds of it."""
        return {
            "metrics": self.metrics,
            "right": {view: pack(values) for view, values in self.right.items()},
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
        fine view's box in 255ths, a byte each, as far as they are known. Beside the regions `parts_visible`, a byte
        for each image (None where parts are not known; older lines lack it): its weight in `box/parts_inside`, which
        counts parts and not images.

    Raises:
        ValueError: without a validation part.
    """
    source = source_state(root)  # of the code that is loaded, whatever is committed while it trains
    results = train_and_evaluate(config, workdir)
    run = build(config)
    if not len(run.splits.validation):
        raise ValueError("the central box and the thresholds are chosen on a validation part; there is none")
    step, model = read_latest(workdir, run.abstract_model)
    looks = looks_of(run.task, model["params"])

    validation = on_validation(run, looks, model["batch_stats"])
    by_side = {side: validation[name].metrics for side, name in CENTRAL.items()}
    # Of equals the one of least loss.
    side = max(by_side, key=lambda side: (by_side[side]["fused/top_1_accuracy"], -by_side[side]["fused/loss"]))
    overlaps = validation["overlaps"].metrics
    by_kappa = {kappa: overlaps[name] for kappa, name in RESIZED.items() if name in overlaps}
    kappa = max(by_kappa, key=by_kappa.__getitem__, default=None)

    test = on_test(run, looks, model["batch_stats"], side=side, kappa=kappa)
    regions = dict.fromkeys(REGIONS) | {name: part.line() for name, part in test.items()}
    accuracies = {str(side): metrics["fused/top_1_accuracy"] for side, metrics in by_side.items()}
    regions["central"] = {"side": side, "validation_by_side": accuracies, **regions["central"]}
    if kappa is not None:
        by_name = {str(kappa): overlap for kappa, overlap in by_kappa.items()}
        regions["resized"] = {"kappa": kappa, "validation_by_kappa": by_name, **regions["resized"]}
    chosen_by, known = validation["own"].map_ious, test["own"].map_ious
    boxes = None if chosen_by is None or known is None else max_box_accuracy(chosen_by, known)._asdict()
    mapping, visible = model["params"].get("inverse_mapping", {}), test["own"].visible
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
        "overlap_at_start": validation["untrained"].metrics.get("attention/overlap"),
        "history": history(workdir),
        "max_box_accuracy": boxes,
        "validation": validation["own"].metrics,
        "parts_visible": None if visible is None else visible.astype(np.uint8).tobytes().hex(),
        "regions": regions,
    }


def views_of(stage: str, config: Any) -> int:
    """Views forward and backward, per image, in a step of the stage."""
    return {"coarse": 1, "fine": 3 if config.loss.drop_view else 2, "wsdan": 3}[stage]


def on_validation(run: Run, looks: Looks, batch_stats: Any) -> dict[str, Part]:
    """All that is told of the validation part: "own", and of `looks_of` what the best side and kappa are chosen by;
    and "untrained", the first look before the first step.

    That one is normalised batch by batch by its own statistics, as in training's first step: running ones have seen no
    view yet.
    """
    state = run.create_state()

    @jax.jit
    def untrained(params: Any, batch_stats: Any, batch: Batch) -> Sums:
        return metric_sums(look_untrained(run.task, params, batch_stats, batch), batch)

    def step(batch: Batch) -> dict[str, Found]:
        found = looks(batch_stats, batch, ("own", *CENTRAL.values(), "overlaps"))
        return found | {"untrained": (untrained(state.params, state.batch_stats, batch), {})}

    return measure(run.evaluation_batches(run.splits.validation), step)


def on_test(run: Run, looks: Looks, batch_stats: Any, *, side: float, kappa: float | None) -> dict[str, Part]:
    """The test part under those of `REGIONS` that there are; kappa: None for no "resized"."""
    names = {"own": "own", "central": CENTRAL[side], "object": "object"}
    if kappa is not None:
        names["resized"] = RESIZED[kappa]
    if run.config.method == "wsdan":
        names["attention"] = "attention"
    shared = share_statistics(batch_stats) if run.stages[-1].name == "fine" else None

    def step(batch: Batch) -> dict[str, Found]:
        looked = looks(batch_stats, batch, names.values())
        found = {region: looked[name] for region, name in names.items() if name in looked}
        if shared is not None:
            found["shared"] = looks(shared, batch, ("own",))["own"]
        return found

    return measure(run.evaluation_batches(run.splits.test), step)


def share_statistics(batch_stats: dict[str, Any]) -> dict[str, Any]:
    """Both kinds of view normalised by the mean of their running statistics: what one set that every look moves would
    hold, but for how fast it forgets. Training is the same with either, since it normalises by the batch."""
    mean = jax.tree.map(lambda *values: sum(values) / len(values), *batch_stats.values())
    return dict.fromkeys(batch_stats, mean)


def look_untrained(task: Task, params: Any, batch_stats: Any, batch: Batch) -> dict[str, Look]:
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


def regions_of(task: Task, coarse: Look, batch: Batch) -> dict[str, jax.Array | None]:
    """Where a second look can be taken, by name: boxes [B, 4] in raw coordinates.

    "own" by the task's rule (None for no second look); those of `CENTRAL`, squares in the middle of the coarse view;
    with annotated boxes "object", which is what a perfect localisation would give this network; with an inverse mapping
    "attention", Coarse2Fine's box, and, if it knows a kappa, those of `RESIZED`, the same with other kappas.

    Args:
        task: what looks.
        coarse: the first look, its box in raw coordinates.
        batch: as for `eval_step`.
    """
    view, out = coarse.box, coarse.out
    boxes = {"own": None if task.test_region is None else task.test_region(out, view)}
    for side, name in CENTRAL.items():
        boxes[name] = compose(view, central_boxes(jnp.full((len(view), 2), side)))
    if "box" in batch:
        boxes["object"] = compose(view, object_boxes(task, batch))
    if "region" in out:
        boxes["attention"] = learned_region(out, view, side=task.side)
    if "region" in out and not task.side:
        network: Any = task.network
        limits = {name: getattr(network, name) for name in ("min_side", "max_side", "cell_offset")}
        for kappa, name in RESIZED.items():
            boxes[name] = compose(view, soft_box(out["region"], kappa, **limits))
    return boxes


def first_look(task: Task, params: Any, batch_stats: Any, batch: Batch) -> First:
    """The first look in tests, and where second ones can be taken.

    Args:
        task: what looks.
        params, batch_stats: of the train state.
        batch: as for `eval_step`.
    """
    view = central_boxes(jnp.full((len(batch["image"]), 2), task.test_side))
    coarse = look(task.network, params, batch_stats["coarse"], batch["image"], view, **_shown(task, task.view_size))
    boxes, overlaps, attention = regions_of(task, coarse, batch), {}, None
    if "box" in batch:
        for name, box in boxes.items():
            if box is not None:
                overlaps[name] = masked(iou(compose(batch["window"], box), batch["box"]), batch["mask"])
        if "attention_maps" in coarse.out:
            attention = attention_over_image(_in_photo(coarse, batch), MAP_SIZE)
    return First(coarse, boxes, overlaps, attention)


def second_look(
    task: Task, params: Any, batch_stats: Any, batch: Batch, coarse: Look, boxes: jax.Array | None
) -> Found:
    """All metrics of a batch, and by example: "right/<view>" bool [B]; of the fine view's box, where there is one, its
    `area` [B], and where they are known its `iou` with the object's and the share of visible `parts_inside` (0 where
    none is visible); where parts are known how many are `visible` [B].

    Args:
        task, params, batch_stats, batch: as for `first_look`.
        coarse: its first look.
        boxes: where to look again, [B, 4] in raw coordinates; None looks once.
    """
    looks = {"coarse": coarse}
    if boxes is not None:
        shown = _shown(task, task.fine_size)
        looks["fine"] = look(task.network, params, batch_stats["fine"], batch["image"], boxes, **shown)
    looks = {name: _in_photo(seen, batch) for name, seen in looks.items()}
    examples = {f"right/{view}": rank(values, batch["label"]) < 1 for view, values in log_probabilities(looks).items()}
    visible = batch.get("part_visible")
    if visible is not None:
        examples["visible"] = jnp.sum(visible > 0, axis=-1)
    if "fine" in looks:
        box = looks["fine"].box
        examples["area"] = area(box)
        if "box" in batch:
            examples["iou"] = iou(box, batch["box"])
        if visible is not None:
            inside = jnp.sum(contains(box, batch["parts"]) * visible, axis=-1)
            examples["parts_inside"] = inside / jnp.maximum(jnp.sum(visible, axis=-1), 1)
    return metric_sums(looks, batch), examples


def looks_of(task: Task, params: Any) -> Looks:
    """Takes one first look at a batch for all second ones: (batch statistics, batch, names) -> what was found, of those
    names of `regions_of` that there are; "own" with the `attention` over the image, where `First` has it. "overlaps" is
    of all regions, and takes no second look.

    Compiled once for all regions.
    """
    first, second = (jax.jit(partial(of, task)) for of in (first_look, second_look))

    def looks(batch_stats: Any, batch: Batch, names: Iterable[str]) -> dict[str, Found]:
        coarse, boxes, overlaps, attention = first(params, batch_stats, batch)
        found = {name: second(params, batch_stats, batch, coarse, boxes[name]) for name in names if name in boxes}
        if "own" in found and attention is not None:
            found["own"][1]["attention"] = attention
        if "overlaps" in names:
            found["overlaps"] = (overlaps, {})
        return found

    return looks


def _shown(task: Task, size: int) -> dict[str, Any]:
    return {"view_size": size, "prepare": task.normalise, "train": False}


def _in_photo(seen: Look, batch: Batch) -> Look:
    """The same with its box in the photo's coordinates, in which annotations are."""
    return seen._replace(box=compose(batch["window"], seen.box))


def object_boxes(task: Task, batch: Batch) -> jax.Array:
    """The annotated boxes [B, 4] in the coordinates of the coarse view in tests."""
    view = compose(batch["window"], central_boxes(jnp.full((len(batch["image"]), 2), task.test_side)))
    return compose(invert(view), batch["box"])


def measure(batches: Iterable[Batch], step: Callable[[Batch], dict[str, Found]]) -> dict[str, Part]:
    """All of a part, by the names that `step` finds something under: sums of the metrics, and what is known by example,
    without the filling. Each batch is made once for all of them."""
    sums: dict[str, Sums] = {}
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for batch in batches:
        counted = np.asarray(batch["mask"]) > 0
        for name, (more, examples) in step(batch).items():
            sums[name] = merge(sums.get(name), more)
            for about, values in examples.items():
                kept = np.asarray(values)[counted]
                if about == "attention":
                    about, kept = "map_ious", best_ious(kept, np.asarray(batch["box"])[counted])
                found.setdefault(name, {}).setdefault(about, []).append(kept)
    return {name: _part(of, found.get(name, {})) for name, of in sums.items()}


def _part(sums: Sums, found: dict[str, list[np.ndarray]]) -> Part:
    whole = {name: np.concatenate(values) for name, values in found.items()}
    right = {name.removeprefix("right/"): values for name, values in whole.items() if name.startswith("right/")}
    boxes = {name: whole[name] for name in OF_BOXES if name in whole}
    return Part(finalise(sums), right, boxes, whole.get("visible"), whole.get("map_ious"))


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
