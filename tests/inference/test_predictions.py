"""What is written for people and programs: CSV, JSON lines, names like formulas, and files that a kill has cut."""

import csv
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from c2f_jax import cli
from c2f_jax.data.paper_birds import PaperBirds
from c2f_jax.errors import UserError
from c2f_jax.inference import load_model
from c2f_jax.inference.predict import Prediction
from c2f_jax.inference.predictions import as_line, check_output, header, row
from c2f_jax.inference.resumable import csv_lines, json_lines, resuming

COUNT = 19
NAMES = {0: "=1+1.png", 1: "@a\nb.png", 2: 'with "quotes", and commas.png', 3: "-2.png", 4: "'=1+1.png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Birds, some by names that spreadsheets would run, some in a folder, one that cannot be read."""
    root, birds = tmp_path_factory.mktemp("birds"), PaperBirds("test", size=COUNT)
    for i in range(COUNT):
        path = root / NAMES.get(i, f"{'more' if i % 2 else '.'}/{i:02}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(birds[i]["image"]).save(path)
    (root / "broken.png").write_bytes(b"no image")
    return root


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def objects_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_json_lines_say_what_python_says(finished, folder, tmp_path):
    workdir, _ = finished
    output = tmp_path / "p.jsonl"
    command = ["--mode=predict", f"--workdir={workdir}", f"--images={folder}", "--top=2", "--unknown"]
    assert cli.main([*command, f"--output={output}"]) == 0
    said = objects_of(output)
    expected = list(load_model(workdir).predict(folder, mark_unknown=True, top=2))
    assert [one["file"] for one in said] == [one.file for one in expected] and len(said) == COUNT + 1
    keys = {"file", "class", "probability", "top", "box", "looks", "unknown", "error"}
    for one, prediction in zip(said, expected, strict=True):
        if prediction.error is not None:
            assert one["error"] and one["class"] is None and one["box"] is None and one["top"] == {}
            continue
        assert set(one) == keys and one["error"] is None and one["looks"] == 2
        assert (one["class"], one["unknown"]) == (prediction.best[0], prediction.unknown)
        assert one["probability"] == pytest.approx(prediction.best[1], abs=1e-5)
        assert list(one["top"]) == ["calibrated", "fused", "fine", "coarse"]
        assert [entry["class"] for entry in one["top"]["fine"]] == [name for name, _ in prediction.top["fine"]]
        assert all(len(entries) == 2 for entries in one["top"].values())
        assert list(one["box"].values()) == pytest.approx(prediction.box, abs=1e-2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl"]
    # As a table the same; names like formulas are text there.
    assert cli.main([*command, f"--output={tmp_path / 'p.csv'}"]) == 0
    rows = rows_of(tmp_path / "p.csv")
    assert {row["file"] for row in rows} >= {"'=1+1.png", "'@a\nb.png", 'with "quotes", and commas.png', "'-2.png"}
    for table, one in zip(rows, said, strict=True):
        assert table["calibrated_1"] == (one["class"] or "") and "calibrated_3" not in table
        assert table["unknown"] == {True: "yes", False: "no", None: ""}[one.get("unknown")]


@pytest.mark.slow
def test_more_classes_than_there_are(finished, folder, tmp_path):
    command = ["--mode=predict", f"--workdir={finished[0]}", f"--images={folder / 'more'}", "--top=99", "--fast"]
    assert cli.main([*command, f"--output={tmp_path / 'p.jsonl'}"]) == 0
    for one in objects_of(tmp_path / "p.jsonl"):
        assert len(one["top"]["coarse"]) == 16
        assert sum(entry["probability"] for entry in one["top"]["coarse"]) == pytest.approx(1.0, abs=1e-5)
    assert cli.main([*command, f"--output={tmp_path / 'p.csv'}"]) == 0
    columns = rows_of(tmp_path / "p.csv")[0]
    assert "coarse_16" in columns and "coarse_17" not in columns


@pytest.mark.parametrize("name", ["p.json", "p.xlsx", "p.TSV", "p.parquet"])
def test_another_kind_of_file_is_not_written_by_that_name(tmp_path, name):
    with pytest.raises(UserError, match=r"is called p\.(jsonl|csv)"):
        check_output(tmp_path / name)


KILLED = """
import os, signal, sys
from c2f_jax import cli
from c2f_jax.inference import resumable

count, write = 0, resumable.Rows.write
def dying(self, line):
    global count
    count += 1
    if count == 8:
        self._file.write(line[: len(line) // 2]); self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, line)
resumable.Rows.write = dying
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_kill_in_the_middle_of_a_row(finished, folder, tmp_path, capsys, suffix):
    output, whole, images = tmp_path / "out" / f"p.{suffix}", tmp_path / f"whole.{suffix}", tmp_path / "in"
    shutil.copytree(folder, images)
    command = ["--mode=predict", f"--workdir={finished[0]}"]
    # Pictures among the images, which the start that goes on must not take for images.
    killed = [*command, f"--images={images}", f"--output={output}", f"--overlays={images / 'pictures'}"]
    done = subprocess.run([sys.executable, "-c", KILLED, *killed], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    part = output.with_name(f"{output.name}.part")
    assert part.exists() and not output.exists()

    # Another command leaves it as it is.
    before = part.read_bytes()
    for other, words in (("--top=3", "top: 5 there, 3 now"), ("--fast", "fast: False there, True now")):
        assert cli.main([*killed, other]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line and "begun by another command" in line
    assert part.read_bytes() == before
    # The same one goes on, and predicts only what is left.
    assert cli.main(killed) == 0
    told = capsys.readouterr().out
    assert f"going on: 6 of {COUNT + 1} images are done" in told and "1 unreadable" in told
    assert cli.main([*command, f"--images={folder}", f"--output={whole}"]) == 0
    if suffix == "csv":
        assert rows_of(output) == rows_of(whole)
    else:
        close = [
            (a["file"], a["class"], a["probability"])
            == (b["file"], b["class"], pytest.approx(b["probability"], abs=1e-5))
            for a, b in zip(objects_of(output), objects_of(whole), strict=True)
            if b["error"] is None
        ]
        assert all(close) and len(close) == COUNT
    assert len(list((images / "pictures").rglob("*.png"))) == COUNT
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    before = output.read_bytes()
    assert cli.main(killed) == 2  # a finished file stays
    assert "exists" in capsys.readouterr().err and output.read_bytes() == before


@pytest.mark.slow
def test_parts_that_cannot_be_gone_on_with(finished, folder, tmp_path, capsys):
    output = tmp_path / "p.csv"
    command = ["--mode=predict", f"--workdir={finished[0]}", f"--images={folder}", f"--output={output}"]
    (tmp_path / "p.csv.part").write_text("my own notes\n")
    assert cli.main(command) == 2
    assert "move both away" in capsys.readouterr().err
    assert (tmp_path / "p.csv.part").read_text() == "my own notes\n"
    assert cli.main([*command[:-1], f"--output={tmp_path / 'p.json'}"]) == 2
    assert "p.jsonl" in capsys.readouterr().err
    shutil.rmtree(tmp_path)


def test_rows_survive_an_error_and_other_writers_are_kept_out(tmp_path):
    output, command = tmp_path / "a.csv", {"top": 1}
    with pytest.raises(KeyError), resuming(output, command, csv_lines, "file,error\r\n") as rows:
        assert rows.done == ()
        for name in ("a", '"b\n,"', "c"):
            rows.write(f"{name},\r\n")
        with pytest.raises(Exception, match="another process"), resuming(output, command, csv_lines):
            pass
        raise KeyError
    with resuming(output, command, csv_lines, "file,error\r\n") as rows:
        assert rows.done == (("a", False), ("b\n,", False))  # the last is made again
        rows.write("c,bad\r\n")
    assert output.read_bytes() == b'file,error\r\na,\r\n"b\n,",\r\nc,bad\r\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_part_cut_anywhere_keeps_whole_rows_only(tmp_path, cut):
    whole = b'file,error\r\n"a, ""b""\n",\r\nc,\r\n"d\r\n",\r\n'
    (tmp_path / "p").write_bytes(whole[:-cut])
    kept = list(csv_lines(tmp_path / "p"))
    assert all(
        whole.startswith(b"file,error\r\n" + "".join(text for text, _ in kept[: i + 1]).encode())
        for i in range(len(kept))
    )
    lines = b'{"file": "a", "error": null}\n{"file": "\\udcff", "error": "x"}\n'
    (tmp_path / "j").write_bytes(lines[:-cut])
    for text, (name, error) in json_lines(tmp_path / "j"):
        assert text.encode().rstrip(b"\n") in lines and name in ("a", "\udcff") and error == (name != "a")


def test_class_names_that_are_formulas_and_names_of_any_bytes():
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    said = Prediction(name, top={"coarse": [("=HYPERLINK(1)", 0.5)]}, box=(0.0, 0.0, 1.0, 1.0), looks=1)
    columns, fields = header(["coarse"], looks=True, top=2), row(said, ["coarse"], looks=True, top=2)
    assert dict(zip(columns, fields, strict=True)) == {
        **{"file": "\\xff.png", "coarse_1": "'=HYPERLINK(1)", "coarse_1_probability": "0.5000"},
        **{"coarse_2": "", "coarse_2_probability": "", "looks": "1", "error": ""},
        **{"box_xmin": "0.0", "box_ymin": "0.0", "box_xmax": "1.0", "box_ymax": "1.0"},
    }
    line = as_line(said)
    assert line.isascii() and json.loads(line)["class"] == "=HYPERLINK(1)" and json.loads(line)["file"] == name
    assert np.isfinite(json.loads(line)["probability"])
