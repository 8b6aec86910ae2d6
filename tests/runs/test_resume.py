"""Killed with SIGKILL and started again: bit for bit what an uninterrupted run gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import latest_step, read
from configs import paper_birds
from tests.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]
BOUNDARY, TOTAL = 10, 20
SETTINGS = [
    "--config.dataset.train_size=89",
    "--config.dataset.test_size=21",
    "--config.model.view_size=32",
    "--config.model.num_maps=4",
    "--config.region.view_size=0",
    "--config.stages.coarse_epochs=1",
    "--config.stages.fine_epochs=1",
    "--config.train.batch_size=8",
    "--config.train.eval_batch_size=8",
    "--config.train.eval_every_epochs=0.5",
    "--config.train.log_every_steps=4",
    "--config.train.checkpoint_every_steps=3",
]

pytestmark = pytest.mark.slow


def launch(workdir):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "launch.py", f"--workdir={workdir}", *SETTINGS]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def saved_steps(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()}


def being_saved(workdir):
    return list((workdir / "checkpoints").glob("*tmp*"))


def final_state(workdir):
    shipped = paper_birds.get_config().region
    squares = {"region__side": shipped.side, "region__teach": shipped.teach}
    run = build(tiny_config(parallel__backend="jit", train__batch_size=8, **squares))
    step = latest_step(workdir)
    assert step == TOTAL
    return jax.device_get(read(workdir, step, run.abstract_state(step)))


def events(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["split"], row["step"], row.get("fused/loss", row.get("loss"))) for row in rows]


# In this order: each is after the one before.
MOMENTS = {
    "in the coarse stage": lambda workdir: max(saved_steps(workdir), default=0) >= 3,
    "during a save": lambda workdir: bool(being_saved(workdir)),
    "at the boundary": lambda workdir: BOUNDARY in saved_steps(workdir),
    "in the fine stage": lambda workdir: max(saved_steps(workdir), default=0) >= 15,
}


def test_killed_and_started_again(tmp_path):
    """One run, killed at every moment and started again each time, against one that nobody killed."""
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    finish(launch(whole))
    for moment, came in MOMENTS.items():
        process, before = launch(workdir), max(saved_steps(workdir), default=0)
        while not came(workdir):
            assert process.poll() is None, (moment, process.communicate()[0])
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert not (workdir / "results.json").exists(), moment
        assert f"going on from step {before} of {TOTAL}" in output or not before, moment
    assert "going on from step" in finish(launch(workdir))
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(whole))
    again, expected = events(workdir), events(whole)
    assert [event[:2] for event in again if event[0] != "train"] == [e[:2] for e in expected if e[0] != "train"]
    assert [e for e in again if e[0] != "train"] == [e for e in expected if e[0] != "train"]
