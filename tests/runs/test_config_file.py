"""A user's own config file: each mistake in it is one line with the file and, as far as it can be known, the line."""

import re

import pytest

from c2f_jax import cli
from c2f_jax.runs.config_file import load_config

START = "from configs import default\n\ndef get_config():\n    config = default.get_config()\n"
WHOLE = START + "    {}\n    return config\n"

FILES = {
    "raises": (WHOLE.format("x = nowhere"), 5, "NameError: name 'nowhere'"),
    "leaves": ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
    "does not parse": ("def get_config():\n    return (1\n", 2, "SyntaxError"),
    "is indented wrongly": ("def get_config():\nreturn 1\n", 2, "IndentationError"),
    "imports what is not there": ("import not_there_at_all\n", 1, "not_there_at_all"),
    "takes arguments": ("\ndef get_config(name):\n    return name\n", 2, "without arguments"),
    "returns nothing": ("def get_config():\n    pass\n", 1, "None of type NoneType"),
    "returns a dict": ("def get_config():\n    return {'method': 'wsdan'}\n", 1, "of type dict"),
    "lacks nearly all": (
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 1})\n",
        2,
        "lacks method",
    ),
    "lacks a field": (WHOLE.format("del config.train.batch_size"), 3, "lacks train.batch_size"),
    "misspells a field": (WHOLE.format("config.train.batch_sizee = 8"), 5, "'batch_sizee'; batch_size?"),
    "misspells a group's field under another name": (
        WHOLE.format("train = config.train; train.log_every = 8"),
        5,
        "'log_every'; log_every_steps?",
    ),
    "misspells a field at the top": (WHOLE.format("config.sed = 8"), 5, "'sed'; seed?"),
    "misspells a group": (WHOLE.format("config.trian.batch_size = 8"), 5, '"train"'),
    "a text for a number": (WHOLE.format("config.train.batch_size = '8'"), 5, "batch_size"),
    "a number for a group": (WHOLE.format("config.train = 8"), 5, "train"),
    "a value out of range": (WHOLE.format("config.optimizer.momentum = 2.0"), 5, "from 0 to 0.9999; got 2.0"),
    "not a number": (WHOLE.format("config.optimizer.learning_rate = float('nan')"), 5, "got nan"),
    "a tuple of another length": (WHOLE.format("config.augment.mean = (1.0, 2.0)"), 5, "tuple of 3"),
    "fractions for grey levels": (WHOLE.format("config.augment.std = (0.2, 0.2, 0.2)"), 5, "grey levels"),
    "no choice": (WHOLE.format("config.method = 'wsdam'"), 5, "wsdan?"),
    "by a dict": (WHOLE.format("config.update({'train': {'batch_size': -1}})"), 5, "got -1"),
}


@pytest.mark.parametrize("name", FILES)
def test_mistakes_in_a_file(name, tmp_path, capsys):
    text, number, words = FILES[name]
    path, workdir = tmp_path / "mine.py", tmp_path / "run"
    path.write_text(text)
    assert cli.main([f"--config={path}", f"--workdir={workdir}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"launch.py: --config: {path}:{number}: ") and words in line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"x"),
        ("bytes.py", b'x = "\xff"\n'),
        ("nul.py", b"x = 1\0\n"),
        ("empty.py", b""),
        ("three.py", b"get_config = 3\n"),
    ],
)
def test_files_that_are_no_configs(name, content, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert cli.main([f"--config={tmp_path / name}", f"--workdir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_a_mistake_in_the_config_that_it_builds_on(tmp_path, capsys, monkeypatch):
    (tmp_path / "base_of_mine.py").write_text(WHOLE.format("config.region.kapa = 2.0"))
    (tmp_path / "mine.py").write_text(
        "import base_of_mine\n\ndef get_config():\n    return base_of_mine.get_config()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main([f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert f"{tmp_path / 'base_of_mine.py'}:5: region has no field 'kapa'" in capsys.readouterr().err


def test_flags_mend_what_a_file_leaves_open(tmp_path):
    path = tmp_path / "mine.py"
    placeholder = "import ml_collections; config.dataset.path = ml_collections.config_dict.required_placeholder(str)"
    path.write_text(WHOLE.format(placeholder))
    assert cli.parse([f"--config={path}", "--config.dataset.path=photos"]).config.dataset.path == "photos"
    assert cli.main([f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 2
    path.write_text(WHOLE.format("import ml_collections; config = ml_collections.FrozenConfigDict(config)"))
    assert cli.parse([f"--config={path}", "--config.seed=7"]).config.seed == 7
    path.write_text(WHOLE.format("config.stages.fine_epochs = 3"))
    assert load_config(path).stages.fine_epochs == 3.0


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "1e999", "nan", "-1", "0", "", "(" * 300, "True", "'8'", "[8]", "1e3", "0x", "2**3", "8\n9"],
)
def test_flags_with_what_is_no_batch_size(text, capsys, tmp_path):
    assert cli.main([f"--config.train.batch_size={text}", f"--workdir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.batch_size" in line and len(line) < 250 and not re.search(r"[\x00-\x1f]", line)
    assert not (tmp_path / "run").exists()
