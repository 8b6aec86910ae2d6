"""A finished run on other labelled photos: all of them, against the figures of its own test; and none of these."""

import csv
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from c2f_jax import cli
from c2f_jax.data.paper_birds import CLASS_NAMES, PaperBirds
from c2f_jax.errors import UserError
from c2f_jax.inference import load_model
from c2f_jax.inference.evaluation import evaluate_photos
from c2f_jax.runs.loop import train_and_evaluate
from c2f_jax.runs.workdir import read_config
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow

COUNT = 21  # the test part of `finished`


@pytest.fixture(scope="module")
def birds():
    source = PaperBirds("test", size=COUNT)
    return [source[i] for i in range(COUNT)]


@pytest.fixture
def tree(birds, tmp_path):
    """The test part of `finished` as PNG files, one folder per class, some of it in train/ and some in test/."""
    root = tmp_path / "photos"
    for i, bird in enumerate(birds):
        path = root / ("train" if i % 3 else "test") / CLASS_NAMES[bird["label"]] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(bird["image"]).save(path)
    return root


def same(found, results):
    expected = {name: value for name, value in results.items() if name.startswith(("coarse/", "fine/", "fused/"))}
    assert len(expected) == 15
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_of_a_tree_is_measured(finished, tree, tmp_path, capsys):
    workdir, results = finished
    output = tmp_path / "out" / "new.json"
    command = ["--mode=eval", f"--workdir={workdir}", f"--images={tree}", f"--output={output}"]
    assert cli.main(command) == 0
    found = json.loads(output.read_text())
    same(found, results)
    present = {bird.parent.name for bird in tree.rglob("*.png")}
    assert (found["images"], found["unreadable"], found["classes"]) == (COUNT, 0, len(present))
    assert found["step"] == results["step"] and sum(found["images_by_class"].values()) == COUNT
    told = capsys.readouterr().out
    assert f"{COUNT} images of {len(present)} of the run's 16 classes" in told and str(output) in told

    rows = rows_of(output.with_suffix(".csv"))
    predictions = {one.file: one for one in load_model(workdir).predict(tree)}
    assert {row["file"] for row in rows} == set(predictions) and "unknown" not in rows[0]
    for row in rows:
        prediction = predictions[row["file"]]
        assert row["class"] == row["file"].split("/")[1] and row["error"] == ""
        assert row["predicted"] == prediction.best[0] == row["calibrated_1"]
        assert float(row["calibrated_1_probability"]) == pytest.approx(prediction.best[1], abs=1e-4)
        assert row["right"] == ("yes" if row["class"] == row["predicted"] else "no")
        probabilities = dict(prediction.top["coarse"])
        if row["class"] in probabilities:
            assert float(row["coarse_class_probability"]) == pytest.approx(probabilities[row["class"]], abs=1e-4)
    assert np.mean([row["right"] == "yes" for row in rows]) == pytest.approx(found["calibrated/top_1_accuracy"])

    before = output.read_bytes()
    assert cli.main(command) == 2
    assert "exists" in capsys.readouterr().err and output.read_bytes() == before


def test_a_table_with_boxes(finished, birds, tree, tmp_path, capsys):
    workdir, results = finished
    lines = ["path,label,xmin,ymin,xmax,ymax"]
    paths = {int(path.stem): path for path in tree.rglob("*.png")}
    for i, bird in enumerate(birds):
        ymin, xmin, ymax, xmax = 192 * np.asarray(bird["box"], float)
        lines.append(f"{paths[i].relative_to(tree)},{CLASS_NAMES[bird['label']]},{xmin},{ymin},{xmax},{ymax}")
    table = tree / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    found = evaluate_photos(load_model(workdir), table, tmp_path / "e")
    same(found, results)
    assert found["box/mean_iou"] == pytest.approx(results["box/mean_iou"], abs=1e-4)
    assert (tmp_path / "e.json").exists() and (tmp_path / "e.csv").exists()
    assert "have no box" not in capsys.readouterr().out
    table.write_text("\n".join([*lines[:5], f"{lines[5].rsplit(',', 4)[0]},,,,"]) + "\n")
    found = evaluate_photos(load_model(workdir), table, tmp_path / "some")
    assert "1 of 5 images have no box" in capsys.readouterr().out and "box/mean_iou" not in found


