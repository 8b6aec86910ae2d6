"""The shipped configs' programs lower for accelerators from a machine that has none."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from c2f_jax.runs.methods import make_stages, make_task
from c2f_jax.training.steps import predict, train_step
from c2f_jax.training.train_state import create_train_state, switch_stage
from configs import cub, paper_birds

CONFIGS = {"paper_birds": (paper_birds.get_config, 16), "cub": (cub.get_config, 200)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_train_step_and_prediction_lower(name, platform):
    get_config, num_classes = CONFIGS[name]
    config = get_config()
    config.stages.coarse_epochs = 1.0  # both stages' steps, whichever the config ships
    task = make_task(config, num_classes=num_classes, axis_name=None)
    stages = make_stages(config, train_size=5000)
    state = jax.eval_shape(lambda: create_train_state(jax.random.key(0), task, stages[0], num_classes=num_classes))
    size, raw = config.train.batch_size, config.dataset.raw_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, raw, raw, 3), jnp.uint8),
        "place": jax.ShapeDtypeStruct((size, 2), jnp.float32),
        "window": jax.ShapeDtypeStruct((size, 4), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "row": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    assert len(stages) == 2
    for stage in stages:
        staged = jax.eval_shape(partial(switch_stage, stage=stage), state)
        step = jax.jit(partial(train_step, task=task, stage=stage, seed=0))
        assert jax.export.export(step, platforms=[platform])(staged, batch).platforms == (platform,)
    looks = jax.jit(lambda params, stats, batch: predict(task, params, stats, batch)["fine"].logits)
    exported = jax.export.export(looks, platforms=[platform])(state.params, state.batch_stats, batch)
    assert exported.out_avals[0].shape == (size, num_classes)
