"""`--mode=prepare`: what it tells of a data set, and the sheet it draws."""

import re

import numpy as np
import pytest
from PIL import Image

from c2f_jax import cli
from c2f_jax.errors import UserError
from c2f_jax.evaluation import contact_sheet
from c2f_jax.runs.prepare import prepare
from tests.data import layouts


def command(tmp_path, *words):
    cache = f"--config.dataset.cache_dir={tmp_path / 'cache'}"
    return ["--mode=prepare", "--output", str(tmp_path / "sheet.png"), cache, "--config.compilation_cache=", *words]


def test_a_published_data_set(tmp_path, capsys):
    layouts.nabirds(tmp_path / "data")
    words = ["--config=configs/nabirds.py", f"--config.dataset.path={tmp_path / 'data'}"]
    words.append("--config.dataset.validation_fraction=0.34")
    assert cli.main(command(tmp_path, *words)) == 0
    told = capsys.readouterr()
    assert told.err.count("preparing NABirds") == 1
    assert "nabirds: 3 classes (published: 555)" in told.out and "24,633, not 1" in told.out
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.out.splitlines() if "│" in line]
    rows = {row[0]: row[1:] for row in table}
    assert rows["images"] == ["2", "1", "1"] and rows["annotated parts"] == ["11", "11", "11"]
    assert rows["boxes"] == ["yes"] * 3 and rows["width"][2] == "40" and rows["median width x height"][2] == "40 x 30"
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    assert contact_sheet._BOX in colours and contact_sheet._PART in colours
    assert cli.main(command(tmp_path, *words)) == 0
    assert "preparing" not in capsys.readouterr().err


def test_ones_own_photos_with_names_of_any_kind(tmp_path, capsys):
    for number, name in enumerate(("[red]", "日本\u202e", "caf\udce9", "x" * 200)):
        for index in range(4):
            layouts.photo(
                tmp_path / "photos" / name / f"{index}.jpg", (60 + 10 * number, 50), (4, 5, 24, 20 + 5 * index)
            )
    words = ["--config=configs/folder.py", f"--config.dataset.path={tmp_path / 'photos'}"]
    assert cli.main(command(tmp_path, *words)) == 0
    out = capsys.readouterr().out
    assert "folder: 4 classes" in out and "published" not in out and "60 to 90" in out


def test_what_cannot_be_written_is_told_before_anything_is_prepared(tmp_path, capsys):
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path / f"{'y' * 250}.png", "name too long, 254 bytes"),
        (tmp_path / "sheet.txt", "--output is a picture, .jpg or .jpeg or .png; got"),
        (tmp_path / "file" / "sheet.jpg", "--output: nothing can be written into"),
    ):
        assert cli.main([*command(tmp_path), "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="--output is a picture"):
        prepare(None, tmp_path / "sheet.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir=x"], "--workdir belongs to --mode train and eval"),
        (["--config.dataset.name=tfds:"], "dataset.name must be one of .*or tfds:NAME; got 'tfds:'"),
        (["--config=cub", "--config.dataset.path=nowhere.tgz"], "there is no nowhere.tgz"),
        (["--config.dataset.fields=label=kind"], "dataset.fields is for data sets with fields of their own"),
    ],
)
def test_mistakes_are_a_line(words, message, tmp_path, capsys):
    assert cli.main(command(tmp_path, *words)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and re.search(message, line)


class Labels:
    """Grey photos of these labels."""

    def __init__(self, labels):
        self.labels = np.array(labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": np.full((9 + index, 3000, 3), 99, np.uint8), "label": int(self.labels[index]), "index": index}


def test_the_sheet_shows_classes_alike():
    few = contact_sheet.chosen(np.repeat(np.arange(6), 100))
    assert np.bincount(few // 100).tolist() == [8] * 6 and {0, 99} <= set(few.tolist())
    many = contact_sheet.chosen(np.arange(1000) // 2)
    assert len(many) == 48 and len(set((many // 2).tolist())) == 48 and many[-1] >= 998
    assert contact_sheet.chosen(np.array([3, 3, 0])).tolist() == [2, 0, 1]
    sheet = contact_sheet.draw(Labels([0, 1, 1]), ["a\nb", "c" * 500], "t" * 999)
    assert sheet.size == (8 * 228 + 8, 40 + 262 + 8)