def test_unreadable_files_and_unknown_classes(finished, tree, tmp_path, capsys):
    workdir, results = finished
    some = sorted(tree.rglob("*.png"))[0]
    (some.parent / "broken.png").write_bytes(b"not an image")
    stranger = tree / "test" / "penguin"
    stranger.mkdir()
    shutil.copy(some, stranger / "a.png")
    Image.new("RGB", (20, 20)).save(stranger / "b.png")
    command = ["--mode=eval", f"--workdir={workdir}", f"--images={tree}", f"--output={tmp_path / 'e.csv'}"]
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "penguin (2)" in line and "--unknown_classes=skip" in line
    assert not (tmp_path / "e.csv").exists()

    assert cli.main([*command, "--unknown_classes=skip"]) == 0
    told = capsys.readouterr().out
    assert "penguin (2)" in told and "broken.png: not an image" in told and "1 unreadable" in told
    found = json.loads((tmp_path / "e.json").read_text())
    same(found, results)
    assert (found["images"], found["unreadable"], found["left_out"]) == (COUNT, 1, {"penguin": 2})
    (broken,) = (row for row in rows_of(tmp_path / "e.csv") if row["error"])
    assert broken["file"].endswith("broken.png") and not broken["predicted"] and not broken["right"]


def test_a_subset_of_the_classes(finished, tree, tmp_path):
    workdir, _ = finished
    folders = sorted((tree / "train").iterdir())[:2]
    for folder in folders:
        shutil.copytree(folder, tmp_path / "two" / folder.name)
    found = evaluate_photos(load_model(workdir), tmp_path / "two", tmp_path / "e.json")
    rows = rows_of(tmp_path / "e.csv")
    by_class = [np.mean([row["right"] == "yes" for row in rows if row["class"] == f.name]) for f in folders]
    assert found["classes"] == 2 and found["fused/mean_per_class_accuracy"] == pytest.approx(np.mean(by_class))


@pytest.mark.parametrize("mode", ["eval", "predict"])
@pytest.mark.parametrize("output", ["file/x.json", "/proc/nowhere/x.json", "folder"])
def test_where_nothing_can_be_written(finished, tree, tmp_path, monkeypatch, capsys, mode, output):
    """Told before a photo is looked at."""
    (tmp_path / "file").touch()
    for name in ("evaluation.json", "predictions.csv"):
        (tmp_path / "folder" / name).mkdir(parents=True)
    monkeypatch.setattr("c2f_jax.inference.predict.Model.batches", None)
    command = [f"--mode={mode}", f"--workdir={finished[0]}", f"--images={tree}", f"--output={tmp_path / output}"]
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--output" in line
    if mode == "predict" and output != "folder":
        command[-1:] = [f"--output={tmp_path / 'p.csv'}", f"--overlays={tmp_path / output}"]
        assert cli.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--overlays" in line and not (tmp_path / "p.csv").exists()


