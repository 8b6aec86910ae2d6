"""Memory of training by backbone, view and batch; nothing is run. JSON lines.

python -m benchmarks.memory                                # usual ones, in both dtypes, with and without model.remat
python -m benchmarks.memory --compile                      # in float32, and with the whole step compiled: minutes
python -m benchmarks.memory --compile --backbone vit_small_patch14_reg4_dinov2 --view 448 --batch 8

`kept_mib` is what automatic differentiation keeps of the backbone for the gradient of one look, before any compiler:
the same for all devices. A step keeps as much for each of its looks, three in `cub_one_stage` and `cub_vit`.
With `--compile`, `state_mib` is the train state (parameters, optimiser, statistics, averages) and `step_mib` what the
program of such a step needs beside it while it runs, as the compiler for this machine's device says. Of a CPU's program
that is a rough guide to other devices, which have other layouts and fuse otherwise.
"""

import argparse
import importlib
import itertools
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from c2f_jax.models.backbones import BACKBONES
from c2f_jax.runs import methods
from c2f_jax.training import steps
from c2f_jax.training.train_state import create_train_state

USUAL = (
    *(("vit_small_patch14_reg4_dinov2", 224, 8), ("vit_small_patch14_reg4_dinov2", 448, 8)),
    *(("vit_base_patch14_reg4_dinov2", 448, 8), ("convnext_tiny", 224, 8), ("convnext_tiny", 448, 8)),
    *(("resnet50", 224, 8), ("resnet50", 448, 8)),
)
CLASSES = 200


def kept_mib(backbone: str, view: int, batch: int, *, dtype: str, remat: bool) -> int:
    """What one look of the backbone keeps for its gradient."""
    network = BACKBONES[backbone](dtype=jnp.dtype(dtype), axis_name=None, remat=remat)
    image = jax.ShapeDtypeStruct((batch, view, view, 3), jnp.float32)
    variables = jax.eval_shape(lambda image: network.init(jax.random.key(0), image, train=True), image)

    def residuals(variables: Any, image: jax.Array) -> Any:
        others = {name: values for name, values in variables.items() if name != "params"}
        look = partial(network.apply, train=True, mutable=["batch_stats"])
        return jax.vjp(lambda params: look({"params": params, **others}, image)[0], variables["params"])[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, variables, image))
    return round(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 2**20)


def compiled(backbone: str, view: int, batch: int) -> dict[str, int]:
    """MiB of the train state, and of what a step in float32 needs beside it."""
    name = "cub_vit" if backbone.startswith("vit_") else "cub_one_stage"
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.backbone, config.model.view_size, config.model.dtype = backbone, view, "float32"
    config.model.pretrained, config.dataset.raw_size, config.train.batch_size = "", view * 8 // 7, batch
    task = methods.make_task(config, num_classes=CLASSES, axis_name=None)
    stage = methods.make_stages(config, train_size=5395)[-1]
    make = partial(create_train_state, task=task, stage=stage, num_classes=CLASSES, averaged=config.train.ema_decay > 0)
    state = jax.eval_shape(make, jax.random.key(0))
    raw = config.dataset.raw_size
    examples = {
        "image": jax.ShapeDtypeStruct((batch, raw, raw, 3), jnp.uint8),
        "place": jax.ShapeDtypeStruct((batch, 2), jnp.float32),
        **{name: jax.ShapeDtypeStruct((batch,), jnp.int32) for name in ("label", "row")},
    }
    step = partial(steps.train_step, task=task, stage=stage, seed=0, ema_decay=config.train.ema_decay)
    needs = jax.jit(step, donate_argnums=0).lower(state, examples).compile().memory_analysis()
    held = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.dtype != jax.random.key(0).dtype
    )
    return {"state_mib": round(held / 2**20), "step_mib": round(needs.temp_size_in_bytes / 2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=tuple(BACKBONES), metavar="NAME", help="one case: its backbone")
    parser.add_argument("--view", type=int, default=448, help="its views, in pixels")
    parser.add_argument("--batch", type=int, default=8, help="its batch")
    parser.add_argument("--compile", action="store_true", help="also compile the whole step, in float32")
    options = parser.parse_args()
    cases = [(options.backbone, options.view, options.batch)] if options.backbone else USUAL
    forms = [("float32", False)] if options.compile else itertools.product(("float32", "bfloat16"), (False, True))
    for case, (dtype, remat) in itertools.product(cases, forms):
        line = {**dict(zip(("backbone", "view", "batch"), case, strict=True)), "dtype": dtype, "remat": remat}
        line["kept_mib"] = kept_mib(*case, dtype=dtype, remat=remat)
        if options.compile:
            line |= {**compiled(*case), "device": jax.devices()[0].device_kind}
        print(json.dumps({**line, "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main()
