"""Predictions of a finished run over a folder of image files: the same as by hand, and files that cannot be read."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

from c2f_jax import cli
from c2f_jax.data.paper_birds import PaperBirds
from c2f_jax.inference import load_model
from c2f_jax.kernels import ordered
from c2f_jax.models.two_looks import log_probabilities
from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.training.steps import predict
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow

COUNT = 11  # more than a batch of 8, and not a multiple of it
UNREADABLE = ["birds/cut.jpg", "empty.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Birds as PNG files of the raw size, in two folders, two unreadable files and one that is no image."""
    root = tmp_path_factory.mktemp("photos")
    birds = PaperBirds("test", size=COUNT)
    for i in range(COUNT):
        path = root / ("birds" if i % 2 else "more/birds") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(birds[i]["image"]).save(path)
    Image.fromarray(birds[0]["image"]).save(root / "birds" / "cut.jpg")
    whole = (root / "birds" / "cut.jpg").read_bytes()
    (root / "birds" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def by_hand(finished):
    """Looks at the raw images [COUNT, ...] by the last checkpoint, without the code under test."""
    workdir, _ = finished
    run = build(tiny_config())
    _, state = read_latest(workdir, run.abstract_model)
    birds = PaperBirds("test", size=COUNT)
    raw = np.stack([birds[i]["image"] for i in range(COUNT)])
    window = np.tile(np.array([0, 0, 1, 1], np.float32), (COUNT, 1))
    looks = predict(run.task, state["params"], state["batch_stats"], {"image": raw, "window": window})
    probabilities = {view: np.exp(values) for view, values in log_probabilities(looks).items()}
    fitted = json.loads((workdir / "fusion.json").read_text())
    weight, temperature = fitted["weight"], fitted["temperature"]
    mixed = (weight * probabilities["coarse"] + (1 - weight) * probabilities["fine"]) ** (1 / temperature)
    probabilities["calibrated"] = mixed / mixed.sum(axis=-1, keepdims=True)
    return probabilities, looks, run.splits.class_names


def test_predictions_are_those_of_the_looks(finished, folder, by_hand):
    probabilities, looks, names = by_hand
    found = {prediction.file: prediction for prediction in load_model(finished[0]).predict(folder)}
    assert len(found) == COUNT + len(UNREADABLE) and list(found) == sorted(found)
    for i in range(COUNT):
        prediction = found[f"{'birds' if i % 2 else 'more/birds'}/{i:02}.png"]
        assert prediction.error is None and list(prediction.top) == ["coarse", "fine", "fused", "calibrated"]
        for view, top in prediction.top.items():
            expected = np.sort(probabilities[view][i])[::-1][:5]
            np.testing.assert_allclose([value for _, value in top], expected, atol=1e-5)
            for name, value in top:
                assert probabilities[view][i][names.index(name)] == pytest.approx(value, abs=1e-5)
        ymin, xmin, ymax, xmax = np.asarray(ordered(looks["fine"].box))[i] * 192
        np.testing.assert_allclose(prediction.box, (xmin, ymin, xmax, ymax), atol=1e-2)
        assert prediction.best == prediction.top["calibrated"][0]
        # A peak of one cell between the pixels of the picture loses up to (1/16 of a cell)^2 of its height.
        assert prediction.attention.shape == (64, 64) and 0.85 < prediction.attention.max() <= 1.0 + 1e-6
    for name in UNREADABLE:
        assert found[name].error and not found[name].top and found[name].box is None


def test_a_list_of_files_and_boxes_in_their_own_pixels(finished, folder, tmp_path):
    """An image enlarged and stretched is predicted alike, its box in pixels of the enlarged one."""
    original = folder / "more/birds/00.png"
    with Image.open(original) as image:
        image.resize((384, 192), Image.Resampling.NEAREST).save(tmp_path / "wide.png")
    small, wide = load_model(finished[0]).predict([original, tmp_path / "wide.png"])
    assert small.file == str(original)
    np.testing.assert_allclose(np.array(wide.box), np.array(small.box) * [2, 1, 2, 1], atol=2.0)


def test_command_line(finished, folder, tmp_path, capsys):
    workdir, _ = finished
    output, overlays = tmp_path / "out" / "predictions.csv", tmp_path / "overlays"
    command = ["--mode=predict", f"--workdir={workdir}", f"--images={folder}", f"--output={output}"]
    assert cli.main([*command, f"--overlays={overlays}"]) == 0
    told = capsys.readouterr()
    assert str(output) in told.out and "2 unreadable" in told.out
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    assert [row["file"] for row in rows if row["error"]] == UNREADABLE
    for row, prediction in zip(rows, load_model(workdir).predict(folder), strict=True):
        if prediction.error is None:
            assert (row["calibrated_1"], float(row["calibrated_1_probability"])) == (
                prediction.best[0],
                pytest.approx(prediction.best[1], abs=1e-4),
            )
            assert float(row["box_xmax"]) == pytest.approx(prediction.box[2], abs=0.06)
            with Image.open(overlays / f"{prediction.file}.png") as picture:
                assert picture.width > 3 * 192
    assert len(list(overlays.rglob("*.png"))) == COUNT

    before = output.read_bytes()
    assert cli.main(command) == 2
    assert "exists" in capsys.readouterr().err and output.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--mode=predict"], "needs --images DIR"),
        (["--mode=predict", "--images=nowhere"], "nowhere does not exist"),
        (["--images=x"], "--images belongs to --mode predict"),
        (["--mode=predict", "--images={empty}"], "holds no images"),
        (["--mode=predict", "--images={empty}", "--workdir=nowhere"], "nowhere holds no run"),
    ],
)
def test_mistakes(finished, tmp_path, capsys, arguments, line):
    words = [word.format(empty=tmp_path) for word in arguments]
    if not any(word.startswith("--workdir") for word in words):
        words.append(f"--workdir={finished[0]}")
    assert cli.main([*words, f"--output={tmp_path / 'p.csv'}"] if "predict" in words[0] else words) == 2
    error = capsys.readouterr().err.strip()
    assert line in error and "\n" not in error
    assert not (tmp_path / "p.csv").exists()


def test_prediction_runs_on_all_devices(finished):
    model = load_model(finished[0])
    assert jax.device_count() == 4
    batch = {"image": np.zeros((8, 192, 192, 3), np.uint8), "window": np.zeros((8, 4), np.float32)}
    from c2f_jax.runs import parallel

    said = model._step(*model.variables, parallel.shard_batch(batch, model._trained.mesh))
    assert len(said["fused"].sharding.device_set) == 4
