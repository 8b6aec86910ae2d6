"""Damaged checkpoints and small files: named in a line, passed over where there is one before, never loaded."""

import json
import shutil

import jax
import numpy as np
import pytest

from c2f_jax import cli
from c2f_jax.errors import UserError
from c2f_jax.inference import load_model
from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import Checkpoints, checksums, latest_step, read, read_latest
from c2f_jax.runs.loop import train_and_evaluate
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture
def workdir(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def files(folder):
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def arrays(checkpoint):
    """The files with array data."""
    return [path for path in files(checkpoint / "state") if path.parent.name == "d"]


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    at = int(len(content) * place)
    for i in range(at, min(at + 8, len(content))):
        content[i] ^= 0xFF
    path.write_bytes(bytes(content))


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def manifests(checkpoint):
    return [path for path in files(checkpoint / "state") if path.name == "manifest.ocdbt"]


DAMAGE = {
    "no state": lambda c: shutil.rmtree(c / "state"),
    "an empty state": lambda c: [path.unlink() for path in files(c / "state")],
    "no numbers": lambda c: shutil.rmtree(c / "progress"),
    "nothing in it": lambda c: [shutil.rmtree(c), c.mkdir()],
    "no metadata of the state": lambda c: (c / "state" / "_METADATA").unlink(),
    "half the metadata of the state": lambda c: cut(c / "state" / "_METADATA", 0.5),
    "no manifest": lambda c: [path.unlink() for path in manifests(c)],
    "an empty manifest": lambda c: [cut(path, 0) for path in manifests(c)],
    "no array data": lambda c: [path.unlink() for path in arrays(c)],
    "empty array data": lambda c: [cut(path, 0) for path in arrays(c)],
    "half the array data": lambda c: [cut(path, 0.5) for path in arrays(c)],
    "array data but the end": lambda c: [cut(path, 0.98) for path in arrays(c)],
    "flipped bytes early in the arrays": lambda c: [flip(path, 0.2) for path in arrays(c)],
    "flipped bytes in the middle of the arrays": lambda c: [flip(path, 0.5) for path in arrays(c)],
    "flipped bytes late in the arrays": lambda c: [flip(path, 0.8) for path in arrays(c)],
    "half the numbers": lambda c: cut(c / "progress" / "metadata", 0.5),
    "numbers that are something else": lambda c: (c / "progress" / "metadata").write_text("[]"),
    "checksums that are something else": lambda c: (c / "progress" / "metadata").write_text('{"checksums": 3}'),
}
READ_ALL_THE_SAME = {"no metadata of the state"}  # and the checksums say that it is right


@pytest.fixture(scope="module")
def run():
    return build(tiny_config())


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint(kind, workdir, finished, run, capsys):
    before, newest = steps(workdir)[-2:]
    DAMAGE[kind](workdir / "checkpoints" / str(newest))
    # Looked at: the one before is named and used, and nothing is changed.
    found, model = read_latest(workdir, run.abstract_model)
    said = capsys.readouterr().err
    assert steps(workdir)[-1] == newest and found == (newest if kind in READ_ALL_THE_SAME else before)
    whole = read(finished[0], found, run.abstract_model)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(model), jax.device_get(whole))
    if kind not in READ_ALL_THE_SAME:
        (line,) = said.splitlines()
        assert f"checkpoint {newest} cannot be read" in line and line.endswith(f"checkpoint {before} is used")
        assert len(line) < 600
    # Gone on with: the one before, and this one is out of the way of the next.
    with Checkpoints(workdir, every_steps=1, at_steps=()) as checkpoints:
        found, state, progress, notes = checkpoints.restore_latest(run.abstract_state)
        assert found == before == checkpoints.latest_step() and progress["seconds"] > 0
        assert [f"checkpoint {newest} cannot be read" in note for note in notes] == [True]
    whole = read(finished[0], before, run.abstract_state(before))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(whole))
    assert (workdir / "damaged" / str(newest)).is_dir() and steps(workdir) == [before]