def test_what_cannot_be_measured(finished, tree, birds, tmp_path, capsys):
    workdir, _ = finished
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.fromarray(birds[0]["image"]).save(flat / "a.png")
    strange = tmp_path / "strange"
    for name in ("x", "y"):
        (strange / name).mkdir(parents=True)
        shutil.copy(flat / "a.png", strange / name / f"{name}.png")
    bad = tmp_path / "bad" / CLASS_NAMES[0]
    bad.mkdir(parents=True)
    (bad / "a.png").write_bytes(b"x")
    (bad.parent / CLASS_NAMES[1]).mkdir()
    (bad.parent / CLASS_NAMES[1] / "b.png").write_bytes(b"y")
    for images, words in (
        (flat, "--mode predict"),
        (strange, "none of its 2 classes is one of"),
        (bad.parent, "none of the 2 images can be read"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        output = tmp_path / "none.json"
        assert cli.main(["--mode=eval", f"--workdir={workdir}", f"--images={images}", f"--output={output}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line, line
        assert not output.exists() and not output.with_suffix(".csv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode=eval", "--images=x", "--multiprocess"], "--images is for one process"),
        (["--mode=eval", "--output=x"], "--output belongs to"),
        (["--mode=eval", "--unknown_classes=skip"], "--unknown_classes belongs to"),
        (["--mode=eval", "--images=x", "--unknown_classes=drop"], "refuse or skip; got 'drop'"),
        (["--mode=train", "--unknown"], "--unknown belongs to"),
        (["--mode=train", "--images=x"], "--images belongs to"),
    ],
)
def test_mistakes(finished, capsys, arguments, words):
    assert cli.main([*arguments, f"--workdir={finished[0]}"]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def of_photos(tmp_path_factory):
    """(workdir, folder) of a tiny run on photos in 4 classes without a test part."""
    root = tmp_path_factory.mktemp("of_photos")
    source = PaperBirds("train", size=400)
    counts = dict.fromkeys(range(4), 0)
    for i in range(len(source)):
        bird = source[i]
        if counts.get(bird["label"], 12) < 12:
            path = root / "photos" / CLASS_NAMES[bird["label"]] / f"{counts[bird['label']]:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(bird["image"]).save(path)
            counts[bird["label"]] += 1
    config = tiny_config(
        dataset__name="folder",
        dataset__path=str(root / "photos"),
        dataset__cache_dir=str(root / "cache"),
        dataset__train_size=None,
        dataset__test_size=None,
        dataset__validation_fraction=0.2,
        method="baseline",
        stages__coarse_epochs=1.0,
    )
    train_and_evaluate(config, root / "run")
    return root / "run", root / "photos"


def test_eval_never_splits_other_photos(of_photos, tmp_path, capsys):
    """At another place the same photos are measured; others are refused, as are those that have changed."""
    workdir, photos = of_photos
    results = json.loads((workdir / "results.json").read_text())
    assert json.loads((workdir / "test_part.json").read_text())["images"] == 8
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    command = ["--mode=eval", f"--workdir={workdir}", f"--config.dataset.cache_dir={tmp_path / 'cache'}"]
    assert cli.main([*command, f"--config.dataset.path={moved}"]) == 0
    assert f"{results['coarse/loss']:.4f}" in capsys.readouterr().out
    # Other photos of the same classes by the same names, as cameras and scripts give them.
    same_names = tmp_path / "same_names"
    shutil.copytree(photos, same_names)
    for path in same_names.rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert cli.main([*command, f"--config.dataset.path={same_names}"]) == 2
    assert f"--images={same_names}" in capsys.readouterr().err
    # Photos of the same classes, but other ones.
    for path in moved.rglob("*.png"):
        path.rename(path.with_name(f"new-{path.name}"))
    assert cli.main([*command, f"--config.dataset.path={moved}"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "launch.py:" in line or "dataset.path" in line)
    assert f"--images={moved}" in line and "8 images then, 8 here" in line
    shutil.rmtree(next(moved.iterdir()))
    assert cli.main([*command, f"--config.dataset.path={moved}"]) == 2
    assert f"--images={moved}" in capsys.readouterr().err
    # The remedy measures all of them.
    assert cli.main([f"--images={moved}", f"--output={tmp_path / 'e.json'}", *command]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["images"] == 36
    # Of a run of an earlier version nobody knows: a line says so.
    old = tmp_path / "old"
    shutil.copytree(workdir, old)
    (old / "test_part.json").unlink()
    shutil.copytree(photos, tmp_path / "again")
    elsewhere = [f"--workdir={old}", f"--config.dataset.path={tmp_path / 'again'}"]
    assert cli.main([command[0], command[2], *elsewhere]) == 0
    assert "does not say which photos it was trained on" in capsys.readouterr().out


def test_a_run_that_goes_on_with_other_photos_says_so(of_photos, tmp_path, capsys):
    workdir, photos = of_photos
    for folder, name in ((workdir, "run"), (photos, "photos")):
        shutil.copytree(folder, tmp_path / name)
    stored = tmp_path / "run" / "config.json"
    stored.write_text(stored.read_text().replace(str(photos), str(tmp_path / "photos")))
    config = read_config(tmp_path / "run")
    config.dataset.cache_dir = str(tmp_path / "cache")
    train_and_evaluate(config, tmp_path / "run")
    assert "have changed since" not in capsys.readouterr().out
    one = sorted((tmp_path / "photos").rglob("*.png"))[0]
    for i in range(12):
        Image.open(one).transpose(Image.Transpose.ROTATE_90).resize((100 + i, 90)).save(one.with_name(f"new-{i}.png"))
    train_and_evaluate(config, tmp_path / "run")
    assert "the photos have changed since this run began" in capsys.readouterr().out


def test_none_of_these(finished, birds, tree, tmp_path, capsys):
    """The run's end fits and stores a threshold; predictions are marked by flag only, evaluations tell by flag."""
    workdir, _ = finished
    fitted = json.loads((workdir / "unknown.json").read_text())
    assert fitted["share"] == 0.95 and fitted["validation"]["images"] == 9
    assert fitted["validation"]["share_kept"] >= 0.95 and fitted["test"]["images"] == COUNT
    model = load_model(workdir)
    plain, marked = list(model.predict(tree)), list(model.predict(tree, mark_unknown=True))
    assert {one.unknown for one in plain} == {None}
    assert [one.unknown for one in marked] == [one.best[1] < fitted["threshold"] for one in marked]
    share = np.mean([not one.unknown for one in marked])
    assert share == pytest.approx(fitted["test"]["share_kept"])
    assert cli.main(["--mode=eval", f"--workdir={workdir}", "--unknown"]) == 0
    assert f"{share:.2%} of {COUNT} images are kept" in capsys.readouterr().out

    # A threshold that some of them miss: every place says so.
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    middle = float(np.median([one.best[1] for one in marked]))
    (copy / "unknown.json").write_text(json.dumps({**fitted, "threshold": middle}))
    said = [f"--workdir={copy}", f"--images={tree}", "--unknown"]
    predicted = ["--mode=predict", f"--output={tmp_path / 'p.csv'}", f"--overlays={tmp_path / 'o'}"]
    assert cli.main([*predicted, *said]) == 0
    rows = rows_of(tmp_path / "p.csv")
    assert [row["unknown"] for row in rows] == ["yes" if one.best[1] < middle else "no" for one in marked]
    known, unknown = (next(row["file"] for row in rows if row["unknown"] == word) for word in ("no", "yes"))
    heights = [Image.open(tmp_path / "o" / f"{file}.png").height for file in (known, unknown)]
    assert heights[1] == heights[0] + 20  # a line more
    assert cli.main(["--mode=eval", f"--output={tmp_path / 'e'}", *said]) == 0
    told = json.loads((tmp_path / "e.json").read_text())["unknown"]
    rows = rows_of(tmp_path / "e.csv")
    kept = [row for row in rows if row["unknown"] == "no"]
    assert told["share_kept"] == pytest.approx(len(kept) / COUNT) and 0.3 < told["share_kept"] < 0.8
    assert told["accuracy_kept"] == pytest.approx(np.mean([row["right"] == "yes" for row in kept]))


def test_runs_without_a_threshold(finished, tree, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    stored = json.loads((copy / "unknown.json").read_text())
    for change, words in (({"step": 3}, "of step 3"), (None, "earlier version"), ("{half", "cannot be read")):
        (copy / "unknown.json").unlink(missing_ok=True)
        if change is not None:
            (copy / "unknown.json").write_text(change if isinstance(change, str) else json.dumps(stored | change))
        for command in (
            ["--mode=eval"],
            ["--mode=eval", f"--images={tree}", f"--output={tmp_path / 'e.json'}"],
            ["--mode=predict", f"--images={tree}", f"--output={tmp_path / 'p.csv'}"],
        ):
            assert cli.main([*command, f"--workdir={copy}", "--unknown"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert words in line and not (tmp_path / "p.csv").exists() and not (tmp_path / "e.json").exists()
        with pytest.raises(UserError):
            load_model(copy).predict(tree, mark_unknown=True)
    assert len(list(load_model(copy).predict(tree))) == COUNT
    # The remedy: the training command once more.
    (copy / "unknown.json").unlink()
    train_and_evaluate(tiny_config(), copy)
    again = json.loads((copy / "unknown.json").read_text())
    assert again["threshold"] == pytest.approx(stored["threshold"], abs=1e-5) and again["test"] == stored["test"]


def test_pictures_in_memory(finished, birds, tree, tmp_path):
    """Files, arrays and Pillow's images, alone or together, give what the files give."""
    model = load_model(finished[0])
    path = next(path for path in tree.rglob("*.png"))
    pixels = np.asarray(Image.open(path))
    (expected,) = model.predict(path)
    assert expected.file == path.name
    floats = (pixels / 255.0).astype(np.float32)
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    for picture in (str(path), pixels, floats, opaque, Image.open(path), pixels[None], [pixels]):
        (found,) = model.predict(picture)
        assert found.error is None and found.box == pytest.approx(expected.box, abs=1e-2)
        assert found.best == (expected.best[0], pytest.approx(expected.best[1], abs=1e-5))
    (turned,) = model.predict(Image.open(turned_file(path, tmp_path)))
    assert turned.best == (expected.best[0], pytest.approx(expected.best[1], abs=1e-5))
    several = list(model.predict([path, pixels, Image.open(path), str(path), tmp_path / "none.jpg"]))
    assert [one.file for one in several] == [str(path), "[1]", "[2]", str(path), str(tmp_path / "none.jpg")]
    assert [one.error for one in several] == [None] * 4 + ["no such file or directory"]
    grey = pixels[..., 0]
    (flat,), (column,), (colours,) = (
        model.predict(one) for one in (grey, grey[..., None], np.repeat(grey[..., None], 3, axis=-1))
    )
    assert flat.best == column.best == colours.best
    for bad, words in (
        (floats * 255, "from 0 to 1"),
        (pixels.astype(np.int32), "int32"),
        (pixels[..., :2], "n of 1, 3 or 4"),
        (np.full((8, 8), np.nan), "from 0 to 1"),
        (pixels[:0], "got"),
    ):
        with pytest.raises(ValueError, match=words):
            model.predict([pixels, bad])
    (found,) = model.predict(jnp.asarray(pixels))
    assert found.best == (expected.best[0], pytest.approx(expected.best[1], abs=1e-5))
    for bad in ([1], b"x", [b"x"], [[[1, 2], [3, 4]]], None, 0):  # a number would be a file that is open
        with pytest.raises(TypeError, match="a picture is a path, an array or a Pillow image"):
            model.predict(bad)


def turned_file(path, tmp_path):
    """The same picture, stored upside down with a note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).rotate(180).save(tmp_path / "turned.png", exif=exif)
    return tmp_path / "turned.png"


def test_one_file_at_the_command_line(finished, tree, tmp_path):
    path = next(path for path in tree.rglob("*.png"))
    output, overlays = tmp_path / "p.csv", tmp_path / "o"
    command = ["--mode=predict", f"--workdir={finished[0]}", f"--images={path}", f"--output={output}"]
    assert cli.main([*command, f"--overlays={overlays}"]) == 0
    (row,) = rows_of(output)
    assert row["file"] == path.name and not row["error"]
    assert [one.name for one in overlays.iterdir()] == [f"{path.name}.png"]
