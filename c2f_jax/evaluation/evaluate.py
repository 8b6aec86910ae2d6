"""Evaluation of a split: every example once, padded and masked."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from c2f_jax.evaluation.classification import classification_sums
from c2f_jax.evaluation.localization import localization_sums
from c2f_jax.models.two_looks import log_probabilities
from c2f_jax.training.losses import Task
from c2f_jax.training.metrics import Sums, finalise, merge
from c2f_jax.training.steps import predict

EvalStep = Callable[[Any, Any, dict[str, jax.Array]], Sums]


def eval_step(task: Task, params: Any, batch_stats: dict[str, Any], batch: dict[str, jax.Array]) -> Sums:
    """All metrics of one batch, as (sum, count) pairs.

    Args:
        task: what is evaluated.
        params, batch_stats: of the train state.
        batch: `image` uint8 [B, R, R, 3], `square` [B, 2], `label` [B], `mask` [B], and boxes and parts where known.
    """
    looks = predict(task, params, batch_stats, batch)
    sums = {}
    for view, values in log_probabilities(looks).items():
        for name, pair in classification_sums(values, batch["label"], batch["mask"]).items():
            sums[f"{view}/{name}"] = pair
    if "fine" in looks:
        sums.update(localization_sums(looks["fine"].box, batch))
    return sums


def evaluate(
    step: EvalStep, params: Any, batch_stats: dict[str, Any], batches: Iterable[dict[str, jax.Array]]
) -> dict[str, float]:
    """The metrics over all batches (already on the devices), as fractions, losses in nats."""
    total: Sums | None = None
    for batch in batches:
        total = merge(total, step(params, batch_stats, batch))
    return finalise(total) if total is not None else {}
