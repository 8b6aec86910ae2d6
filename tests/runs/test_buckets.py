"""Runs, data and predictions in a bucket (gs://): the same as in folders of this machine, in every mode."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2f_jax import cli, storage
from c2f_jax.data import listing, photos
from c2f_jax.data.paper_birds import CLASS_NAMES, PaperBirds
from c2f_jax.errors import UserError
from c2f_jax.inference import load_model
from c2f_jax.runs import lease
from c2f_jax.runs.checkpoint import latest_step
from c2f_jax.runs.evaluation import evaluate_checkpoint
from c2f_jax.runs.lease import Lease
from c2f_jax.runs.loop import train_and_evaluate
from c2f_jax.runs.writers import JsonLines
from tests import bucket as buckets
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bucket():
    with buckets.served() as place:
        yield place


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Drawn birds of four classes as files, one of them no image."""
    root, source = tmp_path_factory.mktemp("tree") / "photos", PaperBirds("train", size=200)
    kept = [i for i in range(200) if source[i]["label"] < 4]
    for i in kept:
        path = root / CLASS_NAMES[source[i]["label"]] / f"{i:03} [red] $x$.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source[i]["image"]).save(path)
    (root / CLASS_NAMES[0] / "broken.jpg").write_bytes(b"no image")
    (root / CLASS_NAMES[0] / "empty.jpg").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def remote_tree(bucket, tree):
    buckets.put(tree, f"{bucket}/photos")
    return f"{bucket}/photos"


def settings(path, **others):
    sizes = {"dataset__train_size": None, "dataset__test_size": None, "dataset__validation_fraction": 0.1}
    kind = {"method": "attention", "stages__coarse_epochs": 2.0}
    return tiny_config(dataset__name="folder", dataset__path=str(path), **sizes, **kind, **others)


@pytest.fixture(scope="module")
def both(bucket, tree, remote_tree, tmp_path_factory):
    """(workdir, results) of a run here, and of the same one in the bucket."""
    cache = tmp_path_factory.mktemp("cache")
    here = tmp_path_factory.mktemp("here") / "run"
    found = []
    for workdir, path in ((here, tree), (f"{bucket}/runs/one", remote_tree)):
        found.append((workdir, train_and_evaluate(settings(path, dataset__cache_dir=str(cache)), workdir)))
    return found


def figures(results):
    return {name: value for name, value in results.items() if "/" in name}


def test_a_run_in_a_bucket_is_the_run_of_this_machine(both, tree):
    (here, results), (there, remote) = both
    assert figures(results) == figures(remote)
    names = set(storage.names(storage.path(there)))
    assert names == {path.name for path in here.iterdir()} - {"train.lock"}
    assert storage.read_bytes(storage.path(there) / "samples.png").startswith(b"\x89PNG")
    lines = storage.read_text(storage.path(there) / "metrics.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [
        json.loads(line)["step"] for line in (here / "metrics.jsonl").read_text().splitlines()
    ]
    assert latest_step(storage.path(there)) == latest_step(here)
    # The test part is the same photos wherever they lie.
    moved = settings(tree, dataset__cache_dir=str(here.parent / "cache"))
    assert figures(evaluate_checkpoint(moved, there)) == figures(results)


def test_every_mode_reads_and_writes_there(both, bucket, tree, remote_tree, tmp_path, capsys):
    (here, _), (there, _) = both
    assert cli.main(["--mode=eval", f"--workdir={there}"]) == 0
    for workdir, images, output in ((here, tree, tmp_path / "new"), (there, remote_tree, f"{bucket}/out/new")):
        assert cli.main(["--mode=eval", f"--workdir={workdir}", f"--images={images}", f"--output={output}.json"]) == 0
        command = ["--mode=predict", f"--workdir={workdir}", f"--images={images}", f"--output={output}_p.csv"]
        assert cli.main([*command, f"--overlays={output}_pictures"]) == 0
    for end in (".csv", "_p.csv"):
        ours = storage.read_text(tmp_path / f"new{end}")
        assert storage.read_text(storage.path(f"{bucket}/out/new{end}")) == ours
        assert len(list(csv.DictReader(ours.splitlines()))) == sum(1 for _ in tree.rglob("*.*"))
    pictures = storage.find(storage.path(f"{bucket}/out/new_pictures"))
    assert pictures == sorted(
        str(path.relative_to(tmp_path / "new_pictures")) for path in (tmp_path / "new_pictures").rglob("*.png")
    )
    # Nothing is overwritten there either.
    capsys.readouterr()
    assert cli.main(["--mode=eval", f"--workdir={there}", f"--images={tree}", f"--output={bucket}/out/new.json"]) == 2
    assert "exists" in capsys.readouterr().err
    model = load_model(there)
    one = storage.find(storage.path(remote_tree))[0]
    (prediction,) = model.predict([f"{remote_tree}/{one}"])
    assert prediction.error is None and prediction.file == f"{remote_tree}/{one}"


