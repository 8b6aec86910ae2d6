"""One training step and one prediction, as pure functions; `parallel` compiles them for the devices."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from c2f_jax.data.augment import example_keys
from c2f_jax.kernels import update_centers
from c2f_jax.models.two_looks import Look, central_boxes, two_looks
from c2f_jax.training.losses import Batch, Task
from c2f_jax.training.stages import Stage
from c2f_jax.training.train_state import TrainState


def _attention_probes(task: Task, batch_size: int) -> Any:
    """Zeros to add to the attention maps on their two ways; their gradients are the maps' own, way by way."""
    view = jax.ShapeDtypeStruct((batch_size, task.view_size, task.view_size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda v: task.network.init(jax.random.key(0), v, train=False), view)["perturbations"]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _probe_norms(gradients: Any, batch_size: int) -> dict[str, jax.Array]:
    # Times the batch size: the gradient of an example's own loss, whatever the batch (and the shard) it came in.
    def norm(gradient: jax.Array) -> jax.Array:
        flat = gradient.reshape(batch_size, -1).astype(jnp.float32)
        return batch_size * jnp.mean(jnp.sqrt(jnp.sum(flat * flat, axis=-1)))

    return {f"gradient/{name}": norm(gradient) for name, gradient in gradients.items()}


def train_step(
    state: TrainState, batch: Batch, *, task: Task, stage: Stage, seed: int, axis_name: str | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of `stage`.

    Args:
        state: before the step.
        batch: `image` uint8 [B, R, R, 3], `label` int32 [B], `index` int32 [B]; all of the global batch under jit, a
            device's share of it under pmap.
        task, stage: what to optimise, and how.
        seed: of all randomness, together with the step and each example's index.
        axis_name: the device axis under pmap, None under jit.

    Returns:
        The state after the step and scalars for the log, means over the global batch.
    """
    keys = example_keys(seed, state.step, batch["index"])
    batch_size = batch["label"].shape[0]
    probes = _attention_probes(task, batch_size) if stage.probe else {}

    def loss_fn(params: Any, probes: Any) -> Any:
        return stage.loss(task, params, probes, state, batch, keys)

    (_, aux), (gradients, probe_gradients) = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(
        state.params, probes
    )
    metrics = {**aux.metrics, **_probe_norms(probe_gradients, batch_size)}
    pooled, labels = aux.pooled, batch["label"]
    if axis_name is not None:
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
        if pooled is not None:
            pooled, labels = jax.lax.all_gather((pooled, labels), axis_name, tiled=True)

    updates, opt_state = stage.tx.update(gradients, state.opt_state, state.params)
    metrics["gradient/norm"] = optax.tree.norm(gradients)
    metrics["learning_rate"] = jnp.asarray(stage.schedule(state.step - stage.start), jnp.float32)
    if pooled is not None and state.centers is not None:
        state = state.replace(centers=update_centers(state.centers, pooled, labels, rate=task.center_rate))
    return (
        state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=aux.batch_stats,
            opt_state=opt_state,
        ),
        metrics,
    )


def predict(task: Task, params: Any, batch_stats: dict[str, Any], raw: jax.Array) -> dict[str, Look]:
    """Both looks, the coarse one at the middle of each image, with running statistics. raw: uint8 [B, R, R, 3]."""
    return two_looks(
        task.network,
        params,
        batch_stats,
        raw,
        central_boxes(raw.shape[0], task.test_side),
        region=task.test_region,
        view_size=task.view_size,
        prepare=task.normalise,
        train=False,
    )