def test_a_run_goes_on_from_before_the_damage(workdir, finished, run, capsys):
    """To the same end, bit for bit; and an evaluation before it says which one it looks at."""
    before, newest = steps(workdir)[-2:]
    DAMAGE["flipped bytes in the middle of the arrays"](workdir / "checkpoints" / str(newest))
    (workdir / "results.json").unlink()
    assert cli.main(["--mode=eval", f"--workdir={workdir}"]) == 0
    said = capsys.readouterr()
    assert f"step {before}" in said.out and f"checkpoint {newest} cannot be read" in said.err
    results = train_and_evaluate(tiny_config(), workdir)
    assert f"checkpoint {newest} cannot be read" in capsys.readouterr().out
    assert results["fused/loss"] == finished[1]["fused/loss"]
    template = run.abstract_state(newest)
    ends = [jax.device_get(read(there, newest, template)) for there in (finished[0], workdir)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_all_checkpoints_damaged(workdir, capsys):
    for step in steps(workdir):
        DAMAGE["half the array data"](workdir / "checkpoints" / str(step))
    before = {str(path): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="no whole one before it"):
        train_and_evaluate(tiny_config(), workdir)
    assert {str(path): path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="cannot be read"):
        load_model(workdir)
    assert cli.main(["--mode=eval", f"--workdir={workdir}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("left", ["results.json", "metrics.jsonl"])
@pytest.mark.parametrize("gone", ["emptied", "removed"])
def test_checkpoints_that_are_gone_beside_a_log(left, gone, workdir):
    shutil.rmtree(workdir / "checkpoints")
    if gone == "emptied":
        (workdir / "checkpoints").mkdir()
    (workdir / {"results.json": "metrics.jsonl", "metrics.jsonl": "results.json"}[left]).unlink()
    content = (workdir / left).read_bytes()
    with pytest.raises(UserError, match=r"restore .*checkpoints, or choose another --workdir"):
        train_and_evaluate(tiny_config(), workdir)
    assert (workdir / left).read_bytes() == content


def test_a_run_killed_before_its_first_checkpoint_begins_again(workdir, finished):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "results.json").unlink()
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 4))
    assert train_and_evaluate(tiny_config(), workdir)["fused/loss"] == finished[1]["fused/loss"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("class_names.json", b'["a', "class_names.json is not JSON"),
        ("class_names.json", b"{}", "class_names.json is not a list of class names"),
        ("class_names.json", b"\xff\xfe", "class_names.json is not JSON"),
        ("config.json", b'{"method": "cors', "config.json is not JSON"),
        ("config.json", b"\xff", "config.json is not JSON"),
        (
            "metrics.jsonl",
            b'{"step": 1, "split": "train"}\n{"foreign": 3}\n{"step": 2, "split": "train"}\n',
            ":2 is no",
        ),
        ("metrics.jsonl", b'3\n{"step": 2, "split": "train"}\n', ":1 is no line"),
        ("metrics.jsonl", b'\xff\xff\n{"step": 2, "split": "train"}\n', ":1 is no line"),
    ],
)
def test_small_files_that_are_something_else(name, content, words, workdir):
    (workdir / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as told:
        train_and_evaluate(tiny_config(), workdir)
    assert "\n" not in str(told.value) and (workdir / name).read_bytes() == content


def test_checkpoints_of_earlier_versions_have_no_checksums(workdir):
    for step in steps(workdir):
        path = workdir / "checkpoints" / str(step) / "progress" / "metadata"
        numbers = json.loads(path.read_text())
        del numbers["checksums"]
        path.write_text(json.dumps(numbers))
    assert load_model(workdir) and train_and_evaluate(tiny_config(), workdir)


def test_checksums_see_every_change():
    state = {"params": {"a": np.arange(6.0), "b": np.zeros(3)}, "step": np.int32(3)}
    first = checksums(state)
    for name, other in (("a", np.arange(6.0)[::-1]), ("a", np.arange(6.0).reshape(2, 3)), ("b", -np.zeros(3))):
        assert checksums({**state, "params": {**state["params"], name: other}})["params"] != first["params"]
    assert checksums({**state, "step": np.int32(4)})["step"] != first["step"]
    assert checksums(state) == first == checksums(jax.tree.map(np.array, state))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    with Checkpoints(tmp_path, every_steps=1, at_steps=()) as checkpoints:
        checkpoints.save(1, {"params": {"a": np.ones(3)}}, {})
        with pytest.raises(FloatingPointError, match="not finite before step 2"):
            checkpoints.save(2, {"params": {"a": np.array([1.0, np.nan])}}, {})
    assert latest_step(tmp_path) == 1
