"""Where does the centre of a feature cell lie in the view? A JSON line per network, view size and way to ask.

python -m benchmarks.geometry WORKDIR ... [--photos 280]        # finished runs with attention, of data with boxes

The network of a run is asked before its first step, at its last checkpoint and, where it began with published weights,
with random ones; at view sizes of 3/4, 1, 5/4 and 7/4 of its own. A photo is shown upright, mirrored, turned over, and
both: over the four of them what it shows lies in the middle, so whatever does not is the network's. `x` and `y` are how
far right and down of the middle of a cell, in cells, the network has what it saw there, each with its standard error
over photos:

* `receptive field`: the other way round, geometry alone: how far left and up of their own middles the four cells in
  the middle of the view look, by the centre of the squared gradient of a cell's squared norm;
* `patch`: the centre of the features' norms above their mean, of a view that fades to grey beyond a round patch in the
  middle, turned by a random quarter, since a network may see less in photos that stand on their heads;
* `norm`: likewise of whole views;
* `region`: the centre of the network's region (before the box), at the last checkpoint;
* `box`: its box's centre against the annotated one's, cut to the view; with it mean `iou` and `parts_inside` upright,
  and `moved` the same after moving every box back by `x` and `y`, measured on the other half of the photos; `moved by
  field` by the receptive field's instead.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.data import pipeline
from c2f_jax.data.sources import Subset
from c2f_jax.kernels import compose, contains, crop_and_resize, invert, iou, ordered
from c2f_jax.memory import restart_with_huge_pages
from c2f_jax.models.two_looks import learned_region, see
from c2f_jax.runs.build import build, raw_images
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.workdir import read_config

BATCH = 20
# The whole raw image, as a box: upright, mirrored, turned over, both.
TURNS = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 0]], np.float32)

Arrays = dict[str, Any]


def centre(weights: jax.Array) -> jax.Array:
    """Mean place (y, x) of weights [..., h, w], in fractions of the map."""
    weights = weights / jnp.sum(weights, axis=(-2, -1), keepdims=True)
    y, x = ((jnp.arange(count) + 0.5) / count for count in weights.shape[-2:])
    return jnp.stack([jnp.sum(weights * y[:, None], axis=(-2, -1)), jnp.sum(weights * x, axis=(-2, -1))], axis=-1)


def looked(run: Any, params: Any, batch_stats: Any, view_size: int, batch: Arrays) -> Arrays:
    """All four views of a batch -> [4, B, ...]: `receptive field`, `patch`, `norm` and `region`: places [.., 2] less
    the middle, in cells; `box` and the annotated `object` in the view, [.., 4]."""
    axis = (jnp.arange(view_size) + 0.5) / view_size - 0.5
    fade = jnp.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / 0.15**2)

    cells = cells_of(run, view_size)

    def outputs(view: jax.Array) -> Arrays:
        return see(run.task.network, params, batch_stats["coarse"], view, train=False)[1]

    def receptive_field(view: jax.Array) -> jax.Array:
        """How far left and up of their own middles the four cells in the middle look."""
        half = cells // 2

        def off(row: int, column: int) -> jax.Array:
            def squared_norm(view: jax.Array) -> jax.Array:
                return jnp.sum(jnp.square(outputs(view)["feature_maps"][:, row, column].astype(jnp.float32)))

            seen = centre(jnp.sum(jnp.square(jax.grad(squared_norm)(view)), axis=-1))
            return (jnp.array([row, column]) + 0.5) / cells - seen

        return sum(off(row, column) for row in (half - 1, half) for column in (half - 1, half)) / 4 + 0.5

    def above_mean(out: Arrays) -> jax.Array:
        norm = jnp.linalg.norm(out["feature_maps"].astype(jnp.float32), axis=-1)
        return centre(jnp.maximum(norm - jnp.mean(norm, axis=(1, 2), keepdims=True), 0.0))

    def one(turn: jax.Array) -> Arrays:
        boxes = jnp.broadcast_to(turn, (len(batch["image"]), 4))
        crop = partial(crop_and_resize, boxes=boxes, output_size=view_size, antialias=True)
        view = run.task.normalise(crop(batch["image"]))
        patch = run.task.normalise(127.5 + fade[..., None] * (crop(batch["turned"]) - 127.5))
        out = outputs(view)
        places = {
            "receptive field": receptive_field(view),
            "patch": above_mean(outputs(patch)),
            "norm": above_mean(out),
            "region": centre(out["region"]),
        }
        seen = jnp.clip(ordered(compose(invert(boxes), compose(invert(batch["window"]), batch["box"]))), 0.0, 1.0)
        box = compose(invert(boxes), learned_region(out, boxes, side=run.task.side))
        return {**{name: cells * (place - 0.5) for name, place in places.items()}, "box": box, "object": seen}

    return jax.lax.map(one, jnp.asarray(TURNS))


def figures(values: np.ndarray) -> Arrays:
    """values [4, N, 2] (y, x) in cells, as seen in four ways -> the offset and its standard error."""
    by_photo = values.mean(axis=0)
    error = by_photo.std(axis=0, ddof=1) / np.sqrt(len(by_photo))
    (y, x), (y_error, x_error) = by_photo.mean(axis=0), error
    told = {"x": x, "x_error": x_error, "y": y, "y_error": y_error}
    return {name: round(float(value), 4) for name, value in told.items()}


def box_figures(found: Arrays, cells: int) -> Arrays:
    """The boxes' offset, and what moving them back by it would give."""

    def middle(boxes: np.ndarray) -> np.ndarray:
        return (boxes[..., :2] + boxes[..., 2:]) / 2

    off = cells * (middle(found["box"]) - middle(found["object"]))
    even = np.arange(off.shape[1]) % 2 == 0

    def measured(shift: np.ndarray) -> Arrays:
        boxes = jnp.asarray(found["box"][0] - np.tile(shift, 2) / cells)
        inside = np.asarray(contains(boxes, jnp.asarray(found["parts"]))) & (found["visible"] > 0)
        return {
            "iou": round(float(np.mean(iou(boxes, jnp.asarray(found["object"][0])))), 4),
            "parts_inside": round(float(inside.sum() / found["visible"].sum()), 4),
        }

    # Each half of the photos is moved by what the other half says.
    others = np.where(even[:, None], off[:, ~even].mean(axis=(0, 1)), off[:, even].mean(axis=(0, 1)))
    field = found["receptive field"].mean(axis=(0, 1))
    moved = {"moved": measured(others), "moved by field": measured(field)}
    return {**figures(off), **measured(np.zeros(2)), **moved}


