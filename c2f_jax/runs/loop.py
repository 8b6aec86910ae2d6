"""The whole story of a run, from a config to `results.json`."""

import os
import platform
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2f_jax import storage
from c2f_jax.console import tell
from c2f_jax.data import pipeline
from c2f_jax.data.sources import Subset
from c2f_jax.errors import Interrupted, UserError
from c2f_jax.evaluation.pictures import save_sheet
from c2f_jax.evaluation.scores import Scores, joined
from c2f_jax.runs import outcome, parallel, processes
from c2f_jax.runs.build import (
    Run,
    build,
    raw_images,
)
from c2f_jax.runs.checkpoint import Checkpoints
from c2f_jax.runs.checks import check_beginning
from c2f_jax.runs.evaluation import Asked, evaluator, tell_test
from c2f_jax.runs.event_files import EventFiles, check_place
from c2f_jax.runs.evidence import evidence_of
from c2f_jax.runs.explosion import Watch
from c2f_jax.runs.held_out import changed_parts, remember_parts
from c2f_jax.runs.input_values import with_input_values
from c2f_jax.runs.interruption import Interruption
from c2f_jax.runs.methods import unheeded
from c2f_jax.runs.workdir import TOKEN, check_workdir, claim_workdir, essential, locked, write_json
from c2f_jax.runs.writers import JsonLines, Reporter
from c2f_jax.training.stages import stage_at, stage_of_checkpoint
from c2f_jax.training.steps import predict, train_step
from c2f_jax.training.train_state import TrainState, switch_stage

Window = list[dict[str, jax.Array]]

SHEET_IMAGES = 12
SHARED_SECONDS = 10


def train_and_evaluate(
    config: Any, workdir: storage.Name, *, interruption: Interruption | None = None
) -> dict[str, Any]:
    """Trains through all stages, evaluates the test part once, and leaves everything in `workdir`.

    Called again with the same config it goes on from the last whole checkpoint; bit for bit on the same CPU. Weights
    come from 1 a checkpoint in `workdir`, 2 `config.init_from`, another run, 3 `config.model.pretrained`, 4 scratch.
    With several processes all call it, and process 0 alone prints and writes.

    Args:
        config: all fields of `configs/default.py`.
        workdir: holds `config.json`, `class_names.json`, `metrics.jsonl`, `results.json`, `samples.png`, `train.lock`
            `fusion.json`, `confusion.csv`, `per_class.csv` and `checkpoints/` in the end; with a validation part
            `unknown.json`, of photos `test_part.json`, where a table teaches `evidence.npy`.
        interruption: notes signals; the run then stops after a step, saved, in all processes at the same one.

    Returns:
        What is in `results.json`.

    Raises:
        UserError: if the config cannot be used, or `workdir` holds another run or is being trained.
        Interrupted: if a signal asked for it.
        FloatingPointError: if a term of the loss or a figure is not finite; it names the term and the steps.
    """
    began = time.perf_counter()
    workdir = storage.as_path("workdir", os.fspath(workdir))
    processes.together(lambda: check_beginning(config, workdir))
    config = processes.together(lambda: with_input_values(config, workdir))
    with ExitStack() as leaving:
        # What needs no data comes before them: they may take hours to make ready.
        processes.check_same("config", essential(config))
        if config.train.tensorboard:
            check_place(workdir)
        processes.by_first(lambda: check_workdir(workdir, config))
        still_ours = processes.by_first(lambda: leaving.enter_context(locked(workdir)))
        _check_shared(workdir)
        run = processes.together(lambda: build(config))
        names = run.splits.class_names
        processes.check_same("data set", [names, *map(len, (run.splits.train, run.splits.validation, run.splits.test))])
        # Before anything is claimed: what cannot be gone on with, or weights that cannot be had, leave no run behind.
        processes.by_first(lambda: check_workdir(workdir, config, names))
        begun = processes.told_by_first(lambda: "begun" if storage.is_dir(workdir / "checkpoints") else "")
        fresh = [] if begun else [run.create_state()]
        notes = processes.by_first(lambda: claim_workdir(workdir, config, names)) or ()
        if not begun:
            processes.by_first(lambda: remember_parts(workdir, run.splits, run.photos))
        elif changed := processes.told_by_first(lambda: changed_parts(workdir, run.splits, run.photos)):
            notes = (*notes, changed)
        checkpoints = leaving.enter_context(
            Checkpoints(
                workdir,
                every_steps=config.train.checkpoint_every_steps,
                at_steps=[stage.end for stage in run.stages],
                still_ours=still_ours,
            )
        )
        interruption = interruption or Interruption()
        leaving.callback(interruption.defer, False)
        if processes.count() > 1:
            interruption.defer()  # nobody leaves without the others
        return _train(run, workdir, checkpoints, interruption, notes, fresh, began, leaving)


