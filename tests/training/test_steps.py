"""A step that computes its batch in parts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.kernels import update_centers
from c2f_jax.runs.build import build
from c2f_jax.training import steps
from c2f_jax.training.train_state import switch_stage
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def fine_stage():
    """(run, state at the fine stage, its first batch)."""
    run = build(tiny_config(optimizer__name="sgd", optimizer__learning_rate=0.1, optimizer__warmup_epochs=0.0))
    stage = run.stages[-1]
    batch = jax.tree.map(jnp.asarray, dict(next(run.training_batches(stage.start))))
    return run, switch_stage(run.create_state(), stage), batch


def test_parts_add_up_to_the_batch(fine_stage):
    """Gradients and metrics are the parts' means, batch statistics go through in turn, centres see every example."""
    run, state, batch = fine_stage
    settings = {"task": run.task, "stage": run.stages[-1], "seed": 0}
    after, metrics = jax.jit(partial(steps.train_step, accumulate=2, **settings))(state, batch)

    compute = jax.jit(partial(steps._loss_and_gradients, **settings))
    even, odd = (jax.tree.map(lambda value, i=i: value[i::2], batch) for i in (0, 1))
    first = compute(state, even)
    second = compute(state.replace(batch_stats=first[2]), odd)
    gradients = jax.tree.map(lambda a, b: (a + b) / 2, first[0], second[0])
    updates, _ = run.stages[-1].tx.update(gradients, state.opt_state, state.params)
    expected = jax.tree.map(jnp.add, state.params, updates)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), after.params, expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), after.batch_stats, second[2])
    assert float(metrics["loss"]) == pytest.approx((float(first[1]["loss"]) + float(second[1]["loss"])) / 2, rel=1e-5)
    moved = update_centers(state.centers, first[3], even["label"])
    np.testing.assert_allclose(
        after.centers, moved + update_centers(state.centers, second[3], odd["label"]) - state.centers, atol=1e-5
    )

    whole, _ = jax.jit(partial(steps.train_step, **settings))(state, batch)
    largest = [
        max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in ((whole.params, state.params), (whole.params, after.params))
    ]
    assert largest[0] > 1e-3 and largest[1] > 1e-5  # parts are normalised on their own


def test_parts_stay_on_their_devices(fine_stage):
    """The batch is cut so that nothing moves between devices but sums."""
    run, state, batch = fine_stage
    step = partial(steps.train_step, task=run.task, stage=run.stages[-1], seed=0, accumulate=2)
    arguments = run.backend.put_state(state), run.backend.put_batch(jax.device_get(batch))
    text = jax.jit(run.backend.compile(step)).lower(*arguments).compile().as_text()
    assert "all-reduce" in text and "all-to-all" not in text and "collective-permute" not in text
    assert f"u8[{len(batch['label'])},192,192,3]" not in text  # no device gathers the batch
