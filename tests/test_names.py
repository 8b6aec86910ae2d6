"""Files, folders and classes with any bytes for a name: through training, pictures, logs, CSV, JSON and messages."""

import csv
import io
import json
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from c2f_jax import cli, console
from c2f_jax.data import listing
from c2f_jax.data.tables import as_cell_is_meant
from c2f_jax.errors import UserError, as_name, as_text, one_line
from c2f_jax.evaluation import pictures
from c2f_jax.inference import load_model
from c2f_jax.runs import none_of_these, writers
from c2f_jax.runs.workdir import check_class_names, read_class_names

NAMES = [
    *("[red]", "[bold]", ":smile:", "$x^{$", r"\frac{", "%s %d", "{x}", "<b>&amp;", "a;b|c,d", "'a", '"b"', "`c`"),
    *(
        "a\nb",
        "a\tb",
        "a\rb",
        "\x1b[31m",
        "\x07",
        "\x7f",
        "\u202eabc",
        "\u200fx",
        "\ufeffx",
        "\u2028",
        "日本",
        "🐦",
        "é",
    ),
    *("-x", "--help", "=1+1", "+1", "@SUM(A1)", " lead", "trail ", "a\\b", "~", "~root", "#x", "x~", "con", "x" * 200),
    *("caf\udce9", "\udcff\udcfe", "\udced\udca0\udc80"),  # bytes that are no UTF-8
]


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    path.write_bytes(buffer.getvalue())


def grow(root, per_class=4):
    """A folder and files of every name."""
    for i, name in enumerate(NAMES):
        for j in range(per_class):
            picture(root / name / f"{NAMES[(i + j) % len(NAMES)][:200]}{j}.png", 100 * i + j)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return grow(tmp_path_factory.mktemp("names") / "a [red]\n$x$ \udce9")


def plain(text):
    """Lines that a terminal shows as they are; the box of a table is printable, too."""
    return all(line.isprintable() for line in text.splitlines())


def test_a_class_is_called_by_its_folder(tree):
    items = listing.read(tree).items
    assert {item.label for item in items} == {as_text(name) for name in NAMES}
    assert all((tree / item.path).is_file() for item in items)
    json.dumps([item.label for item in items], ensure_ascii=False).encode()  # text in any encoding of Unicode


def test_two_folders_of_one_text_are_refused(tmp_path):
    for name in ("caf\udce9", "caf\\xe9", "x"):
        picture(tmp_path / name / "a.png", 0)
    with pytest.raises(UserError, match=r"both called caf\\xe9"):
        listing.read(tmp_path)


def cell(text):
    """As a program writes it that knows what spreadsheets run as formulas."""
    return f"'{text}" if text.lstrip(" ")[:1] in tuple("=+-@\t\r\n") else text


def as_table(place, items, root):
    with place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "error"])
        writer.writerows([cell(as_text(item.path)), cell(item.label), ""] for item in items)
    os.rename(place, root / place.name)
    return root / place.name


def test_a_table_of_any_names_is_read_back(tree, tmp_path):
    items = listing.read(tree).items
    table = as_table(tmp_path / "table.csv", items, tree)
    try:
        read = listing.read(table)
        told = [(item.path, item.label.strip() or item.label) for item in items]
        assert [(item.path, item.label) for item in read.items] == told
        assert not any("read as" in note for note in read.notes)
        # Each name alone, too, so that none is taken for the separator.
        for name in NAMES:
            few = [item for item in items if item.label == as_text(name)]
            one = listing.read(as_table(tmp_path / "one.csv", few, tree))
            assert [item.path for item in one.items] == [item.path for item in few]
    finally:
        table.unlink()
        (tree / "one.csv").unlink(missing_ok=True)