def test_a_new_run_begins_with_one_of_a_bucket(both, bucket, remote_tree, tmp_path, capsys):
    (_, _), (there, _) = both
    config = settings(remote_tree, dataset__cache_dir=str(tmp_path), init_from=there)
    train_and_evaluate(config, f"{bucket}/runs/two")
    assert f"of {there}" in capsys.readouterr().out


def test_a_run_goes_on_in_a_bucket(both, bucket, remote_tree, tmp_path, monkeypatch):
    (_, results), _ = both
    config = settings(remote_tree, dataset__cache_dir=str(tmp_path))
    place = storage.path(f"{bucket}/runs/three")
    write = JsonLines.write

    def fails(self, *, step, **others):
        if step > 4:
            raise KeyboardInterrupt
        write(self, step=step, **others)

    monkeypatch.setattr(JsonLines, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, place)
    monkeypatch.undo()
    assert latest_step(place) > 0 and not storage.exists(place / "results.json")
    assert storage.names(place / "train.lock") == []
    assert figures(train_and_evaluate(config, place)) == figures(results)
    steps = [json.loads(line)["step"] for line in storage.read_text(place / "metrics.jsonl").splitlines()]
    assert steps == sorted(steps)


def test_damage_in_a_bucket_is_noticed_and_passed_over(both, bucket, capsys):
    (here, _), (there, _) = both
    shutil.copytree(here, here.parent / "copy", dirs_exist_ok=True)
    place = storage.path(f"{bucket}/runs/four")
    buckets.put(here.parent / "copy", str(place))
    for step in (path.name for path in (here / "checkpoints").iterdir()):
        # In a bucket it is this object that says that a checkpoint is whole.
        for folder in ("", "state/", "progress/"):
            storage.write_bytes(place / f"checkpoints/{step}/{folder}commit_success.txt", b"")
    last, before = latest_step(place), sorted(int(name) for name in storage.names(place / "checkpoints"))[-2]
    for name in storage.find(place / f"checkpoints/{last}/state"):
        path = place / f"checkpoints/{last}/state/{name}"
        if "/d/" in name and (data := storage.read_bytes(path)):
            # All of it: where in the file the parameters lie, which alone are read, differs from save to save.
            storage.write_bytes(path, bytes(byte ^ 1 for byte in data))
    assert load_model(place).step == before
    assert f"checkpoint {last}" in capsys.readouterr().err
    storage.remove(place / f"checkpoints/{before}/commit_success.txt")
    storage.remove(place / f"checkpoints/{last}/commit_success.txt")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_model(place)


def test_tables_and_rows_in_buckets(remote_tree, bucket, tree, tmp_path):
    found = {item.path: item.label for item in listing.read(remote_tree).items}
    assert found == {item.path: item.label for item in listing.read(tree).items}
    rows = [{"path": path, "label": label} for path, label in found.items()]
    storage.write_text(storage.path(f"{bucket}/table.jsonl"), "".join(
        json.dumps(row | {"path": f"photos/{row['path']}"}) + "\n" for row in rows
    ))  # fmt: skip
    listed = listing.read(f"{bucket}/table.jsonl")
    assert {item.path.removeprefix("photos/"): item.label for item in listed.items} == found
    (tmp_path / "table.jsonl").write_text("".join(
        json.dumps(row | {"path": f"{remote_tree}/{row['path']}"}) + "\n" for row in rows
    ))  # fmt: skip
    for place in (f"{bucket}/table.jsonl", tmp_path / "table.jsonl"):
        parts = photos.load(str(place), cache_dir=str(tmp_path), unreadable="skip", validation_fraction=0.1)
        assert len(parts.train) + len(parts.validation) + len(parts.test) == len(found) - 2
        here = photos.load(str(tree), cache_dir=str(tmp_path), unreadable="skip", validation_fraction=0.1)
        images = {example["name"].rpartition("/")[2]: example["image"] for example in here.train}
        for example in parts.train:
            name = example["name"].rpartition("/")[2]
            assert name not in images or np.array_equal(images[name], example["image"])
    # Each photo in one of two buckets, which have no folder in common.
    moved = {f"gs://{buckets.OTHER}/{i}.png": f"{remote_tree}/{path}" for i, path in enumerate(found) if i % 2}
    for place, of in moved.items():
        storage.write_bytes(storage.path(place), storage.read_bytes(storage.path(of)))
    there = [*moved, *(f"{remote_tree}/{path}" for i, path in enumerate(found) if not i % 2)]
    gone = [f"gs://{buckets.OTHER}/none.png", "gs://no-such-bucket/1.png"]
    states = storage.states(tmp_path, [*there, *gone])
    assert [path for path, state in states.items() if isinstance(state, str)] == gone
    (tmp_path / "other.csv").write_text("path,label\ns3://bucket/a.jpg,owl\n")
    with pytest.raises(UserError, match=r"row 2: the path takes a path on this machine or gs://.*s3://bucket/a.jpg"):
        listing.read(tmp_path / "other.csv")


