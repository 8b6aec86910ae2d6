"""What do the feature maps know of the object's place? A JSON line per network and kind of box.

python -m benchmarks.place WORKDIR        # a finished run with attention, of a data set with annotated boxes

For the network before its first step (published weights, their own statistics) and at its last checkpoint, boxes of the
coarse view in tests, held against the annotated ones cut to that view:

* `central`: the fixed central box of most overlap on the training images;
* `attention`: the network's own, of a run with a `region.side` that square; with it `level`, the mean attention's
  minimum as a share of its maximum;
* `floor 0`, `floor 0.1`, ...: of its mean attention above that `region.floor`, with the kappa of most overlap on
  the training images; `background 1` above its mean (`region.background`), likewise;
* `probe`: cells by a linear regression, from a cell's features alone, of whether its centre lies in the annotated box;
  it is taught by the training images' annotation, so it bounds what a linear map could find without it;
* `cells`: the true cells, the bound that the maps' coarseness sets.

The two last become boxes as the attention does, by mean and sqrt(3) standard deviations of their cells. `iou` is the
mean overlap, `over_half` the share of images over 0.5, `area` the mean share of the view, `size` and `centre` the
correlations over images of the log of the areas, and of the centres (mean of both axes), with the annotation's.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ablation_row import object_boxes
from c2f_jax.kernels import area, compose, invert, iou, region_distribution, soft_box
from c2f_jax.models.two_looks import central_boxes, learned_region
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.workdir import read_config
from c2f_jax.training.losses import Task
from c2f_jax.training.steps import predict

SIDES = tuple(i / 20 for i in range(8, 21))  # of the central box
THRESHOLDS = (0.3, 0.4, 0.5, 0.6)  # on the probe
LOWS = {**{f"floor {share:g}": {"floor": share} for share in (0.0, 0.1, 0.2, 0.3)}, "background 1": {"background": 1.0}}
KAPPAS = tuple(i / 5 for i in range(7, 18))
RIDGE = 0.01  # of the features' mean variance

Arrays = dict[str, Any]
See = Callable[[Arrays], Arrays]


def see(task: Task, params: Any, batch_stats: Any, batch: Arrays) -> Arrays:
    """Of the coarse look in tests `features` [B, h, w, N], `mean` attention [B, h, w] and its box `attention` [B, 4];
    `object` [B, 4], cut to its view."""
    coarse = predict(replace(task, test_region=None), params, batch_stats, batch)["coarse"]
    boxes = jnp.clip(object_boxes(task, batch), 0.0, 1.0)
    features = coarse.out["feature_maps"].astype(jnp.float32)
    mean = jnp.mean(coarse.out["attention_maps"].astype(jnp.float32), axis=-1)
    # Of a run whose second look has a side, that square at its place.
    view = central_boxes(jnp.full((len(boxes), 2), task.test_side))
    box = compose(invert(view), learned_region(coarse.out, view, side=task.side))
    attention = {"mean": mean, "attention": box}
    return {"features": features, **attention, "object": boxes, "mask": batch["mask"]}


def cells_of(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Which cells have their centre in the box, [B, height, width] of zeros and ones. boxes: [B, 4]."""
    y, x = ((jnp.arange(count) + 0.5) / count for count in (height, width))
    rows = (y >= boxes[:, :1]) & (y <= boxes[:, 2:3])
    columns = (x >= boxes[:, 1:2]) & (x <= boxes[:, 3:])
    return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)


def box_of_cells(cells: jax.Array, **limits: float) -> jax.Array:
    """[B, h, w] of zeros and ones -> boxes [B, 4]; without any cell, that of all cells. limits: of `soft_box`."""
    weight = cells + 1e-4
    return soft_box(weight / jnp.sum(weight, axis=(1, 2), keepdims=True), 3.0**0.5, **limits)


def fit_probe(batches: Iterable[Arrays], seen: See) -> np.ndarray:
    """Ridge regression over all cells of `batches`: weights [N + 1], the constant last."""

    @jax.jit
    def sums(out: Arrays) -> tuple[jax.Array, jax.Array]:
        features = out["features"]
        target = cells_of(out["object"], *features.shape[1:3])
        inputs = jnp.concatenate([features, jnp.ones_like(features[..., :1])], axis=-1)
        masked = inputs * out["mask"][:, None, None, None]
        precise = partial(jnp.einsum, precision="highest")
        return precise("bhwn,bhwm->nm", masked, inputs), precise("bhwn,bhw->n", masked, target)

    gram, moment = np.zeros(()), np.zeros(())
    for batch in batches:
        more = sums(seen(batch))
        gram, moment = gram + np.asarray(more[0], np.float64), moment + np.asarray(more[1], np.float64)
    count, mean = gram[-1, -1], gram[-1, :-1] / gram[-1, -1]
    covariance = gram[:-1, :-1] / count - np.outer(mean, mean)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, moment[:-1] / count - mean * moment[-1] / count)
    return np.append(weights, moment[-1] / count - mean @ weights)


