"""Evaluation, prediction and `load_model` change nothing in a run, nor disturb its trainer; a run has one trainer."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.chaos import Started, events
from c2f_jax import cli
from c2f_jax.data.paper_birds import PaperBirds
from c2f_jax.errors import UserError
from c2f_jax.inference import load_model
from c2f_jax.runs import checkpoint, loop, parallel
from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import Checkpoints, latest_step, read
from c2f_jax.runs.evaluation import evaluate_checkpoint
from c2f_jax.runs.loop import train_and_evaluate
from c2f_jax.runs.workdir import LOCK, check_workdir, claim_workdir, locked, read_config
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow


def digest(folder):
    """Every file's content and every folder's name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    birds = PaperBirds("test", size=3)
    for i in range(3):
        Image.fromarray(birds[i]["image"]).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def torn(finished, tmp_path):
    """A finished run with what a live trainer would have there: a save under way."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    under_way = workdir / "checkpoints" / "21.orbax-checkpoint-tmp" / "state"
    under_way.mkdir(parents=True)
    (under_way / "half").write_text("of it")
    return workdir


def test_readers_leave_every_byte(torn, photos, tmp_path, capsys):
    before = digest(torn)
    readers = {
        "eval": lambda: cli.main(["--mode=eval", f"--workdir={torn}"]),
        "predict": lambda: cli.main(
            ["--mode=predict", f"--workdir={torn}", f"--images={photos}", f"--output={tmp_path / 'p.csv'}"]
        ),
        "load_model": lambda: len(list(load_model(torn).predict(photos))) - 3,
        "evaluate_checkpoint": lambda: evaluate_checkpoint(read_config(torn), torn).clear() or 0,
    }
    for name, read_it in readers.items():
        assert read_it() == 0, name
        assert digest(torn) == before, name


def test_readers_mind_no_training_batch(finished):
    """Four devices share an evaluation batch of any size, and 5 training images need be no batch of anything."""
    workdir, results = finished
    config = read_config(workdir)
    config.train.batch_size, config.train.eval_batch_size, config.train.accumulate = 7, 5, 3
    found = evaluate_checkpoint(config, workdir)
    assert found == pytest.approx({name: results[name] for name in found}, abs=1e-5)


def test_checkpoints_restore_onto_the_devices_that_are_there(finished, tmp_path):
    """Saved by four: read whole by one, and by two; saved by one: read by four."""
    workdir, _ = finished
    run, step = build(tiny_config()), latest_step(workdir)
    on_four = read(workdir, step, run.abstract_state(step))
    assert len(jax.tree.leaves(on_four)[0].sharding.device_set) == 4
    for count in (1, 2):
        mesh = parallel.make_mesh(jax.devices()[:count])
        fewer = read(workdir, step, parallel.on_mesh(run.abstract_state(step), mesh))
        assert all(len(leaf.sharding.device_set) == count for leaf in jax.tree.leaves(fewer))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(fewer), jax.device_get(on_four))
        with Checkpoints(tmp_path / str(count), every_steps=1, at_steps=()) as checkpoints:
            checkpoints.save(step, fewer, {"seconds": 1.0})
        with Checkpoints(tmp_path / str(count), every_steps=1, at_steps=()) as checkpoints:
            again, progress = checkpoints.restore(step, run.abstract_state(step))
        assert progress == {"seconds": 1.0} and len(jax.tree.leaves(again)[0].sharding.device_set) == 4
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(on_four))


def test_readers_beside_a_trainer_that_saves_every_step(tmp_path, compiled):
    workdir = tmp_path / "run"
    trainer = Started(
        workdir,
        compiled,
        settings=("--config.train.checkpoint_every_steps=1", "--config.stages.coarse_epochs=200"),
    )
    looked, seen = 0, set()
    while trainer.running() and looked < 30:
        if (workdir / "class_names.json").exists() and len(events(workdir)) > 2:
            try:
                load_model(workdir)
                seen.add(latest_step(workdir))
                looked += 1
            except UserError as error:
                assert "no checkpoint" in str(error)
        time.sleep(0.01)
    trainer.processes[0].send_signal(signal.SIGTERM)
    ((code, said),) = trainer.finish()
    assert code == 143 and looked == 30 and len(seen) > 2, said


def test_a_checkpoint_that_goes_away_while_it_is_read(finished, tmp_path, monkeypatch):
    """File by file, and under its name to the last: the next one is read; where there is none, a line says so."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    shutil.rmtree(workdir / "checkpoints" / str(steps[0]) / "state" / "d")
    answers = iter([steps[0], steps[1]])
    monkeypatch.setattr(checkpoint, "latest_step", lambda _: next(answers))
    template = build(tiny_config()).abstract_model
    assert checkpoint.read_latest(workdir, template)[0] == steps[1]
    monkeypatch.setattr(checkpoint, "latest_step", lambda _: steps[0])
    with pytest.raises(UserError, match=f"checkpoint {steps[0]} cannot be read"):
        checkpoint.read_latest(workdir, template)


