"""Memory of a training step by backbone, view and batch, from the compiled program; nothing is run. JSON lines.

python -m benchmarks.memory                                             # a few usual ones
python -m benchmarks.memory --backbone vit_small_patch14_reg4_dinov2 --view 448 --batch 32 --remat

The step is that of configs/cub_vit.py or, for other networks, of configs/cub.py: three looks, in the dtype that is
asked for. `state_mib` is the train state (parameters, optimiser, statistics, averages), `step_mib` what the program
needs beside it while it runs, as the compiler for this machine's device says. Of a CPU's program that is a rough guide
to other devices, which have other layouts and fuse otherwise; most CPUs compute bfloat16 in float32.
"""

import argparse
import importlib
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
    *(("convnext_tiny", 224, 8), ("resnet50", 224, 8), ("resnet50", 448, 8)),
)
CLASSES = 200


def compiled(backbone: str, view: int, batch: int, *, dtype: str, remat: bool) -> dict[str, Any]:
    """A line."""
    config = importlib.import_module("configs.cub_vit" if backbone.startswith("vit_") else "configs.cub").get_config()
    config.model.backbone, config.model.view_size, config.model.dtype, config.model.remat = backbone, view, dtype, remat
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
    settings = {"backbone": backbone, "view": view, "batch": batch, "dtype": dtype, "remat": remat}
    sizes = {"state_mib": round(held / 2**20), "step_mib": round(needs.temp_size_in_bytes / 2**20)}
    return {**settings, **sizes, "device": jax.devices()[0].device_kind, "jax": jax.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=tuple(BACKBONES), metavar="NAME", help="one case: its backbone")
    parser.add_argument("--view", type=int, default=448, help="its views, in pixels")
    parser.add_argument("--batch", type=int, default=8, help="its batch")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", action="store_true", help="as model.remat")
    options = parser.parse_args()
    cases = [(options.backbone, options.view, options.batch)] if options.backbone else USUAL
    for case in cases:
        print(json.dumps(compiled(*case, dtype=options.dtype, remat=options.remat)), flush=True)


if __name__ == "__main__":
    main()