def _train(
    run: Run,
    workdir: Path,
    checkpoints: Checkpoints,
    interruption: Interruption,
    notes: Sequence[str],
    fresh: list[TrainState],
    began: float,
    leaving: ExitStack,
) -> dict[str, Any]:
    """`train_and_evaluate` once `workdir` is ours. fresh: the state to begin with, or nothing; it is taken out."""
    config, stages, total, first = run.config, run.stages, run.total_steps, processes.is_first()
    train = config.train

    # --- State: from the last checkpoint, or a new one. ---
    resumed, start = (last := checkpoints.latest_step()) is not None, last or 0
    if resumed:
        start, state, progress, told = checkpoints.restore_latest(run.abstract_state)
        notes = (*notes, *told)
    else:
        state = fresh.pop() if fresh else run.create_state()
        progress = {"seconds": 0.0, "train_seconds": 0.0, "images": 0}
    fresh.clear()  # a second copy of everything, were it kept
    state = run.backend.put_state(state)
    log = JsonLines(workdir / "metrics.jsonl" if first else None, resume_step=start if resumed else None)
    curves = leaving.enter_context(EventFiles(workdir, resume_step=start)) if first and train.tensorboard else None

    def write_log(**event: Any) -> None:
        log.write(**event)
        if curves is not None:
            curves.write(**event)

    signals = parallel.Agreement(run.mesh)

    def signal() -> int:
        return signals(interruption.signal)

    watch = Watch(config, workdir, checkpoints, classes=len(run.splits.class_names), start=start)
    evaluate_on = evaluator(run, signal, watch.remedy)
    axis = run.backend.axis_name
    compiled = {
        stage.name: run.backend.compile(
            partial(
                train_step,
                task=run.task,
                stage=stage,
                seed=config.seed,
                accumulate=train.accumulate,
                ema_decay=train.ema_decay,
                axis_name=axis,
            )
        )
        for stage in stages
    }
    table_until = run.table_until
    evidence: np.ndarray | None = None
    batches: Iterator[Any] | None = None

    with Reporter(total, start=start, quiet=not first) as report, log:
        report.say(
            f"{config.method} on {config.dataset.name}: {len(run.splits.train)} training, "
            f"{len(run.splits.validation)} validation, {len(run.splits.test)} test images, "
            + ", then ".join(f"{stage.steps} steps {stage.name}" for stage in stages)
            + f"; {parallel.device_count()} x {parallel.device_kind()}"
            + (f" in {processes.count()} processes" if processes.count() > 1 else "")
        )
        for note in filter(None, (*run.splits.notes, *notes, unheeded(config))):
            report.say(note)
        if resumed:
            report.say(f"going on from step {start} of {total}")

        window: Window = []
        seen: dict[int, Scores] = {}  # by step, of the last evaluation of the validation part
        waited = 0.0  # seconds in this window that the host spent waiting for images
        closed: tuple[int, Window] | None = None
        window_began = time.perf_counter()

        def write_closed() -> None:
            nonlocal closed, window_began, waited
            if closed is None:
                return
            last_step, steps = closed
            metrics = watch.means(steps, last_step)
            now = time.perf_counter()
            seconds, window_began = now - window_began, now
            progress["train_seconds"] += seconds
            progress["images"] += len(steps) * train.batch_size
            metrics["images_per_second"] = len(steps) * train.batch_size / seconds
            metrics["input_wait"] = waited / seconds  # share of the time; 0 where images are always there
            waited = 0.0
            name = stage_at(stages, last_step - 1).name
            write_log(step=last_step, stage=name, split="train", metrics=metrics)
            done = (last_step - start) / (total - start)
            report.train(last_step, name, metrics, seconds_left=(now - began) * (1 - done) / done)
            closed = None

        # --- The loop: evaluate, save, next batch, step, then the metrics of the logging step before. ---
        for step in range(start, total + 1):
            stopping = signal()
            evaluating = run.evaluation_is_due(step) and not stopping
            saving = checkpoints.is_due(step) or step == total or stopping
            if evaluating or saving:
                # These wait for the device anyway: nothing is lost by writing first, and a resumed log has no gap.
                if window:
                    closed, window = (step, window), []
                write_closed()
            if evaluating:
                name = stage_of_checkpoint(stages, step).name
                whole = run.backend.get_state(state)
                try:
                    metrics, scores = evaluate_on(whole, run.splits.validation, f"validation part, step {step}")
                    seen = {step: scores}
                    write_log(step=step, stage=name, split="validation", metrics=metrics)
                    best = "fused" if "fused/loss" in metrics else "coarse"
                    report.say(f"{name} {step}/{total}  validation {best} {metrics[f'{best}/top_1_accuracy']:.2%}")
                except Asked as asked:
                    stopping = asked.signal  # in the middle of it: the next start evaluates again
            due = checkpoints.is_due(step)
            wanted = due or (stopping and step not in (0, checkpoints.latest_step()))
            if wanted and not watch.settled() and step < total:
                report.say(f"no checkpoint at step {step}: losses before it were far too large")
            elif wanted:
                elapsed = progress["seconds"] + time.perf_counter() - began
                state_now = run.backend.get_state(state)
                log.flush()  # which is never behind a checkpoint
                try:
                    checkpoints.save(step, state_now, {**progress, "seconds": elapsed}, due=due)
                except FloatingPointError as error:
                    raise FloatingPointError(f"{error}{watch.remedy()}") from None
            if stopping:
                checkpoints.close()
                where = f"saved at step {checkpoints.latest_step()} of {total}" if step else "before the first step"
                raise Interrupted(stopping, f"stopped, {where}; the same command goes on from there")
            if step == total:
                break
            if evaluating or saving:
                window_began = time.perf_counter()

            stage = stage_at(stages, step)
            if step == stage.start:
                state = run.backend.put_state(switch_stage(run.backend.get_state(state), stage))
            if evidence is None and step < table_until:
                evidence, batches = evidence_of(run, workdir, run.backend.get_state(state) if step == 0 else None), None
                window_began = time.perf_counter()
            elif evidence is not None and step >= table_until:
                evidence, batches = None, None  # as of a run that goes on from here
            batches = batches or run.training_batches(step, evidence)
            asked_for = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked_for
            state, metrics = compiled[stage.name](state, run.backend.put_batch(batch))
            interruption.defer()  # before the first step, which may take minutes to compile, there is nothing to lose
            write_closed()
            window.append(metrics)
            if (step + 1) % train.log_every_steps == 0:
                closed, window = (step + 1, window), []
            report.advance(step + 1, stage.name)

    # --- The test part, once, with the last parameters. ---
    checkpoints.close()
    final = run.backend.get_state(state)
    try:
        test, scores = evaluate_on(final, run.splits.test, "test part")
        if len(run.splits.validation) and total not in seen:
            _, seen[total] = evaluate_on(final, run.splits.validation, "validation part")
    except Asked as asked:
        raise Interrupted(
            asked.signal, f"stopped, saved at step {total} of {total}; the same command evaluates the test part"
        ) from None
    groups = getattr(run.splits.test, "groups", None)
    found = outcome.of_run(seen.get(total, joined([])), scores, groups=groups, step=total)
    test |= found.figures
    results = {
        **test,
        **found.results,
        "step": total,
        "method": config.method,
        "seed": config.seed,
        "seconds": progress["seconds"] + time.perf_counter() - began,
        "train_seconds": progress["train_seconds"],  # of it in steps; compilation too, not evaluation and saving
        "images_per_second": progress["images"] / max(progress["train_seconds"], 1e-9),
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(final.params)),
        **environment(),
    }
    if first:
        write_log(step=total, stage=stages[-1].name, split="test", metrics=test)
        write_json(workdir / "results.json", results)
        found.write(workdir, run.splits.class_names)
        interruption.defer(False)
        _draw_sheet(run, final, workdir / "samples.png")
        tell_test(config, f"{config.dataset.name}, test, {config.method}", test)
        for line in found.told():
            tell(line)
        tell(f"{results['seconds']:.0f} s; {workdir / 'results.json'}, {workdir / 'samples.png'}")
    return results