@pytest.mark.parametrize("cell", ["a\\u0000b", "\\ud800"])
def test_a_path_that_is_none_is_a_line(tmp_path, cell):
    (tmp_path / "t.jsonl").write_text(f'{{"path": "{cell}", "label": "\\ud800"}}\n')
    with pytest.raises(UserError, match="row 1: the path .* as no name does"):
        listing.read(tmp_path / "t.jsonl")


def test_labels_of_half_characters_are_text(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "a.png", "label": "\\ud800x"}\n')
    assert listing.read(tmp_path / "t.jsonl").items[0].label == "\\ud800x"


@pytest.mark.slow
def test_every_name_goes_through_a_run(tree, tmp_path, capsys):
    """Training, the sheet, log, JSON, both evaluations and predictions with pictures."""
    flags = [
        f"--config.{name}={value}"
        for name, value in (
            *(
                ("method", "baseline"),
                ("dataset.name", "folder"),
                ("dataset.path", tree),
                ("dataset.cache_dir", tmp_path / "c"),
            ),
            *(("dataset.train_size", None), ("dataset.test_size", None), ("stages.coarse_epochs", 0.5)),
            *(("stages.fine_epochs", 0.5), ("model.view_size", 32), ("model.num_maps", 4), ("train.batch_size", 8)),
            *(("train.eval_batch_size", 32), ("dataset.raw_size", 40)),
        )
    ]
    workdir = tmp_path / "-run [blue]\t\udce9$"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of letters that the sheet's font lacks
        assert cli.main([*flags, f"--workdir={workdir}"]) == 0
    told = capsys.readouterr()
    assert plain(told.out) and "[blue]" in told.out and "Traceback" not in told.err
    assert set(read_class_names(workdir)) == {as_text(name) for name in NAMES}
    with Image.open(workdir / "samples.png") as sheet:
        sheet.load()
    for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)

    model = [f"--workdir={workdir}", f"--images={tree}"]
    assert cli.main(["--mode=eval", *model, f"--output={tmp_path / 'new'}"]) == 0
    pictures_of = tmp_path / "pictures"
    assert cli.main(["--mode=predict", *model, f"--output={tmp_path / 'p.csv'}", f"--overlays={pictures_of}"]) == 0
    assert plain(capsys.readouterr().out)
    paths = sorted(os.path.relpath(os.path.join(top, name), tree) for top, _, names in os.walk(tree) for name in names)
    for table, column in (("new.csv", "class"), ("p.csv", None)):
        with (tmp_path / table).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert sorted(as_name(as_cell_is_meant(row["file"])) for row in rows) == paths
        assert not any(row["error"] for row in rows)
        assert column is None or {as_cell_is_meant(row[column]) for row in rows} == {as_text(name) for name in NAMES}
    results = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))
    assert set(results["images_by_class"]) == {as_text(name) for name in NAMES}
    assert sum(len(names) for _, _, names in os.walk(pictures_of)) == len(paths)

    # The tables that were written are tables to measure on.
    os.rename(tmp_path / "new.csv", tree / "new.csv")
    try:
        again = ["--mode=eval", model[0], f"--images={tree / 'new.csv'}", f"--output={tmp_path / 'again'}"]
        assert cli.main(again) == 0
    finally:
        (tree / "new.csv").unlink()
    assert json.loads((tmp_path / "again.json").read_text())["images"] == results["images"]


# --- Messages ---

BAD = "a\nb[red]\x1b[2J\u202e\udce9"
SHOWN = one_line(BAD)


def _table(tmp_path, text):
    place = tmp_path / f"{BAD}.csv"
    place.write_bytes(os.fsencode(text))
    return place


def _folders(root, *names):
    for i, name in enumerate(names):
        picture(root / name, i)
    return root