def asked(run: Any, model: Any, view_size: int, batches: Sequence[Arrays], trained: bool) -> list[Arrays]:
    """The lines of one network at one view size."""
    step = jax.jit(partial(looked, run, model["params"], model["batch_stats"], view_size))
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, value in jax.device_get(step({k: batch[k] for k in ("image", "turned", "window", "box")})).items():
            parts.setdefault(name, []).append(value)
    found = {name: np.concatenate(values, axis=1) for name, values in parts.items()}
    windows = np.concatenate([batch["window"] for batch in batches])[:, None]
    points = np.concatenate([batch["parts"] for batch in batches])
    found["parts"] = (points - windows[..., :2]) / (windows[..., 2:] - windows[..., :2])
    found["visible"] = np.concatenate([batch["part_visible"] for batch in batches])
    names = ["receptive field", "patch", "norm"] + (["region"] if trained else [])
    told = [{"of": name, **figures(found[name])} for name in names]
    if trained:
        told.append({"of": "box", **box_figures(found, cells_of(run, view_size))})
    return [{"view_size": view_size, "photos": found["norm"].shape[1], **line} for line in told]


def cells_of(run: Any, view_size: int) -> int:
    """Cells a side of the feature maps."""
    view = jax.ShapeDtypeStruct((1, view_size, view_size, 3), jnp.float32)
    (_, out), _ = jax.eval_shape(lambda v: run.task.network.init_with_output(jax.random.key(0), v, train=False), view)
    return int(out["feature_maps"].shape[1])


def batches_of(run: Any, photos: int) -> list[Arrays]:
    """Test photos, evenly spread over the part, without filling; `turned`: by a random number of quarters."""
    test, rng = run.splits.test, np.random.default_rng(0)
    source = Subset(test, np.linspace(0, len(test) - 1, photos).astype(int))
    batches = []
    for batch in pipeline.evaluation_batches(
        source, batch_size=BATCH, raw=raw_images(run.config), process=0, processes=1
    ):
        kept = {name: value[batch["mask"] > 0] for name, value in batch.items()}
        kept["turned"] = np.stack([np.rot90(image, rng.integers(4)) for image in kept["image"]])
        batches.append(kept)
    return batches


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--photos", type=int, default=280)
    options = parser.parse_args(argv)
    for workdir in options.workdirs:
        config = read_config(workdir)
        run = build(config)
        batches = batches_of(run, options.photos)
        step, last = read_latest(workdir, run.abstract_model)
        networks = [("before its first step", run, run.create_state()), (f"step {step}", run, last)]
        if config.model.pretrained:
            config.model.pretrained = ""
            networks.append(("random weights", run_ := build(config), run_.create_state()))
        for name, of, model in networks:
            if not isinstance(model, dict):
                model = {"params": model.params, "batch_stats": model.batch_stats}
            for quarters in (3, 4, 5, 7):
                view_size = quarters * config.model.view_size // 4
                for line in asked(of, model, view_size, batches, trained=name.startswith("step")):
                    print(json.dumps({"run": workdir.name, "network": name, **line}), flush=True)


if __name__ == "__main__":
    restart_with_huge_pages()
    main(sys.argv[1:])
