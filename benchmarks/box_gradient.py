"""How far does the gradient through the second look's box see? A JSON line per way of moving the box, and step.

python -m benchmarks.box_gradient WORKDIR                        # a finished run with attention
python -m benchmarks.box_gradient WORKDIR --part validation --images 128

Each image's second view is moved along y and x, and widened, and its loss (cross entropy of the true class, running
statistics) is followed. For a step of `pixels` of the view to either side:

* `correlation` over images between what the gradient promises for the step and what the loss does (half the difference
  between both sides), and `same_sign`, the share of images whose loss goes where the gradient says;
* `promised` and `found`: the root mean square of both, in nats;
* `mean` and `deviation` of the gradient over images, in nats per pixel.

A gradient that sees far has a correlation near 1 at steps as long as a box should be moved.

Where the object's box is annotated, three more lines go a `share` of the way to it: the same figures, of the whole
change of the loss, and `change`, its mean with its standard error, negative where the second look gains by it. Compared
between parts it says whether the loss that training sees knows of the object at all.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from c2f_jax.kernels import compose, invert
from c2f_jax.models.two_looks import look
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.workdir import read_config
from c2f_jax.training.losses import Task
from c2f_jax.training.steps import predict

# One pixel's change of a box with sides 1, by way of moving it.
WAYS = {"y": (1, 0, 1, 0), "x": (0, 1, 0, 1), "wider": (-0.5, -0.5, 0.5, 0.5)}
PIXELS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SHARES = (0.1, 0.5, 1.0)  # of the way to the annotated box


def moved(boxes: jax.Array, way: Sequence[float], pixels: jax.Array | float, view_size: int) -> jax.Array:
    """boxes [B, 4], moved in `way` by `pixels` of a view that is `view_size` of them wide."""
    sides = jnp.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + jnp.asarray(way, boxes.dtype) * sides * (pixels / view_size)


def follow(
    task: Task, params: Any, batch_stats: Any, batch: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """By `WAYS`: slopes in nats per pixel [B], and half differences of the loss in nats [B, PIXELS].

    By "object", where it is annotated: the slope in nats for all of the way to it, and differences [B, SHARES].
    """
    in_raw = partial(compose, invert(batch["window"]))  # what is looked at again is the raw image
    boxes = in_raw(predict(task, params, batch_stats, batch)["fine"].box)

    def losses(boxes: jax.Array) -> jax.Array:
        seen = look(
            task.network,
            params,
            batch_stats["fine"],
            batch["image"],
            boxes,
            view_size=task.fine_size,
            prepare=task.normalise,
            train=False,
        )
        return optax.softmax_cross_entropy_with_integer_labels(seen.logits, batch["label"])

    # Each image's loss depends on its own box alone, so the sum's gradient is every image's own.
    gradient = jax.grad(lambda boxes: jnp.sum(losses(boxes)))(boxes)
    slopes, found = {}, {}
    for name, way in WAYS.items():
        a_pixel = moved(boxes, way, 1.0, task.fine_size) - boxes
        slopes[name] = jnp.sum(gradient * a_pixel, axis=-1)
        both = jax.lax.map(
            lambda pixels, way=way: losses(moved(boxes, way, pixels, task.fine_size)),
            jnp.asarray([sign * step for sign in (1, -1) for step in PIXELS]),
        )
        ahead, behind = jnp.split(both, 2)
        found[name] = (ahead - behind).T / 2
    if "box" in batch:
        way_there = in_raw(batch["box"]) - boxes
        slopes["object"] = jnp.sum(gradient * way_there, axis=-1)
        seen = jax.lax.map(lambda share: losses(boxes + share * way_there), jnp.asarray((0.0, *SHARES)))
        found["object"] = (seen[1:] - seen[0]).T
    return slopes, found


def horizon(slopes: np.ndarray, found: np.ndarray, step: float) -> dict[str, float]:
    """What the module says, for one step. slopes: nats per unit of it [N]; found: what the loss does, in nats [N]."""
    promised = slopes * step
    return {
        "correlation": float(np.corrcoef(promised, found)[0, 1]),
        "same_sign": float(np.mean(np.sign(promised) == np.sign(found))),
        "promised": float(np.sqrt(np.mean(promised**2))),
        "found": float(np.sqrt(np.mean(found**2))),
        "mean": float(np.mean(slopes)),
        "deviation": float(np.std(slopes, ddof=1)),
    }


def measure(run: Run, workdir: Path, part: str, images: int) -> Iterator[dict[str, Any]]:
    """The lines for the first `images` of a part of the data, at the run's last checkpoint."""
    _, read = read_latest(workdir, run.abstract_model)
    params, batch_stats = read["params"], read["batch_stats"]
    compiled = jax.jit(partial(follow, run.task))
    parts: list[Any] = []
    counted = 0
    for batch in run.evaluation_batches(getattr(run.splits, part)):
        valid = np.asarray(batch["mask"]) > 0
        results = compiled(params, batch_stats, batch)
        parts.append(jax.tree.map(lambda values, valid=valid: np.asarray(values)[valid], results))
        counted += int(valid.sum())
        if counted >= images:
            break
    slopes, found = jax.tree.map(lambda *values: np.concatenate(values)[:images], *parts)
    for way in (way for way in (*WAYS, "object") if way in slopes):
        unit, steps = ("share", SHARES) if way == "object" else ("pixels", PIXELS)
        for step, went in zip(steps, found[way].T, strict=True):
            line = horizon(slopes[way], went, step)
            if way == "object":
                line["change"] = float(np.mean(went))
                line["change_error"] = float(np.std(went, ddof=1) / np.sqrt(len(went)))
            yield {
                "way": way,
                unit: step,
                "images": len(went),
                **{name: round(value, 5) for name, value in line.items()},
            }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--part", choices=("train", "validation", "test"), default="train", help="train: what teaches")
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    config = read_config(options.workdir)
    run = build(config)
    # Of the second look, which is moved.
    about = {"method": config.method, "view_size": run.task.fine_size, "part": options.part, "seed": config.seed}
    for line in measure(run, options.workdir, options.part, options.images):
        print(json.dumps({**about, **line}), flush=True)


if __name__ == "__main__":
    main()