# What is wrong -> how it comes to be told; one of each kind of thing that a message may quote.
MESSAGES = {
    "a workdir without a run": lambda t: load_model(t / BAD),
    "a file of weights": lambda t: __import__("c2f_jax.models.pretrained", fromlist=["x"]).read_weights(str(t / BAD)),
    "a place of data": lambda t: listing.read(t / BAD),
    "a class folder without images": lambda t: _load(_empty(_folders(t / "d", "x/a.png", "y/a.png"), BAD)),
    "one class": lambda t: _load(_folders(t / "d", f"{BAD}/a.png", f"{BAD}/b.png")),
    "a class of the test part": lambda t: _load(
        _folders(t / "d", "train/a/1.png", "train/b/1.png", f"test/{BAD}/1.png")
    ),
    "parts beside classes": lambda t: listing.read(_folders(t / "d", f"{BAD}/a.png", "train/x/a.png")),
    "a link to nowhere": lambda t: listing.read(_linked(_folders(t / "d", "x/a.png"), BAD)),
    "a cell": lambda t: listing.read(_table(t, f'path,label,split\nx.png,y,"{BAD}"\n')),
    "a column": lambda t: listing.read(_table(t, f'path,"{BAD}"\nx,y\n')),
    "a row's path": lambda t: listing.read(_table(t, f'path,label\n"{BAD}",y\n"{BAD}",z\n')),
    "a row's label": lambda t: _load(_table(t, f'path,label\nx,"{BAD}"\ny,"{BAD}"\n')),
    "images that cannot be read": lambda t: _load(_broken(t / "d", f"x/{BAD}.png", f"y/{BAD}.png")),
    "classes that a run does not know": lambda t: check_class_names(_run(t / BAD), ["x", BAD]),
    "a file of a run": lambda t: read_class_names(_run(t / BAD, "[")),
    "a threshold": lambda t: none_of_these.read_threshold(t / BAD, 3, None),
    "a line of a log": lambda t: writers.JsonLines(_log(t / f"{BAD}.jsonl"), resume_step=3),
    "a flag's path": lambda t: cli.parse(["--mode=predict", f"--workdir={t}", f"--images=s3://{BAD}"]),
    "a flag": lambda t: cli.parse([f"--{BAD}"]),
    "a field": lambda t: cli.parse([f"--config.{BAD}=3"]),
    "a field's value": lambda t: cli.parse([f"--config.method={BAD}"]),
    "a config's file": lambda t: cli.parse([f"--config={t / BAD}"]),
    "an expression": lambda t: _load(_folders(t / "d", "x/a.png", "y/a.png"), group_by=f"({BAD}"),
}


def _load(place, **others):
    from c2f_jax.data import photos

    return photos.load(str(place), cache_dir=f"{place}.cache", unreadable="fail", validation_fraction=0.1, **others)


def _empty(root, name):
    (root / name).mkdir()
    return root


def _linked(root, name):
    (root / name).symlink_to("nowhere")
    return root


def _broken(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"x")
    return root


def _run(workdir, names='["x"]'):
    workdir.mkdir()
    (workdir / "class_names.json").write_text(names)
    return workdir


def _log(path):
    path.write_text("x\n{}\n")
    return path


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_quotes_any_name_on_one_line(kind, tmp_path, capsys):
    with pytest.raises(UserError) as caught:
        MESSAGES[kind](tmp_path)
    message = str(caught.value)
    assert message.isprintable()
    # `repr` in a message spells out backslashes once more.
    assert SHOWN.split("\\")[0] in message and "[red]" in message
    assert r"\x1b" in message and r"\u202e" in message
    capsys.readouterr()
    console.fail(message)
    assert capsys.readouterr().err.count("\n") == 1


def test_notes_and_titles_are_no_markup(capsys):
    with writers.Reporter(1, start=0) as report:
        report.say(f"note {BAD} :smile:")
    writers.print_table(BAD, {})
    told = capsys.readouterr().out
    assert plain(told) and told.count("[red]") == 2 and ":smile:" in told


def test_a_name_in_a_picture_is_one_short_line():
    assert pictures.caption("a\nb") == "a\\nb"
    assert len(pictures.caption("x" * 500)) == pictures.LONGEST_NAME
