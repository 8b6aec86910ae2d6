"""Every mistake gets one line and exit code 2, and nothing is overwritten."""

import json

import jax
import pytest

from c2f_jax import cli
from c2f_jax.errors import UserError
from c2f_jax.inference import load_model
from c2f_jax.runs.workdir import FIELDS
from configs import default


def refused(capsys, *argv):
    assert cli.main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--mode=test"], ["--mode", "train, eval", "'test'"]),
        (["--confg=configs/cub.py"], ["--confg", "--config?"]),
        (["--config=configs/nope.py"], ["configs/nope.py", "configs/"]),
        (["--config.train.batch_sizee=8"], ["config.train", "'batch_sizee'", "batch_size?"]),
        (["--config.zzz=8"], ["config", "'zzz'", "method"]),
        (["--config.train=8"], ["group", "batch_size"]),
        (["--config.train.batch_size=many"], ["config.train.batch_size", "int", "'many'"]),
        (["--config.train.batch_size=8.5"], ["config.train.batch_size", "int", "'8.5'"]),
        (["--config.augment.flip=1"], ["config.augment.flip", "bool"]),
        (["--config.augment.saturation=(1.0,)"], ["config.augment.saturation", "tuple of 2"]),
        (["--config.train.batch_size"], ["needs a value"]),
        (["--config.method=coarse3fine"], ["method", "coarse2fine"]),
        (["--config.region.box_gradient=some"], ["region.box_gradient", "mapping"]),
        (["--config.region.floor=1.0"], ["region.floor", "[0, 1)"]),
        (["--config.region.background=1.5"], ["region.background", "[0, 1]"]),
        (["--config.model.backbone=resnet51"], ["model.backbone", "resnet50"]),
        (["--config.train.batch_size=6"], ["train.batch_size=6", "4 devices", "--config.train.batch_size=4"]),
        (["--config.train.accumulate=3"], ["train.accumulate=3", "each device's share of the batch, 8 images"]),
        (["--config.dataset.train_size=30"], ["train.batch_size=32", "27 training examples"]),
        (["--config.dataset.name=birds"], ["dataset.name", "paper_birds"]),
        (["--config=configs/cub.py", "--config.dataset.path=nowhere.tgz"], ["nowhere.tgz"]),
        (["--config.model.pretrained=nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--config=configs/folder.py"], ["--config.dataset.path=DIR"]),
        (["--config=configs/folder.py", "--config.dataset.path=nowhere"], ["nowhere"]),
        (["--config.stages.coarse_epochs=0", "--config.stages.fine_epochs=0"], ["stages.coarse_epochs"]),
        (["train"], ["train"]),
    ],
)
def test_mistakes(capsys, tmp_path, argv, words):
    workdir = tmp_path / "run"
    line = refused(capsys, *argv, f"--workdir={workdir}")
    for word in words:
        assert word in line
    assert not workdir.exists()


def test_eval_without_a_run(capsys, tmp_path):
    assert "train first" in refused(capsys, "--mode=eval", f"--workdir={tmp_path / 'nothing'}")


def test_eval_without_a_checkpoint(capsys, tmp_path):
    (tmp_path / "config.json").write_text(cli.load_config(cli.Path(cli.DEFAULT_CONFIG)).to_json())
    assert "no checkpoint" in refused(capsys, "--mode=eval", f"--workdir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_workdir_with_another_config(capsys, tmp_path):
    config = json.loads(cli.load_config(cli.Path(cli.DEFAULT_CONFIG)).to_json())
    config["seed"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = refused(capsys, f"--workdir={tmp_path}")
    assert "seed: 7 there, 0 now" in line and "--workdir" in line
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7


def test_workdir_that_is_something_else(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    assert "not a run" in refused(capsys, f"--workdir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overrides_take_the_fields_type():
    command = cli.parse(
        [
            "--config.train.batch_size=32",
            "--config.stages.fine_epochs=3",
            "--config.augment.flip=false",
            "--config.augment.saturation=(0.8,1.2)",
            "--config.dataset.train_size=300",
            "--config.method",
            "wsdan",
            "--config",
            "configs/paper_birds.py",
        ]
    )
    config = command.config
    assert (config.train.batch_size, config.stages.fine_epochs, config.augment.flip) == (32, 3.0, False)
    assert (config.augment.saturation, config.dataset.train_size, config.method) == ((0.8, 1.2), 300, "wsdan")
    assert str(command.workdir) == "runs/paper_birds" and command.mode == "train"


def test_eval_takes_the_runs_own_config(tmp_path):
    stored = cli.load_config(cli.Path(cli.DEFAULT_CONFIG))
    stored.seed = 3
    (tmp_path / "config.json").write_text(stored.to_json())
    assert cli.parse(["--mode=eval", f"--workdir={tmp_path}"]).config.to_dict() == stored.to_dict()


def test_every_field_is_known_to_be_missing():
    """`FIELDS`, which the package checks a run's config for, are those of configs/default.py."""
    config = default.get_config().to_dict()
    grouped = {name: set(value) for name, value in config.items() if isinstance(value, dict)}
    assert {group: set(names) for group, names in FIELDS.items()} == {"": set(config) - set(grouped), **grouped}


@pytest.mark.parametrize("mode", [["--mode=eval"], ["--mode=predict", "--images=photos"]])
def test_a_run_of_another_version(capsys, tmp_path, mode):
    """What its config lacks of what all have had is named at once; what it has beyond is no matter."""
    config = json.loads(cli.load_config(cli.Path(cli.DEFAULT_CONFIG)).to_json())
    config["augment"]["of_another_version"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "no checkpoint" in refused(capsys, "--mode=eval", f"--workdir={tmp_path}")

    del config["compilation_cache"], config["augment"]["test_side"], config["parallel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = refused(capsys, *mode, f"--workdir={tmp_path}")
    assert f"{tmp_path / 'config.json'} lacks parallel.backend, which " in line
    assert "configs/default.py" in line and "train again" in line
    with pytest.raises(UserError, match="lacks parallel.backend"):
        load_model(tmp_path)


def test_compiled_programs_are_kept_where_jax_is_told(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    cli.keep_compiled(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == before
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    try:
        cli.keep_compiled("")
        assert jax.config.jax_compilation_cache_dir == before
        cli.keep_compiled(str(tmp_path))
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_file_that_is_no_config(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="get_config"):
        cli.load_config(tmp_path / "a.py")
