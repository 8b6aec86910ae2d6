"""Evaluation of a split: every example once, padded and masked."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from c2f_jax.evaluation.classification import classification_sums
from c2f_jax.evaluation.localization import attention_sums, localization_sums
from c2f_jax.evaluation.metrics import Sums, finalise, merge
from c2f_jax.models.two_looks import Look, log_probabilities
from c2f_jax.training.losses import Task
from c2f_jax.training.steps import predict

EvalStep = Callable[[Any, Any, dict[str, jax.Array]], Sums]


def eval_step(task: Task, params: Any, batch_stats: dict[str, Any], batch: dict[str, jax.Array]) -> Sums:
    """All metrics of one batch, as (sum, count) pairs.

    Args:
        task: what is evaluated.
        params, batch_stats: of the train state.
        batch: `image` uint8 [B, R, R, 3], `window` [B, 4], `label` [B], `mask` [B], and boxes and parts where known.
    """
    return metric_sums(predict(task, params, batch_stats, batch), batch)


def metric_sums(looks: dict[str, Look], batch: dict[str, jax.Array]) -> Sums:
    """All metrics of `steps.predict`'s looks at a batch, as (sum, count) pairs; the batch as for `eval_step`."""
    sums: dict[str, Any] = {}
    for view, values in log_probabilities(looks).items():
        for name, pair in classification_sums(values, batch["label"], batch["mask"]).items():
            sums[f"{view}/{name}"] = pair
    if "fine" in looks:
        sums.update(localization_sums(looks["fine"].box, looks["coarse"].box, batch))
    if "attention_maps" in looks["coarse"].out:
        sums.update(attention_sums(looks["coarse"], batch))
    return sums


def evaluate(
    step: EvalStep, params: Any, batch_stats: dict[str, Any], batches: Iterable[dict[str, jax.Array]]
) -> dict[str, float]:
    """The metrics over all batches (already on the devices), as fractions, losses in nats.

    Raises:
        FloatingPointError: if one is not finite; it names them. Such a network says nothing, however its other figures
            came out.
    """
    total: Sums | None = None
    for batch in batches:
        total = merge(total, step(params, batch_stats, batch))
    metrics = finalise(total) if total is not None else {}
    broken = [name for name, value in metrics.items() if not np.isfinite(value)]
    if broken:
        raise FloatingPointError(f"the evaluation is not finite: {', '.join(broken)}")
    return metrics