def test_the_check_is_remembered_until_an_object_changes(remote_tree, tmp_path, capsys):
    def told():
        photos.load(remote_tree, cache_dir=str(tmp_path), unreadable="skip", validation_fraction=0.1)
        return capsys.readouterr().err

    assert "checking" in told()
    assert told() == ""
    place = storage.path(remote_tree) / storage.find(storage.path(remote_tree))[0]
    storage.write_bytes(place, storage.read_bytes(place))
    assert "checking 1 images" in told()


def test_each_of_two_processes_checks_its_share(bucket, remote_tree, tree, tmp_path):
    """On two hosts, with a disk each; a file that one of them finds broken is left out by both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        *(f"--config.dataset.{field}" for field in ("name=folder", f"path={remote_tree}", "train_size=None")),
        *(f"--config.dataset.{field}" for field in ("test_size=None", "raw_size=40", "validation_fraction=0")),
        *("--config.method=baseline", "--config.model.view_size=32", "--config.stages.coarse_epochs=0.5"),
        *("--config.optimizer.warmup_epochs=0", "--config.train.batch_size=8", "--config.compilation_cache="),
        *(f"--workdir={bucket}/runs/shared", f"--coordinator=127.0.0.1:{port}", "--processes=2"),
    ]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "launch.py",
                *settings,
                f"--process={i}",
                f"--config.dataset.cache_dir={tmp_path / str(i)}",
            ],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    shares = [int(re.search(r"checking (\d+) images in .*, this host's share", said)[1]) for _, said in told]
    files = sum(1 for path in tree.rglob("*.*") if path.is_file())
    assert sum(shares) == files and abs(shares[0] - shares[1]) <= 1
    assert "2 of 54 images cannot be read" in told[0][0] and files == 54
    assert storage.exists(storage.path(f"{bucket}/runs/shared/results.json"))
    known = [json.loads(path.read_text())["files"] for path in tmp_path.glob("*/folder/*.json")]
    assert len(known) == 2 and known[0] == known[1] and len(known[0]) == files


def test_a_bucket_has_one_trainer_at_a_time(bucket, monkeypatch, capsys):
    monkeypatch.setattr(lease, "RENEW", 0.2)
    monkeypatch.setattr(lease, "LEASE", 1.0)
    folder = storage.path(f"{bucket}/locked/train.lock")
    with Lease(folder, "the run") as first:
        with pytest.raises(UserError, match="the run is being trained by another process"), Lease(folder, "the run"):
            raise AssertionError
        first.check()
    assert storage.names(folder) == []
    # One that was killed has left its file, which nobody renews.
    storage.write_text(folder / "1-dead", "host 1 x\n")
    with Lease(folder, "the run") as second:
        assert storage.names(folder) == [second._name]
    assert "up to 1 s" in capsys.readouterr().err


def test_of_two_trainers_that_come_at_once_at_most_one_stays(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEW", 0.1)
    monkeypatch.setattr(lease, "LEASE", 0.6)
    for attempt in range(3):
        folder, inside, most = storage.path(f"{bucket}/race{attempt}/train.lock"), [], []

        def come(folder=folder, inside=inside, most=most):
            try:
                with Lease(folder, "the run"):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(1.0)
                    inside.pop()
            except UserError:
                pass

        threads = [threading.Thread(target=come) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most, default=0) <= 1


def test_a_trainer_whose_lock_was_taken_writes_no_more(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEW", 0.1)
    folder = storage.path(f"{bucket}/taken/train.lock")
    with Lease(folder, "the run") as held:
        storage.remove(folder / held._name)
        deadline = time.monotonic() + 10
        while not held._lost:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(OSError, match="its trainer no longer"):
            held.check()


def test_a_run_that_is_being_trained_is_refused(bucket, monkeypatch, capsys):
    monkeypatch.setattr(lease, "RENEW", 0.2)
    with Lease(storage.path(f"{bucket}/busy/train.lock"), "it"):
        with pytest.raises(UserError, match="being trained by another process"):
            train_and_evaluate(tiny_config(), f"{bucket}/busy")
        assert storage.names(storage.path(f"{bucket}/busy")) == ["train.lock"]


def test_what_is_not_there_or_out_of_reach_is_one_line(bucket, tmp_path, capsys, monkeypatch):
    for argv, words in (
        (["--mode=eval", "--workdir=gs://no_such_bucket/run"], "holds no run"),
        (["--mode=predict", "--workdir=gs://no_such_bucket/run", "--images=x"], "holds no run"),
        (["--config=folder", f"--config.dataset.path={bucket}/nowhere", f"--workdir={tmp_path / 'run'}"], "not exist"),
        (["--workdir=gs://no_such_bucket/run"], "gs://no_such_bucket/run"),
        (["--workdir=gs://"], "gs://BUCKET/PATH"),
    ):
        assert cli.main(argv) != 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("I1")]
        assert words in line
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert cli.main([f"--workdir={bucket}/run"]) == 2
    assert "gcsfs is missing; pip install gcsfs" in capsys.readouterr().err
