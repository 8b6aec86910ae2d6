"""Memory of each device for thousands of classes, by how many devices the head is divided over.

python -m benchmarks.model_axis [--classes 10000] [--channels 256] [--devices 4]

The training step of one look (32 maps; a small backbone, which is the same on every device) is compiled for simulated
CPU devices and never run. A line holds, in MiB of each device and by the compiler's own account: the state (weights,
Adam's moments, centres) with the batch, and what the step sets aside beside it; and the part that is divided.
"""

import argparse
import json
import os
from functools import partial
from typing import Any


def measure(classes: int, channels: int, model: int) -> dict[str, Any]:
    """One line."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from c2f_jax.runs import parallel
    from c2f_jax.runs.methods import make_stages, make_task
    from c2f_jax.training.steps import train_step
    from c2f_jax.training.train_state import create_train_state
    from configs import paper_birds

    config = paper_birds.get_config()
    config.method, config.model.num_maps, config.model.feature_channels = "attention", 32, channels
    mesh, batch_size = parallel.make_mesh(model=model), 32
    task = make_task(config, num_classes=classes, axis_name=None)
    (stage,) = make_stages(config, train_size=10 * batch_size)
    fresh = partial(create_train_state, task=task, stage=stage, num_classes=classes)
    state = parallel.on_mesh(jax.eval_shape(fresh, jax.random.key(0)), mesh)
    split = NamedSharding(mesh, PartitionSpec(("data", "model")))
    side = config.dataset.raw_size
    shapes = {"image": ((side, side, 3), jnp.uint8), "place": ((2,), jnp.float32)}
    shapes |= {"window": ((4,), jnp.float32), "label": ((), jnp.int32), "row": ((), jnp.int32)}
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split)
        for name, (shape, dtype) in shapes.items()
    }

    def step(state: Any, batch: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # as a run does
            return train_step(state, batch, task=task, stage=stage, seed=0)

    places = parallel.shardings(state, mesh), parallel.replicated(mesh)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=places).lower(state, batch).compile()
    memory = compiled.memory_analysis()
    divided = [leaf for leaf in jax.tree.leaves(state) if leaf.sharding.spec != PartitionSpec()]
    return {
        "case": "model axis",
        "classes": classes,
        "features": 32 * channels,
        "devices": jax.device_count(),
        "parallel.model": model,
        "state, MiB": round(memory.argument_size_in_bytes / 2**20, 1),
        "beside it, MiB": round(memory.temp_size_in_bytes / 2**20, 1),
        "of it divided, MiB undivided": round(sum(leaf.size * leaf.dtype.itemsize for leaf in divided) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--devices", type=int, default=4)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", options.devices)
    for model in (1, options.devices // 2, options.devices):
        print(json.dumps(measure(options.classes, options.channels, model)), flush=True)


if __name__ == "__main__":
    main()