def boxes_of(batches: Iterable[Arrays], seen: See, weights: np.ndarray, **limits: float) -> dict[str, np.ndarray]:
    """Boxes [images, 4] by kind: `attention`, `object`, `cells`, `probe <threshold>` and for each of `LOWS`
    `<low> <kappa>`; and `level` [images]."""

    @jax.jit
    def of_batch(out: Arrays, weights: jax.Array) -> Arrays:
        features = out["features"]
        score = features @ weights[:-1] + weights[-1]
        probes = {f"probe {at}": box_of_cells((score > at).astype(jnp.float32), **limits) for at in THRESHOLDS}
        cells = box_of_cells(cells_of(out["object"], *features.shape[1:3]), **limits)
        above = {}
        for name, low in LOWS.items():
            q = region_distribution(out["mean"], jnp.zeros_like(out["mean"]), **low)
            above |= {f"{name} {kappa}": soft_box(q, kappa, **limits) for kappa in KAPPAS}
        own = {name: out[name] for name in ("attention", "object")}
        own["level"] = jnp.min(out["mean"], axis=(1, 2)) / jnp.max(out["mean"], axis=(1, 2))
        return {**own, "cells": cells, **probes, **above}

    found: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        counted = np.asarray(batch["mask"]) > 0
        for name, values in of_batch(seen(batch), jnp.asarray(weights, jnp.float32)).items():
            found.setdefault(name, []).append(np.asarray(values)[counted])
    return {name: np.concatenate(values) for name, values in found.items()}


def agreement(boxes: np.ndarray, annotated: np.ndarray) -> dict[str, float | None]:
    """What the module says of boxes [images, 4]; a correlation with a constant is None."""

    def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
        return float(np.corrcoef(one, other)[0, 1]) if np.ptp(one) > 1e-6 else None

    overlap = np.asarray(iou(boxes, annotated))
    centres = [boxes[:, i] + boxes[:, i + 2] for i in (0, 1)], [annotated[:, i] + annotated[:, i + 2] for i in (0, 1)]
    along = [correlation(one, other) for one, other in zip(*centres, strict=True)]
    areas = (np.log(np.maximum(np.asarray(area(of)), 1e-6)) for of in (boxes, annotated))
    return {
        "iou": float(np.mean(overlap)),
        "over_half": float(np.mean(overlap > 0.5)),
        "area": float(np.mean(area(boxes))),
        "size": correlation(*areas),
        "centre": None if None in along else float(np.mean(along)),
    }


def measure(run: Run, seen: See) -> Iterator[tuple[str, dict[str, float | None]]]:
    """(kind of box, its `agreement` on the test part); whatever is chosen or fitted is so on the training part."""
    train, test = (partial(run.evaluation_batches, part) for part in (run.splits.train, run.splits.test))
    region = run.config.region
    weights = fit_probe(train(), seen)
    limits = {"min_side": region.min_side, "max_side": region.max_side}
    taught, tested = (boxes_of(part(), seen, weights, **limits) for part in (train, test))

    def central(side: float, boxes: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(central_boxes(jnp.full((len(boxes["object"]), 2), side)))

    def overlap(boxes: np.ndarray) -> float:
        return float(np.mean(iou(boxes, taught["object"])))

    side = max(SIDES, key=lambda side: overlap(central(side, taught)))
    threshold = max(THRESHOLDS, key=lambda at: overlap(taught[f"probe {at}"]))
    kinds = {"central": central(side, tested), "probe": tested[f"probe {threshold}"]}
    for low in LOWS:
        kappa = max(KAPPAS, key=lambda kappa, low=low: overlap(taught[f"{low} {kappa}"]))
        kinds[low] = tested[f"{low} {kappa}"]
    for name, boxes in (kinds | {name: tested[name] for name in ("attention", "cells")}).items():
        level = {"level": float(np.mean(tested["level"]))} if name == "attention" else {}
        yield name, agreement(boxes, tested["object"]) | level


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    options = parser.parse_args()
    config = read_config(options.workdir)
    run = build(config)
    _, read = read_latest(options.workdir, run.abstract_model)
    trained = read["params"], read["batch_stats"]
    start = run.create_state()
    about = {"run": options.workdir.name, "method": config.method, "view_size": config.model.view_size}
    about |= {"num_maps": config.model.num_maps, "seed": config.seed}
    about["images"] = len(run.splits.test)
    compiled = jax.jit(partial(see, run.task))
    for network, variables in (("before", (start.params, start.batch_stats)), ("after", trained)):
        for kind, found in measure(run, partial(compiled, *variables)):
            rounded = {name: None if value is None else round(value, 4) for name, value in found.items()}
            print(json.dumps({**about, "network": network, "box": kind, **rounded}), flush=True)


if __name__ == "__main__":
    main()
