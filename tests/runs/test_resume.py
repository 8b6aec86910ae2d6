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
from tests.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]
BOUNDARY, TOTAL = 10, 20
SETTINGS = [
    "--config.dataset.train_size=89",
    "--config.dataset.test_size=21",
    "--config.model.view_size=32",
    "--config.model.num_maps=4",
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
    run = build(tiny_config(parallel__backend="jit", train__batch_size=8))
    step = latest_step(workdir)
    assert step == TOTAL
    return jax.device_get(read(workdir, step, run.abstract_state(step)))


def events(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["split"], row["step"], row.get("fused/loss", row.get("loss"))) for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    finish(launch(folder / "whole"))
    return folder, final_state(folder / "whole")


MOMENTS = {
    "in the coarse stage": lambda workdir: max(saved_steps(workdir), default=0) >= 6,
    "at the boundary": lambda workdir: BOUNDARY in saved_steps(workdir),
    "in the fine stage": lambda workdir: max(saved_steps(workdir), default=0) >= 15,
    "during a save": lambda workdir: bool(being_saved(workdir)) and bool(saved_steps(workdir)),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again(uninterrupted, moment):
    folder, expected = uninterrupted
    workdir = folder / moment.replace(" ", "_")
    process = launch(workdir)
    while not MOMENTS[moment](workdir):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (workdir / "results.json").exists()

    output = finish(launch(workdir))
    assert "going on from step" in output
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), expected)
    again, whole = events(workdir), events(folder / "whole")
    assert [event[:2] for event in again if event[0] != "train"] == [e[:2] for e in whole if e[0] != "train"]
    assert [e for e in again if e[0] != "train"] == [e for e in whole if e[0] != "train"]
