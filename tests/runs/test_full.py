"""Disks that are full or cannot be written to: one line, an exit code, and a run that goes on when there is room."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from c2f_jax import cli, storage
from c2f_jax.errors import UserError
from c2f_jax.runs.checkpoint import latest_step
from c2f_jax.runs.loop import train_and_evaluate
from c2f_jax.runs.workdir import write_json
from c2f_jax.runs.writers import JsonLines
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
KIB = 1 << 10


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 MiB of its own, and what mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(["size=64m", *options]), "tmpfs", str(place)],
            capture_output=True,
            check=False,
        )

    if shutil.which("mount") is None or mount().returncode:
        pytest.skip("no disk can be mounted here: not root, or a container without the right to")
    try:
        yield (
            place,
            lambda *options: subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(place)], check=True),
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def fill(place, left):
    """Leaves `left` bytes free; returns the file that takes the others."""
    free = os.statvfs(place)
    with (place / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left)
    return place / "filler"


def failed(capsys, *argv, code=1):
    assert cli.main(argv) == code
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if not line.startswith("checking ")]
    assert "Traceback" not in captured.out
    return line


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cli, "load_config", lambda path: tiny_config())


def figures(results):
    return {name: value for name, value in results.items() if "/" in name}


def small_config():
    return tiny_config(method="baseline", stages__coarse_epochs=1.0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, train_and_evaluate(small_config(), workdir)


@pytest.mark.parametrize("checkpoints", [0.5, 2.5])
def test_a_disk_that_gets_full_ends_a_run_in_a_line_and_it_goes_on(
    uninterrupted, disk, monkeypatch, capsys, checkpoints
):
    """Full before the first checkpoint, and between others: what was saved stays good."""
    place, _ = disk
    monkeypatch.setattr(cli, "load_config", lambda path: small_config())
    last = uninterrupted[0] / "checkpoints" / str(latest_step(uninterrupted[0]))
    whole = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    filler = fill(place, int(checkpoints * whole) + 300 * KIB)
    workdir = place / "run"
    line = failed(capsys, f"--workdir={workdir}")
    assert str(workdir) in line and "No space left on device" in line and "make room there" in line
    assert "the same command goes on" in line
    there = [int(name) for name in storage.names(workdir / "checkpoints") if name.isdecimal()]
    assert there or checkpoints < 1
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        json.loads(text)
    filler.unlink()
    assert figures(train_and_evaluate(small_config(), workdir)) == figures(uninterrupted[1])
    assert "damaged" not in storage.names(workdir)


def test_a_disk_that_is_full_from_the_start(finished, disk, tiny, capsys, tmp_path):
    place, _ = disk
    fill(place, 0)
    assert "No space left on device" in failed(capsys, f"--workdir={place / 'run'}")
    assert latest_step(finished[0]) == 20
    (tmp_path / "images").mkdir()
    shutil.copy(finished[0] / "samples.png", tmp_path / "images" / "a.png")
    look = ["--mode=predict", f"--workdir={finished[0]}", f"--images={tmp_path / 'images'}"]
    line = failed(capsys, *look, f"--output={place / 'p.csv'}")
    assert "p.csv" in line and "No space left on device; make room there" in line
    line = failed(capsys, *look, f"--output={tmp_path / 'p.csv'}", f"--overlays={place / 'pictures'}")
    assert "a.png.png" in line and "No space left on device" in line
    assert not (tmp_path / "p.csv").exists() and not (place / "p.csv").exists()
    # What is complete so far stays beside it: the same command goes on from there when there is room again.
    assert not any(path.name.endswith(".part") for path in (place / "run").rglob("*"))


def test_a_disk_that_cannot_be_written_to(finished, disk, tiny, capsys, tmp_path):
    place, remount = disk
    shutil.copytree(finished[0], place / "run")
    shutil.copy(finished[0] / "samples.png", place / "a.png")
    remount("ro")
    for workdir in (place / "run", place / "new"):
        line = failed(capsys, f"--workdir={workdir}", code=2)
        assert f"--workdir {workdir} cannot be written to (Read-only file system); choose another" in line
    # Who looks at a run changes nothing in it.
    assert cli.main(["--mode=eval", f"--workdir={place / 'run'}"]) == 0
    capsys.readouterr()
    look = ["--mode=predict", f"--workdir={place / 'run'}", f"--images={place / 'a.png'}"]
    for flag, others in (("output", []), ("overlays", [f"--output={tmp_path / 'p.csv'}"])):
        line = failed(capsys, *look, *others, f"--{flag}={place / 'new' / 'p.csv'}", code=2)
        assert f"--{flag}: nothing can be written into" in line and "read-only file system" in line
    assert not (tmp_path / "p.csv").exists()


def limited(size):
    """Files of at most so many bytes, meanwhile."""

    class Limit:
        def __enter__(self):
            self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.before[1]))

        def __exit__(self, *_):
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    return Limit()


def test_files_are_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", [1])
    log = JsonLines(tmp_path / "log.jsonl", resume_step=None)
    log.write(step=1, stage="coarse", split="train", metrics={"loss": 1.0})
    before = (tmp_path / "log.jsonl").read_bytes()
    with limited(100):
        with pytest.raises(OSError) as caught:
            write_json(tmp_path / "a.json", list(range(1000)))
        line = str(storage.failed(caught.value))
        assert str(tmp_path / "a.json.part") in line and "File too large" in line and "ulimit -f" in line
        with pytest.raises(OSError) as caught:
            log.write(step=2, stage="coarse", split="train", metrics={"x" * 90: 1.0})
        assert str(tmp_path / "log.jsonl") in str(storage.failed(caught.value))
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert (tmp_path / "log.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "log.jsonl"]


def test_a_place_below_a_file_is_a_line(finished, tiny, capsys, tmp_path):
    file, image = tmp_path / "file", tmp_path / "a.png"
    file.write_text("x")
    shutil.copy(finished[0] / "samples.png", image)
    assert f"{file} is a file" in failed(capsys, f"--workdir={file / 'a' / 'run'}", code=2)
    look = [f"--workdir={finished[0]}", f"--images={image}"]
    for argv in (
        ["--mode=predict", *look, f"--output={file / 'p.csv'}"],
        ["--mode=predict", *look, f"--output={tmp_path / 'p.csv'}", f"--overlays={file / 'pictures'}"],
        ["--mode=eval", *look, f"--output={file / 'e.json'}"],
    ):
        line = failed(capsys, *argv, code=2)
        assert "nothing can be written into" in line and str(file) in line
    with pytest.raises(UserError, match="compilation_cache"):
        storage.check_writable("config.compilation_cache", file / "cache")


def test_names_that_are_too_long(finished, tiny, capsys, tmp_path):
    image = tmp_path / "images" / ("x" * 251 + ".png")
    image.parent.mkdir()
    shutil.copy(finished[0] / "samples.png", image)
    shutil.copy(finished[0] / "samples.png", image.parent / "a")
    os.rename(image.parent / "a", image.parent / "a.png")
    (image.parent / "a.png.png").mkdir()
    shutil.copy(finished[0] / "samples.png", image.parent / "a.png.png" / "b.png")
    look = ["--mode=predict", f"--workdir={finished[0]}", f"--images={image.parent}"]
    assert cli.main([*look, f"--output={tmp_path / 'p.csv'}", f"--overlays={tmp_path / 'pictures'}"]) == 0
    assert len([path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]) == 3
    capsys.readouterr()
    for code, argv in (
        (2, [f"--workdir={tmp_path / ('y' * 300)}"]),
        (2, [*look, f"--output={tmp_path / ('y' * 250)}.csv"]),
        (2, ["--mode=eval", *look[1:], f"--output={tmp_path / ('y' * 230)}"]),  # .per_class.csv
        (2, ["--mode=eval", f"--workdir={tmp_path / ('y' * 300)}"]),
    ):
        assert "name too long" in failed(capsys, *argv, code=code).lower()


NAMELESS = ["--reuid=54321", "--regid=54321", "--clear-groups"]
# The interpreter may lie in a folder of root's; writing stays forbidden.
NAMELESS += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def test_no_home_folder_and_no_name(tmp_path):
    """As in a container that is started with a number for a user."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be somebody else, by setpriv")
    os.chown(tmp_path, 54321, 54321)
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    sizes = ["train_size=40", "test_size=9", "raw_size=40"]
    settings = [f"--config.dataset.{size}" for size in sizes] + ["--config.model.view_size=32"]
    settings += [
        "--config.method=baseline",
        "--config.stages.coarse_epochs=0.4",
        "--config.stages.fine_epochs=0",
        "--config.train.batch_size=16",
    ]
    settings += ["--config.optimizer.warmup_epochs=0", "--config.dataset.validation_fraction=0"]
    done = subprocess.run(
        ["setpriv", *NAMELESS, sys.executable, "-B", "launch.py", *settings, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=variables | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("compiled programs are not kept: config.compilation_cache: ")
    assert (tmp_path / "run" / "results.json").exists()


def test_no_home_folder_for_prepared_data(tmp_path, monkeypatch):
    from c2f_jax.data import checking

    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match=r"dataset.cache_dir: there is no home folder for ~/\.cache/c2f_jax"):
        checking.check(tmp_path, [], "~/.cache/c2f_jax")