def environment() -> dict[str, Any]:
    """What a figure depends on besides the config."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "device": parallel.device_kind(),
        "device_count": parallel.device_count(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _draw_sheet(run: Run, state: TrainState, path: Path) -> None:
    """The first test images as a picture; by this process alone, on one device."""
    count = min(SHEET_IMAGES, len(run.splits.test))
    source, raw = Subset(run.splits.test, range(count)), raw_images(run.config)
    (batch,) = pipeline.evaluation_batches(source, batch_size=count, raw=raw, process=0, processes=1)
    # The weights are arguments: as constants they would make a program of their own size for each run.
    looks = partial(jax.jit(partial(predict, run.task)), *jax.tree.map(parallel.whole, state.answers))
    with storage.writing(path) as file:
        save_sheet(file, looks, batch, run.splits.class_names)


def _check_shared(workdir: Path) -> None:
    """Raises UserError unless all processes see the workdir of process 0."""
    if processes.count() == 1:
        return
    path, token = workdir / TOKEN, processes.told_by_first(lambda: secrets.token_hex(8))
    processes.by_first(lambda: storage.write_text(path, token))

    def look() -> None:
        deadline = time.monotonic() + SHARED_SECONDS  # network file systems may take a while to tell
        while _text(path) != token:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--workdir {workdir} is not the folder of process 0: give all processes one that they share"
                )
            time.sleep(0.1)

    try:
        processes.together(look)
    finally:
        if processes.is_first():
            storage.remove(path)


def _text(path: Path) -> str:
    with suppress(OSError):
        return storage.read_text(path)
    return ""
