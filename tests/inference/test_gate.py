"""Second looks only where they are wanted: who gets one, that it says the same, and that none is computed in vain."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from c2f_jax import cli
from c2f_jax.data.paper_birds import CLASS_NAMES, PaperBirds
from c2f_jax.data.pipeline import ImageFile
from c2f_jax.errors import UserError
from c2f_jax.inference import load_model
from c2f_jax.inference.gate import AHEAD, gated

SIZE = 4


def files_of(confidences, errors=()):
    """Batches of SIZE images, the last filled up; an image's number is its first pixel."""
    for start in range(0, len(confidences), SIZE):
        numbers = list(range(start, min(start + SIZE, len(confidences))))
        files = [ImageFile(np.zeros(1), None, 1, 1, "bad" if i in errors else None) for i in numbers]
        batch = {"image": np.zeros((SIZE, 1), int), "window": np.zeros((SIZE, 4))}
        batch["image"][: len(numbers), 0] = numbers
        yield files, batch


class Programs:
    """Stand in for the network: the first look is as sure as it is told to be, the second says what it was shown."""

    def __init__(self, confidences):
        self.confidences = np.asarray([*confidences, *[0.0] * SIZE])
        self.first_calls, self.second_batches = 0, []

    def first(self, batch):
        self.first_calls += 1
        sure = self.confidences[batch["image"][:, 0]]
        return {"coarse": np.stack([sure, 1 - sure], -1), "region": batch["image"].repeat(4, -1)}

    def second(self, batch):
        assert len(batch["image"]) == SIZE
        assert np.array_equal(batch["image"].repeat(4, -1), batch["region"])
        self.second_batches.append(batch["image"][:, 0].tolist())
        return {"fine": batch["image"] * 10}


