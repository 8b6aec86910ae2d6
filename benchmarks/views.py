"""How much of the object do training views show? A JSON line per smallest side.

python -m benchmarks.views --data DIR [--min_sides 0.5 0.75] [--batches 100]

DIR as for `configs/cub50_lite0.py`, whose batches and boxes of coarse views these are, but for `augment.min_side`.
`object` is the mean share of the annotated box that a view shows, `little` the share of views that show less than 0.3
of it, `area` the mean share of the photo. Also with `keep_aspect` off: photos squeezed, as one line more.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from c2f_jax.kernels import area, compose, ordered
from c2f_jax.runs.build import build
from c2f_jax.training.augment import example_keys
from configs import cub50_lite0


def shown(config: Any, batches: int) -> dict[str, float]:
    """The figures of one config, over its first so many batches."""
    run, shares, areas = build(config), [], []
    source = run.training_batches(0)
    for step in range(batches):
        batch = next(source)
        keys = example_keys(config.seed, jnp.int32(step), jnp.asarray(batch["row"]))
        boxes = ordered(compose(jnp.asarray(batch["window"]), run.task.random_boxes(keys, jnp.asarray(batch["place"]))))
        sides = jnp.minimum(boxes[:, 2:], batch["box"][:, 2:]) - jnp.maximum(boxes[:, :2], batch["box"][:, :2])
        shares.append(jnp.prod(jnp.maximum(sides, 0.0), axis=-1) / area(jnp.asarray(batch["box"])))
        areas.append(area(boxes))
    share = np.concatenate(shares)
    told = {"object": share.mean(), "little": np.mean(share < 0.3), "area": np.concatenate(areas).mean()}
    return {name: round(float(value), 3) for name, value in told.items()}


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--min_sides", nargs="+", type=float, default=[0.5, 0.75])
    parser.add_argument("--batches", type=int, default=100)
    options = parser.parse_args(argv)
    cases = [(True, side) for side in options.min_sides] + [(False, min(options.min_sides))]
    for keep_aspect, min_side in cases:
        config = cub50_lite0.get_config()
        config.dataset.path, config.model.pretrained = options.data, ""
        config.augment.keep_aspect, config.augment.min_side = keep_aspect, min_side
        line = {"keep_aspect": keep_aspect, "min_side": min_side, **shown(config, options.batches)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
