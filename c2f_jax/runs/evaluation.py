"""Figures of a part: of a state in training, and of the last checkpoint by `--mode=eval`."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from c2f_jax import storage
from c2f_jax.console import tell
from c2f_jax.data.sources import Source, Splits
from c2f_jax.evaluation.confidence import kept
from c2f_jax.evaluation.evaluate import evaluate, metric_sums
from c2f_jax.evaluation.fusion import Fusion
from c2f_jax.evaluation.scores import Scores, batch_scores, joined
from c2f_jax.runs import fusion, none_of_these, outcome, parallel, processes
from c2f_jax.runs.build import Run, Trained, answering, build_trained, evaluation_batches, load_splits
from c2f_jax.runs.checkpoint import latest_step, read_latest
from c2f_jax.runs.held_out import check_test_part
from c2f_jax.runs.workdir import essential
from c2f_jax.runs.writers import print_table
from c2f_jax.training.losses import Task
from c2f_jax.training.steps import predict
from c2f_jax.training.train_state import TrainState

# Of the first look's area: a second look that covers more hardly adds to it. On CUB-50 second looks gain 3 points at
# 0.61, and next to nothing at 0.97 and 1.00 (docs/findings.md).
TOO_LARGE = 0.9


def evaluate_checkpoint(config: Any, workdir: storage.Name, *, tell_unknown: bool = False) -> dict[str, float]:
    """The test metrics of the last checkpoint in `workdir`, printed and returned; nothing is written.

    Args:
        config: as the run's; its paths may be others, where the same photos lie.
        workdir: the run's.
        tell_unknown: print how many images the threshold for unknown ones keeps, too.

    Raises:
        UserError: if there is no checkpoint, it was trained on other classes, or the photos are not those of the run.
        FloatingPointError: if a figure is not finite.
    """
    workdir = storage.as_path("workdir", os.fspath(workdir))

    def prepare() -> tuple[Splits, Trained, dict[int, Fusion | None]]:
        step = latest_step(workdir)  # a run that has none says so before the data are read
        answers = fusion.read(workdir, step)
        if tell_unknown:
            none_of_these.read_threshold(workdir, step, answers)
        splits = load_splits(config)
        note = check_test_part(workdir, config, splits)
        if note and processes.is_first():
            tell(note)
        return splits, build_trained(config, num_classes=len(splits.class_names)), {step: answers}

    splits, trained, known_answers = processes.together(prepare)
    processes.check_same("config", essential(config))
    processes.check_same("data set", [splits.class_names, len(splits.test)])
    step, model = read_latest(workdir, trained.abstract_model)
    model = answering(model)
    batches = evaluation_batches(config, splits.test, trained.mesh)
    program = _eval_program(trained.task, trained.mesh)
    metrics, scores = _evaluated(program, model["params"], model["batch_stats"], batches)
    answers = known_answers[step] if step in known_answers else fusion.read(workdir, step)
    metrics |= outcome.calibrated_figures(scores, answers)
    if processes.is_first():
        tell_test(config, f"{config.dataset.name}, test, {config.method}, step {step}", metrics)
        if tell_unknown:
            threshold = none_of_these.read_threshold(workdir, step, answers)
            known = none_of_these.confidence_and_right(scores, answers or Fusion())
            tell(none_of_these.told(kept(*known, threshold), threshold, "test, none of these"))
    return metrics


def tell_test(config: Any, title: str, metrics: dict[str, float]) -> None:
    """The table; and that the second look is lost, where it is, which accuracy alone would not tell."""
    print_table(title, metrics)
    share = metrics.get("box/share_of_view", 0.0)
    if share > TOO_LARGE and config.method != "wsdan":  # whose second look knows nothing of `region`
        remedy = "--config.region.background=1.0 --config.region.floor=0.0 --config.region.kappa=2.9"
        if config.region.side:
            remedy = "--config.region.side=0.4"
        elif config.region.background:
            remedy = "--config.region.max_side=0.7"
        tell(
            f"the second look covers {share:.0%} of the first and hardly adds to it; "
            f"to hold it back, train with {remedy}"
        )


class Asked(Exception):
    """A signal asks to leave an evaluation."""

    def __init__(self, signal: int):
        super().__init__()
        self.signal = signal


def _eval_program(task: Task, mesh: jax.sharding.Mesh) -> Any:
    """(params, batch_stats, batch) -> all metrics as (sum, count) pairs, and `batch_scores`."""

    def program(params: Any, batch_stats: Any, batch: Any) -> tuple[Any, Any]:
        looks = predict(task, params, batch_stats, batch)
        return metric_sums(looks, batch), batch_scores(looks, batch)

    return jax.jit(program, out_shardings=parallel.replicated(mesh))


def _evaluated(program: Any, params: Any, batch_stats: Any, batches: Iterator[Any]) -> tuple[dict[str, float], Scores]:
    """The metrics over all batches, and what the network said of each image."""
    rows: list[Any] = []

    def step(params: Any, batch_stats: Any, batch: Any) -> Any:
        sums, row = program(params, batch_stats, batch)
        rows[-1:] = jax.device_get(rows[-1:])  # a batch late, so that nobody waits
        rows.append(row)
        return sums

    return evaluate(step, params, batch_stats, batches), joined(rows)


def evaluator(run: Run, signal: Callable[[], int], remedy: Callable[[], str]) -> Any:
    """(state, source, what it is) -> what `_evaluated` does; raises `Asked` between batches if there is a signal.

    Where the state has averages, with which the run answers, metrics and scores are theirs; those of what is trained
    come beside as `trained_...`.
    """
    program = _eval_program(run.task, run.mesh)

    def heeding(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            if number := signal():
                raise Asked(number)
            yield batch

    def evaluate_on(state: TrainState, source: Source, what: str) -> tuple[dict[str, float], Scores]:
        try:
            metrics, scores = _evaluated(program, *state.answers, heeding(run.evaluation_batches(source)))
            if state.average is None:
                return metrics, scores
            trained = state.params, state.batch_stats
            beside, _ = _evaluated(program, *trained, heeding(run.evaluation_batches(source)))
            return metrics | {f"trained_{name}": value for name, value in beside.items()}, scores
        except FloatingPointError as error:
            raise FloatingPointError(f"{what}: {error}{remedy()}") from None

    return evaluate_on
