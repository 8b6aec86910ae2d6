"""A training that explodes: checkpoints that were saved meanwhile are not what its advice leads to."""

import re
import shlex

import jax
import numpy as np
import pytest

from c2f_jax import cli
from c2f_jax.runs import methods
from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.explosion import Watch
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow


def size(workdir, config):
    """The largest parameter of the last checkpoint."""
    _, model = read_latest(workdir, build(config).abstract_model)
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(model["params"]))


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def exploding(at, factor):
    """A schedule that is usual until step `at`, and then far too large."""
    return lambda *args, **settings: lambda step: jax.numpy.where(step < at, 1e-3, factor)


def test_what_was_saved_while_it_exploded_is_set_aside(tmp_path, capsys, monkeypatch):
    at, good = 5, 4  # huge parameters are saved at step 6
    config = tiny_config(
        method="baseline",
        stages__coarse_epochs=1.6,
        optimizer__name="sgd",
        optimizer__clip_norm=0.0,
        train__checkpoint_every_steps=2,
        train__eval_every_epochs=0.0,
        train__log_every_steps=20,  # more than explode: nothing is written of it in between
    )
    monkeypatch.setattr(cli, "load_config", lambda path: config.copy_and_resolve_references())
    monkeypatch.setattr(methods, "make_schedule", exploding(at, 1e30))
    workdir = tmp_path / "a run"
    assert cli.main([f"--workdir={workdir}"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "not finite" in line
    left = steps(workdir / "checkpoints")
    assert left[-1] == good and size(workdir, config) < 100.0
    aside = steps(workdir / "damaged")
    told = re.search(r"set aside: checkpoint ([\d, ]+)", line)
    assert aside == [int(step) for step in told[1].split(", ")] == [at + 1]

    # The command it gives is one that a shell takes, and leads to a training.
    monkeypatch.undo()
    monkeypatch.setattr(cli, "load_config", lambda path: config.copy_and_resolve_references())
    advice = [word for word in shlex.split(line.partition("smaller steps: ")[2].partition(" (or")[0])]
    assert any("a run_2" in word for word in advice)
    assert cli.main(advice) == 0
    assert f"from checkpoint {good} of" in capsys.readouterr().out


def test_the_usual_losses_of_a_run_are_calm():
    class Nothing:
        def set_aside_after(self, step):
            return f"; after {step}"

        def latest_step(self):
            return None

    watch = Watch(tiny_config(), "run", Nothing(), classes=16, start=0)
    rows = [{"coarse/loss": value, "loss": 1e9} for value in (2.8, 14.0, 83.0, 84.0, 2.0, 1e6, 3e3)]
    assert watch.means(rows, 107)["loss"] == 1e9 and watch.calm == 104  # 30 log 16 = 83.2
    assert not watch.settled() and watch.settled()
    with pytest.raises(FloatingPointError, match="at step 108 .*of the interval 107 to 108.*; after 107; start again"):
        watch.means([{"coarse/loss": 3.0}, {"coarse/loss": float("nan")}], 109)
