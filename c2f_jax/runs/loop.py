"""The whole story of a run, from a config to `results.json`."""

import platform
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2f_jax.data.sources import Source, Subset
from c2f_jax.evaluation.evaluate import eval_step, evaluate
from c2f_jax.evaluation.pictures import save_sheet
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import Checkpoints, open_finished
from c2f_jax.runs.workdir import check_class_names, claim_workdir, write_json
from c2f_jax.runs.writers import JsonLines, Reporter, print_table
from c2f_jax.training.stages import stage_at, stage_of_checkpoint
from c2f_jax.training.steps import predict, train_step
from c2f_jax.training.train_state import switch_stage

Window = list[dict[str, jax.Array]]

SHEET_IMAGES = 12
# Of the first look's area: a second look that covers more hardly adds to it. On CUB-50 second looks gain 3 points at
# 0.61, and next to nothing at 0.97 and 1.00 (docs/method.md).
TOO_LARGE = 0.9


def train_and_evaluate(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Trains through all stages, evaluates the test part once, and leaves everything in `workdir`.

    Called again with the same config it goes on from the last checkpoint; bit for bit on the same CPU. Weights come
    from 1 a checkpoint in `workdir`, 2 `config.model.pretrained`, 3 scratch.

    Args:
        config: all fields of `configs/default.py`.
        workdir: holds `config.json`, `class_names.json`, `metrics.jsonl`, `results.json`, `samples.png` and
            `checkpoints/` in the end.

    Returns:
        What is in `results.json`.

    Raises:
        UserError: if the config cannot be used, or `workdir` holds another run.
        FloatingPointError: if a term of the loss is not finite; it names the term and the steps.
    """
    began = time.perf_counter()
    run = build(config)
    workdir = Path(workdir)
    # Made before anything is written: weights that cannot be had leave no workdir behind.
    fresh = None if (workdir / "checkpoints").is_dir() else run.create_state()
    claim_workdir(workdir, config, run.splits.class_names)
    train, stages, total = config.train, run.stages, run.total_steps

    # --- State: from the last checkpoint, or a new one. ---
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        every_steps=train.checkpoint_every_steps,
        at_steps=[stage.end for stage in stages],
    )
    resumed, start = (last := checkpoints.latest_step()) is not None, last or 0
    if resumed:
        state, progress = checkpoints.restore(start, run.abstract_state(start))
    else:
        state, progress = fresh or run.create_state(), {"seconds": 0.0, "train_seconds": 0.0, "images": 0}
    state = run.backend.put_state(state)
    log = JsonLines(workdir / "metrics.jsonl", resume_step=start if resumed else None)

    evaluate_on = _evaluator(run)
    axis = run.backend.axis_name
    compiled = {
        stage.name: run.backend.compile(
            partial(
                train_step,
                task=run.task,
                stage=stage,
                seed=config.seed,
                accumulate=train.accumulate,
                axis_name=axis,
            )
        )
        for stage in stages
    }
    batches = run.training_batches(start)

    with Reporter(total, start=start) as report:
        report.say(
            f"{config.method} on {config.dataset.name}: {len(run.splits.train)} training, "
            f"{len(run.splits.validation)} validation, {len(run.splits.test)} test images, "
            + ", then ".join(f"{stage.steps} steps {stage.name}" for stage in stages)
            + f"; {jax.device_count()} x {jax.devices()[0].device_kind}"
        )
        for note in run.splits.notes:
            report.say(note)
        if resumed:
            report.say(f"going on from step {start} of {total}")

        window: Window = []
        waited = 0.0  # seconds in this window that the host spent waiting for images
        closed: tuple[int, Window] | None = None
        window_began = time.perf_counter()

        def write_closed() -> None:
            nonlocal closed, window_began, waited
            if closed is None:
                return
            last_step, steps = closed
            metrics = _window_means(steps, last_step)
            now = time.perf_counter()
            seconds, window_began = now - window_began, now
            progress["train_seconds"] += seconds
            progress["images"] += len(steps) * train.batch_size
            metrics["images_per_second"] = len(steps) * train.batch_size / seconds
            metrics["input_wait"] = waited / seconds  # share of the time; 0 where images are always there
            waited = 0.0
            name = stage_at(stages, last_step - 1).name
            log.write(step=last_step, stage=name, split="train", metrics=metrics)
            done = (last_step - start) / (total - start)
            report.train(last_step, name, metrics, seconds_left=(now - began) * (1 - done) / done)
            closed = None

        # --- The loop: evaluate, save, next batch, step, then the metrics of the logging step before. ---
        for step in range(start, total + 1):
            evaluating, saving = run.evaluation_is_due(step), checkpoints.is_due(step) or step == total
            if evaluating or saving:
                # These wait for the device anyway: nothing is lost by writing first, and a resumed log has no gap.
                if window:
                    closed, window = (step, window), []
                write_closed()
            if evaluating:
                name = stage_of_checkpoint(stages, step).name
                whole = run.backend.get_state(state)
                metrics = evaluate_on(whole.params, whole.batch_stats, run.splits.validation)
                log.write(step=step, stage=name, split="validation", metrics=metrics)
                best = "fused" if "fused/loss" in metrics else "coarse"
                report.say(f"{name} {step}/{total}  validation {best} {metrics[f'{best}/top_1_accuracy']:.2%}")
            if checkpoints.is_due(step):
                elapsed = progress["seconds"] + time.perf_counter() - began
                checkpoints.save(step, run.backend.get_state(state), {**progress, "seconds": elapsed})
            if step == total:
                break
            if evaluating or saving:
                window_began = time.perf_counter()

            stage = stage_at(stages, step)
            if step == stage.start:
                state = run.backend.put_state(switch_stage(run.backend.get_state(state), stage))
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            state, metrics = compiled[stage.name](state, run.backend.put_batch(batch))
            write_closed()
            window.append(metrics)
            if (step + 1) % train.log_every_steps == 0:
                closed, window = (step + 1, window), []
            report.advance(step + 1, stage.name)

    # --- The test part, once, with the last parameters. ---
    checkpoints.close()
    final = run.backend.get_state(state)
    test = evaluate_on(final.params, final.batch_stats, run.splits.test)
    log.write(step=total, stage=stages[-1].name, split="test", metrics=test)
    save_sheet(
        workdir / "samples.png",
        jax.jit(partial(predict, run.task, final.params, final.batch_stats)),
        next(run.evaluation_batches(Subset(run.splits.test, range(min(SHEET_IMAGES, len(run.splits.test)))))),
        run.splits.class_names,
    )
    results = {
        **test,
        "step": total,
        "method": config.method,
        "seed": config.seed,
        "seconds": progress["seconds"] + time.perf_counter() - began,
        "train_seconds": progress["train_seconds"],  # of it in steps; compilation too, not evaluation and saving
        "images_per_second": progress["images"] / max(progress["train_seconds"], 1e-9),
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(final.params)),
        **environment(),
    }
    write_json(workdir / "results.json", results)
    _tell_test(config, f"{config.dataset.name}, test, {config.method}", test)
    print(f"{results['seconds']:.0f} s; {workdir / 'results.json'}, {workdir / 'samples.png'}")
    return results


def evaluate_checkpoint(config: Any, workdir: str | Path) -> dict[str, float]:
    """The test metrics of the last checkpoint in `workdir`, printed and returned; nothing is written.

    Raises:
        UserError: if there is no checkpoint, or it was trained on other classes.
    """
    checkpoints, step = open_finished(Path(workdir))
    run = build(config)
    check_class_names(Path(workdir), run.splits.class_names)
    params, batch_stats = checkpoints.restore_model(step, run.abstract_state(step))
    checkpoints.close()
    metrics = _evaluator(run)(params, batch_stats, run.splits.test)
    _tell_test(config, f"{config.dataset.name}, test, {config.method}, step {step} of {run.total_steps}", metrics)
    return metrics


def environment() -> dict[str, Any]:
    """What a figure depends on besides the config."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _tell_test(config: Any, title: str, metrics: dict[str, float]) -> None:
    """The table; and that the second look is lost, where it is, which accuracy alone would not tell."""
    print_table(title, metrics)
    share = metrics.get("box/share_of_view", 0.0)
    if share > TOO_LARGE and config.method != "wsdan":  # whose second look knows nothing of `region`
        remedy = "--config.region.background=1.0 --config.region.floor=0.0 --config.region.kappa=2.9"
        if config.region.background:
            remedy = "--config.region.max_side=0.7"
        print(
            f"the second look covers {share:.0%} of the first and hardly adds to it; "
            f"to hold it back, train with {remedy}"
        )


def _evaluator(run: Run) -> Any:
    step = jax.jit(partial(eval_step, run.task))

    def evaluate_on(params: Any, batch_stats: Any, source: Source) -> dict[str, float]:
        return evaluate(step, params, batch_stats, run.evaluation_batches(source))

    return evaluate_on


def _window_means(window: Sequence[dict[str, jax.Array]], last_step: int) -> dict[str, float]:
    """Means over the steps of a logging window that ends before `last_step`.

    Raises:
        FloatingPointError: if a term of the loss is not finite in any of its steps.
    """
    rows = jax.device_get(list(window))
    first_step = last_step - len(rows)
    for offset, row in enumerate(rows):
        terms = [name for name, value in row.items() if not np.isfinite(value)]
        if terms:
            raise FloatingPointError(
                f"not finite at step {first_step + offset} (of the interval {first_step} to {last_step - 1}): "
                f"{', '.join(terms)}; try a smaller --config.optimizer.learning_rate or --config.optimizer.clip_norm"
            )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