def test_what_cannot_be_written_or_read_is_a_line(finished, tmp_path, capsys):
    (tmp_path / "file").touch()
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "config.json").write_text("{half")
    for command, words in (
        ([f"--workdir={tmp_path / 'file' / 'run'}"], f"({tmp_path / 'file'} is a file)"),
        (["--mode=eval", f"--workdir={workdir}"], "config.json is not JSON"),
    ):
        assert cli.main([*command, "--config.dataset.train_size=89"] if "eval" not in command[0] else command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_nobody_listens(tmp_path):
    """`launch.py | head`: what tells goes quiet, and the run goes on."""
    code = (
        "import sys, time; from c2f_jax.runs.writers import Reporter, print_table\n"
        "with Reporter(9, start=0) as report:\n"
        "    for i in range(200): report.say('x' * 1000); time.sleep(0.001)\n"
        "print_table('t', {'coarse/loss': 1.0} | {f'coarse/{n}': 0.5 for n in ('top_1_accuracy', 'top_5_accuracy', "
        "'mean_per_class_accuracy', 'calibration_error')})\n"
        "print('the end', file=sys.stderr)"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    assert process.communicate(timeout=60)[1].splitlines()[-1:] == ["the end"] and process.returncode == 0


def test_one_trainer_a_run(tmp_path, compiled):
    """A second one is refused and changes nothing; a dead one is not in the way."""
    workdir = tmp_path / "run"
    first = Started(workdir, compiled)
    while not events(workdir):
        assert first.running(), first.finish()
        time.sleep(0.01)
    first.processes[0].send_signal(signal.SIGSTOP)
    try:
        before = digest(workdir)
        ((code, said),) = Started(workdir, compiled).finish()
        assert code == 2 and f"{workdir} is being trained by another process" in said.splitlines()[-1]
        assert digest(workdir) == before
    finally:
        first.processes[0].send_signal(signal.SIGKILL)
        first.finish()
    ((code, said),) = Started(workdir, compiled).finish()
    assert code == 0, said


def test_a_lock_leaves_no_folder_that_is_nobodys(tmp_path):
    workdir = tmp_path / "a" / "b"
    with locked(workdir):
        assert (workdir / LOCK).exists()
        with pytest.raises(UserError, match="another process"), locked(workdir):
            pass
        assert (workdir / LOCK).exists()
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("another run", "seed: 7 there, 0 now"),
        ("strangers", "is not a run"),
        ("below a file", "cannot be written to"),
        ("being trained", "being trained by another process"),
    ],
)
def test_a_workdir_that_cannot_be_used_is_told_before_data_are_asked_for(tmp_path, monkeypatch, case, line):
    """They may take hours to make ready."""
    workdir = tmp_path / "run"
    monkeypatch.setattr(loop, "build", lambda config: pytest.fail("data were asked for"))
    with ExitStack() as leaving:
        if case == "another run":
            workdir.mkdir()
            claim_workdir(workdir, tiny_config(seed=7), ["a", "b"])
            (workdir / "metrics.jsonl").write_text("{}\n")
        elif case == "strangers":
            workdir.mkdir()
            (workdir / "thesis.tex").write_text("")
        elif case == "below a file":
            workdir.write_text("")
            workdir = workdir / "below"
        else:
            leaving.enter_context(locked(workdir))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=line):
            train_and_evaluate(tiny_config(), workdir)
        assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_change_the_result_may_differ(finished, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    names = json.loads((workdir / "class_names.json").read_text())
    free = {"train__eval_batch_size": 12, "train__log_every_steps": 1, "train__checkpoint_every_steps": 7}
    free |= {"train__eval_every_epochs": 0.0, "dataset__memory_mib": 0, "dataset__cache_dir": "/elsewhere"}
    config = tiny_config(**free, compilation_cache="", parallel__backend="pmap")
    assert train_and_evaluate(config, workdir)["fused/loss"] == pytest.approx(finished[1]["fused/loss"], abs=1e-5)
    told = capsys.readouterr().out
    for line in ("train.eval_batch_size: 8 there, 12 now", "parallel.backend: jit there, pmap now"):
        assert line in told
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["train"]["eval_batch_size"] == 12 and stored["parallel"]["backend"] == "pmap"
    for name in ("train__batch_size", "train__accumulate", "seed", "dataset__raw_size"):
        with pytest.raises(UserError, match=f"{name.replace('__', '.')}: "):
            check_workdir(workdir, tiny_config(**{name: 4}), names)


def test_paths_may_be_written_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    workdir = tmp_path / "run"
    workdir.mkdir()
    claim_workdir(workdir, tiny_config(dataset__name="folder", dataset__path="photos"), ["a", "b"])
    (workdir / "metrics.jsonl").write_text('{"step": 1}\n')  # a run that has recorded nothing gives up its place
    monkeypatch.chdir("/")
    for spelling in ("~/photos", str(tmp_path / "photos" / ".." / "photos"), f"{tmp_path}/photos/"):
        assert check_workdir(workdir, tiny_config(dataset__name="folder", dataset__path=spelling), ["a", "b"]) == ()
    with pytest.raises(UserError, match="dataset.path: "):
        check_workdir(workdir, tiny_config(dataset__name="folder", dataset__path="photos"), ["a", "b"])


def test_a_start_that_was_killed_before_it_had_claimed_is_no_stranger(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (LOCK, "class_names.json", "config.tmp"):
        (tmp_path / "run" / name).write_text("half")
    claim_workdir(tmp_path / "run", tiny_config(), ["a"])
    assert json.loads((tmp_path / "run" / "class_names.json").read_text()) == ["a"]