@pytest.mark.parametrize("gate", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("count", [1, 4, 7, 23])
def test_order_and_second_looks(gate, count):
    confidences = np.random.default_rng(count).uniform(0.5, 1.0, size=count)
    errors = {2}
    programs = Programs(confidences)
    rows = list(gated(files_of(confidences, errors), programs.first, programs.second, gate, SIZE))
    assert len(rows) == count and all(file.image is None for file, _ in rows)
    unsure = [i for i in range(count) if confidences[i] < gate and i not in errors]
    for i, (_, said) in enumerate(rows):
        assert said["coarse"][0] == confidences[i]
        assert ("fine" in said) == (i in unsure) and (i not in unsure or said["fine"].tolist() == [10 * i])
    # In full batches: no more of them than it takes, while nobody waits too long.
    assert len(programs.second_batches) == -(-len(unsure) // SIZE)
    assert programs.first_calls == -(-count // SIZE)


def test_sure_images_do_not_wait_for_ever():
    """One unsure image at the start holds back no more than some batches."""
    confidences = [0.55] + [0.9] * (SIZE * AHEAD * 3)
    programs, read = Programs(confidences), 0

    def counted():
        nonlocal read
        for files, batch in files_of(confidences):
            read += len(files)
            yield files, batch

    rows = gated(counted(), programs.first, programs.second, 0.6, SIZE)
    next(rows)
    assert read <= SIZE * (AHEAD + 1)
    assert len(list(rows)) == len(confidences) - 1 and len(programs.second_batches) == 1


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Birds in folders of their classes; more than a batch."""
    root, birds = tmp_path_factory.mktemp("gate"), PaperBirds("test", size=21)
    for i in range(21):
        path = root / CLASS_NAMES[birds[i]["label"]] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(birds[i]["image"]).save(path)
    return root


@pytest.mark.slow
def test_both_ways_are_those_of_the_full_prediction(finished, tree):
    model = load_model(finished[0])
    whole, fast = list(model.predict(tree)), list(model.predict(tree, fast=True))
    assert {tuple(one.top) for one in fast} == {("coarse", "calibrated")} and {one.looks for one in fast} == {1}
    sure = sorted(one.best[1] for one in fast)
    gate = (sure[9] + sure[10]) / 2
    some = list(model.predict(tree, gate=gate))
    assert [one.looks for one in some] == [2 if one.best[1] < gate else 1 for one in fast]
    assert sum(one.looks == 2 for one in some) == 10
    for full, one_look, either in zip(whole, fast, some, strict=True):
        expected = full if either.looks == 2 else one_look
        assert either.file == full.file and list(either.top) == list(expected.top)
        for view, top in expected.top.items():
            assert [value for _, value in either.top[view]] == pytest.approx([value for _, value in top], abs=1e-5)
        assert (either.box is None) == (either.looks == 1)
        if either.box is not None:
            assert either.box == pytest.approx(full.box, abs=1e-2)
        np.testing.assert_allclose(either.attention, full.attention, atol=1e-4)
        assert [v for _, v in one_look.top["coarse"]] == pytest.approx([v for _, v in full.top["coarse"]], abs=1e-5)
    for gate, looks in ((0.0, 1), (1.0, 2)):
        assert {one.looks for one in model.predict(tree, gate=gate)} == {looks}


@pytest.mark.slow
def test_a_threshold_keeps_its_share_whatever_way(finished):
    """Fitted on the validation part's answers as they are made: recomputed from what is stored."""
    workdir, _ = finished
    stored = json.loads((workdir / "unknown.json").read_text())
    coarse, both = (np.array(stored["confidences"][name]) for name in ("coarse", "both"))
    model = load_model(workdir)
    gate = float(np.median(coarse))
    for how, answers in (({}, both), ({"fast": True}, coarse), ({"gate": gate}, np.where(coarse < gate, both, coarse))):
        threshold = model.threshold(**how)
        assert np.mean(answers >= threshold) >= 0.95 and threshold > 0
        assert threshold == pytest.approx(answers.min(), abs=2e-6)  # of nine images none may go


@pytest.mark.slow
def test_evaluation_by_one_look_and_by_the_gate(finished, tree, tmp_path, capsys):
    workdir, results = finished
    command = ["--mode=eval", f"--workdir={workdir}", f"--images={tree}"]
    assert cli.main([*command, "--fast", f"--output={tmp_path / 'fast'}", "--unknown"]) == 0
    fast = json.loads((tmp_path / "fast.json").read_text())
    assert fast["fast"] is True and "fused/loss" not in fast and "box/mean_area" not in fast
    for name in ("top_1_accuracy", "loss", "calibration_error"):
        assert fast[f"coarse/{name}"] == pytest.approx(results[f"coarse/{name}"], abs=1e-5)
        assert fast[f"calibrated/{name}"] == pytest.approx(results[f"calibrated_coarse/{name}"], abs=1e-5)
    assert set(fast["intervals"]["of"]) >= {"coarse/top_1_accuracy", "calibrated/top_1_accuracy"}

    point = results["gate"]["test"][10]
    assert cli.main([*command, f"--gate={point['gate']}", f"--output={tmp_path / 'gated'}"]) == 0
    found = json.loads((tmp_path / "gated.json").read_text())
    assert found["second_looks"] == pytest.approx(point["second_looks"], abs=1.5 / 21)  # one stands on the gate
    assert found["gated/top_1_accuracy"] == pytest.approx(point["top_1_accuracy"], abs=1.5 / 21)
    assert "looked at again" in capsys.readouterr().out
    with (tmp_path / "gated.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert np.mean([row["looks"] == "2" for row in rows]) == found["second_looks"]
    assert all((row["fine_1"] == "") == (row["looks"] == "1") for row in rows)
    assert np.mean([row["right"] == "yes" for row in rows]) == pytest.approx(found["gated/top_1_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gate=1.5"], "--gate takes a probability from 0 to 1; got 1.5"),
        (["--gate=nan"], "--gate takes a probability"),
        (["--gate=0.5", "--fast"], "exclude each other"),
        (["--top=0"], "--top takes a number of classes"),
    ],
)
def test_mistakes(finished, tree, tmp_path, capsys, arguments, words):
    command = ["--mode=predict", f"--workdir={finished[0]}", f"--images={tree}", f"--output={tmp_path / 'p.csv'}"]
    assert cli.main([*command, *arguments]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "p.csv").exists()


@pytest.mark.slow
def test_a_gate_is_for_two_looks(finished):
    model = load_model(finished[0])
    with pytest.raises(UserError, match="exclude each other"):
        model.predict([np.zeros((8, 8), np.uint8)], fast=True, gate=0.5)
