"""One training step and one prediction, as pure functions; `parallel` compiles them for the devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from c2f_jax.kernels import compose, update_centers
from c2f_jax.layers.drop_path import dropping
from c2f_jax.layers.norm import frozen_statistics
from c2f_jax.models.two_looks import Look, central_boxes, two_looks
from c2f_jax.training.augment import DEPTH, example_keys, stream
from c2f_jax.training.losses import Batch, Task
from c2f_jax.training.optimizer import frozen_parameters
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


def _loss_and_gradients(
    state: TrainState, batch: Batch, *, task: Task, stage: Stage, seed: int
) -> tuple[Any, dict[str, jax.Array], Any, jax.Array | None]:
    """(gradients, metrics, batch statistics, pooled features) of a batch, all at once."""
    keys = example_keys(seed, state.step, batch["row"])
    batch_size = batch["label"].shape[0]
    probes = _attention_probes(task, batch_size) if stage.probe else {}
    if task.mix is not None:
        boxes = task.random_boxes(keys, batch["place"])
        batch = {**batch, **task.mix(keys, batch["image"], batch["label"], boxes)}

    def loss_fn(params: Any, probes: Any) -> Any:
        if stage.frozen:
            still = frozen_parameters(params, stage.frozen)
            params = jax.tree.map(lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf, params, still)
        with frozen_statistics(stage.frozen), dropping(stream(keys, DEPTH)):
            return stage.loss(task, params, probes, state, batch, keys)

    gradient = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
    (_, aux), (gradients, probe_gradients) = gradient(state.params, probes)
    return gradients, {**aux.metrics, **_probe_norms(probe_gradients, batch_size)}, aux.batch_stats, aux.pooled


def _accumulated(
    state: TrainState, batch: Batch, *, parts: int, **settings: Any
) -> tuple[Any, dict[str, jax.Array], Any, jax.Array | None]:
    """`_loss_and_gradients` by `parts` of the batch in turn: means of gradients and metrics, statistics in turn."""

    def split(value: jax.Array) -> jax.Array:
        # Every so many-th example: where examples lie on several devices, each part has its share on each of them.
        return jnp.swapaxes(value.reshape(-1, parts, *value.shape[1:]), 0, 1)

    def joined(value: jax.Array) -> jax.Array:
        return jnp.swapaxes(value, 0, 1).reshape(-1, *value.shape[2:])

    def one(carry: Any, part: Batch) -> Any:
        batch_stats, total = carry
        gradients, metrics, batch_stats, pooled = _loss_and_gradients(
            state.replace(batch_stats=batch_stats), part, **settings
        )
        return (batch_stats, jax.tree.map(jnp.add, total, gradients)), (metrics, pooled)

    start = (state.batch_stats, jax.tree.map(jnp.zeros_like, state.params))
    (batch_stats, total), (metrics, pooled) = jax.lax.scan(one, start, jax.tree.map(split, batch))
    gradients, metrics = jax.tree.map(lambda value: value / parts, total), jax.tree.map(jnp.mean, metrics)
    return gradients, metrics, batch_stats, None if pooled is None else joined(pooled)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    task: Task,
    stage: Stage,
    seed: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of `stage`.

    Args:
        state: before the step.
        batch: `image` uint8 [B, R, R, 3], `place` float32 [B, 2], `label`, `row` int32 [B], as of
            `pipeline.training_batches`, and where a table teaches `evidence` float32 [B, G, G] and `window` float32
            [B, 4] of the photos; all of the global batch under jit, a device's share of it under pmap.
        task, stage: what to optimise, and how.
        seed: of all randomness, together with the step and each example's row.
        accumulate: in how many parts, one after the other, the batch is computed; its examples' order is kept, batch
            statistics are those of a part.
        ema_decay: what the state's averages, if it has them, keep of themselves; at first (1 + step) / (10 + step).
        axis_name: the device axis under pmap, None under jit.

    Returns:
        The state after the step and scalars for the log, means over the global batch.
    """
    compute = _loss_and_gradients if accumulate == 1 else partial(_accumulated, parts=accumulate)
    gradients, metrics, batch_stats, pooled = compute(state, batch, task=task, stage=stage, seed=seed)
    labels = batch["label"]
    if axis_name is not None:
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
        if pooled is not None:
            pooled, labels = jax.lax.all_gather((pooled, labels), axis_name, tiled=True)

    updates, opt_state = stage.tx.update(gradients, state.opt_state, state.params)
    metrics["gradient/norm"] = optax.tree.norm(gradients)
    metrics["learning_rate"] = jnp.asarray(stage.schedule(state.step - stage.start), jnp.float32)
    if pooled is not None and state.centers is not None:
        state = state.replace(centers=update_centers(state.centers, pooled, labels, rate=task.center_rate))
    params, average = optax.apply_updates(state.params, updates), state.average
    if average is not None:
        kept = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        average = optax.incremental_update({"params": params, "batch_stats": batch_stats}, average, 1.0 - kept)
    state = state.replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, average=average
    )
    return state, metrics


def predict(task: Task, params: Any, batch_stats: dict[str, Any], batch: Batch) -> dict[str, Look]:
    """Both looks, the coarse one at the middle of each raw image, with running statistics.

    Args:
        task: what predicts.
        params, batch_stats: of the train state.
        batch: `image` uint8 [B, R, R, 3] and `window` [B, 4].

    Returns:
        As of `two_looks`, but with boxes in the photo's coordinates, in which annotations are.
    """
    looks = two_looks(
        task.network,
        params,
        batch_stats,
        batch["image"],
        central_boxes(jnp.full((len(batch["image"]), 2), task.test_side)),
        region=task.test_region,
        view_size=task.view_size,
        fine_size=task.fine_size,
        prepare=task.normalise,
        train=False,
    )
    return {name: seen._replace(box=compose(batch["window"], seen.box)) for name, seen in looks.items()}
