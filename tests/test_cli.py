"""Every mistake gets one line and exit code 2, and nothing is overwritten."""

import json

import jax
import pytest

from c2f_jax import cli
from c2f_jax.errors import UserError
from c2f_jax.inference import load_model
from c2f_jax.runs.workdir import FIELDS, claim_workdir, read_config
from configs import default


def refused(capsys, *argv):
    assert cli.main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--mode=test"], ["--mode", "train, prepare", "'test'"]),
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
        (["--config.region.floor=1.0"], ["region.floor", "from 0 to 0.99", "'1.0'"]),
        (["--config.region.side=0.001"], ["region.side", "from 0.01 to 1, or 0", "'0.001'"]),
        (["--config.region.background=1.5"], ["region.background", "from 0 to 1"]),
        (["--config.model.backbone=resnet51"], ["model.backbone", "resnet50"]),
        (["--config.train.batch_size=6"], ["train.batch_size=6", "4 devices", "--config.train.batch_size=4"]),
        (["--config.train.accumulate=3"], ["train.accumulate=3", "each device's share of the batch, 8 images"]),
        (["--config.dataset.train_size=30"], ["train.batch_size=32", "27 training examples"]),
        (["--config.dataset.name=birds"], ["dataset.name", "paper_birds"]),
        (["--config=configs/cub.py", "--config.dataset.path=nowhere.tgz"], ["nowhere.tgz"]),
        (["--config.model.pretrained=nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--config=configs/folder.py"], ["--config.dataset.path=DIR"]),
        (["--config=configs/folder.py", "--config.dataset.path=nowhere"], ["nowhere"]),
        (["--config.stages.coarse_epochs=0", "--config.stages.fine_epochs=0"], ["stages.coarse_epochs=1"]),
        # Before a gigabyte is fetched, of data or weights.
        (["--config=configs/cub.py", "--config.dataset.group_by=x"], ["dataset.group_by is for dataset.name=folder"]),
        (["--config=configs/cub.py", "--config.dataset.fields=label=famly,x"], ["dataset.fields", "'x'"]),
        (["--config=configs/nabirds.py", "--config.dataset.test_size=5"], ["dataset.test_size"]),
        (["--config=configs/cub.py", "--config.optimizer.freeze=^backbones/"], ["optimizer.freeze", "in none of"]),
        *(
            (["--config=configs/cub_one_stage.py", f"--config.method={method}"], [method, "stages.coarse_epochs=160"])
            for method in ("baseline", "attention", "wsdan")
        ),
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
    (tmp_path / "metrics.jsonl").write_text('{"step": 50, "stage": "coarse", "split": "train", "loss": 1.0}\n')
    line = refused(capsys, f"--workdir={tmp_path}")
    assert "seed: 7 there, 0 now" in line and "--workdir" in line
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7


def test_workdir_that_is_something_else(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    assert "not a run" in refused(capsys, f"--workdir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--workdir="], "--workdir is empty"),
        (["--config="], "--config is empty"),
        (["--mode=predict", "--images="], "--images is empty"),
        (["--mode=predict", "--images=a", "--output="], "--output is empty"),
        (["--mode=predict", "--images=a", "--overlays="], "--overlays is empty"),
        (["--workdir=~nobody_of_that_name/run"], "no home folder"),
        (["--workdir=a\0b"], "NUL"),
        (["--mode=predict", "--images=a", "--output=-"], "--output: - is no stream here"),
        (["--mode=predict", "--images=-"], "--images: - is no stream here"),
        (["--mode=report", "--output", "-"], "--output: - is no stream here"),
        (["--workdir=s3://bucket/run"], "on this machine or gs://..."),
        (["--nothing\nat\nall"], r"--nothing\nat\nall"),
        (["--images=a"], "belongs to --mode predict"),
        (["--mode=predict", "--images=a", "--multiprocess"], "belongs to --mode train and eval"),
        (["--mode", "nothing", "--help"], "--mode must be one of"),
    ],
)
def test_paths_and_flags_that_cannot_be(capsys, argv, words):
    assert words in refused(capsys, *argv)


@pytest.mark.parametrize(
    "flag",
    [
        *("--workdir", "--config", "--mode=eval --workdir", "--mode=predict --images=a --output"),
        *("--mode=predict --images", "--mode=predict --images=a --overlays", "--mode=prepare --output"),
        *("--mode=export --output", "--mode=serve --workdir", "--config.init_from"),
        *("--config.model.pretrained", "--config configs/folder.py --config.dataset.path"),
        *("--config configs/cub.py --config.dataset.path", "--config configs/deep_pcb.py --config.dataset.path"),
    ],
)
def test_names_that_no_folder_can_hold(capsys, tmp_path, flag):
    """Told before anything is read or written; with umlauts, since bytes count and not characters."""
    words = f"{flag}={tmp_path / ('ü' * 128)}/x".split()
    workdir = [] if "workdir" in flag or "prepare" in flag else [f"--workdir={tmp_path / 'run'}"]
    line = refused(capsys, *words, *workdir)
    name = flag.rpartition("--")[2].removeprefix("config.")
    assert name in line and "name too long, 256 bytes; give one of at most 255" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["model.pretrained={}/model.safetensors", "init_from={}"])
def test_what_a_run_begins_with_is_looked_for_before_its_data_are_made_ready(capsys, tmp_path, monkeypatch, flag):
    """Which may take hours; with input values of its own or without."""
    monkeypatch.setattr("c2f_jax.runs.build.load_splits", lambda config: pytest.fail("made ready"))
    place = tmp_path / "nowhere"
    for more in ([], ["--config.augment.mean=(1.0,1.0,1.0)", "--config.augment.std=(1.0,1.0,1.0)"]):
        line = refused(capsys, f"--config.{flag.format(place)}", *more, f"--workdir={tmp_path / 'run'}")
        assert str(place) in line and ("no file of weights" in line or "holds no run" in line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("data", "first"), [("there", "cannot fetch hf://"), ("nowhere", "made ready")])
def test_weights_of_the_hub_come_before_what_takes_hours_and_after_a_wrong_path(
    capsys, tmp_path, monkeypatch, data, first
):
    def made_ready(config):
        raise UserError("made ready")

    monkeypatch.setattr("c2f_jax.runs.build.load_splits", made_ready)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "there").mkdir()
    words = ["--config=configs/nabirds.py", f"--config.dataset.path={tmp_path / data}", f"--workdir={tmp_path / 'run'}"]
    assert first in refused(capsys, *words, "--config.model.pretrained=hf://nobody/has-such-a-model")


def test_home_is_known_in_every_path(tmp_path, monkeypatch, finished_config):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(finished_config)
    paths = ["--images=~/new", "--output=~/out.csv", "--overlays=~/pictures"]
    command = cli.parse(["--mode=predict", "--workdir=~/run", *paths])
    assert [command.workdir, command.images, command.output, command.overlays] == [
        tmp_path / name for name in ("run", "new", "out.csv", "pictures")
    ]


@pytest.mark.parametrize(
    ("mode", "images", "name"),
    [("predict", True, "predictions.csv"), ("eval", True, "evaluation.json"), ("report", False, "report.html")],
)
def test_results_go_into_a_folder_that_is_named_for_them(tmp_path, finished_config, mode, images, name):
    (tmp_path / "config.json").write_text(finished_config)
    (tmp_path / "there").mkdir()
    command = [f"--mode={mode}", f"--workdir={tmp_path}", *(["--images=new"] if images else [])]
    for text, expected in (("new/", f"new/{name}"), ("there", f"there/{name}"), ("new.x", "new.x")):
        assert cli.parse([*command, f"--output={tmp_path}/{text}"]).output == tmp_path / expected
    command = ["--mode=export", f"--workdir={tmp_path}", f"--output={tmp_path}/there/"]
    assert cli.parse(command).output == tmp_path / "there"


@pytest.fixture
def finished_config():
    return cli.load_config(cli.Path(cli.DEFAULT_CONFIG)).to_json()


@pytest.mark.parametrize("mode", ["eval", "predict"])
def test_weights_are_looked_at_as_they_were_made(capsys, tmp_path, finished_config, mode):
    """What they were not made for is named with both values; what changes nothing passes."""
    (tmp_path / "config.json").write_text(finished_config)
    command = [f"--mode={mode}", f"--workdir={tmp_path}", *(["--images=new"] if mode == "predict" else [])]
    against = {
        "method": "wsdan",
        "model.backbone": "resnet18",
        "model.num_maps": "9",
        "model.view_size": "72",
        "model.feature_scale": "21.0",
        "dataset.raw_size": "96",
        "augment.test_side": "0.5",
        "augment.keep_aspect": "true",
        "augment.std": "(58.0, 58.0, 58.0)",
        "region.max_side": "0.9",
        "region.kappa": "1.5",
        "train.ema_decay": "0.5",
    }
    for name, value in against.items():
        line = refused(capsys, *command, f"--config.{name}={value}")
        assert f"{name}=" in line and "made with" in line and str(tmp_path) in line
    two = refused(capsys, *command, "--config.method=wsdan", "--config.model.num_maps=9")
    assert "method=wsdan, made with coarse2fine" in two and "model.num_maps=9, made with 8" in two
    free = ["train.eval_batch_size=3", "dataset.cache_dir=/elsewhere", "compilation_cache=", "dataset.test_size=9"]
    free += ["dataset.memory_mib=0", "model.dtype=bfloat16"]
    config = cli.parse([*command, *(f"--config.{word}" for word in free)]).config
    assert config.train.eval_batch_size == 3 and config.model.dtype == "bfloat16"
    # By a file as by flags: this one is for photos.
    line = refused(capsys, *command, "--config=configs/cub.py")
    assert "model.backbone=resnet50, made with resnet10_small" in line


@pytest.mark.parametrize("content", ["{half", "[]", "3", '"text"', "{}", '{"train": 3}', '{"seed": "x"}'])
def test_a_config_of_a_run_that_is_none(capsys, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    for argv in (["--mode=eval"], ["--mode=predict", "--images=new"], []):
        assert str(tmp_path / "config.json") in refused(capsys, *argv, f"--workdir={tmp_path}")
    assert (tmp_path / "config.json").read_text() == content


def test_an_old_runs_training_is_not_judged_again(tmp_path, finished_config):
    """It was trained with what is refused today, and is looked at all the same."""
    config = json.loads(finished_config)
    config["optimizer"]["momentum"], config["optimizer"]["learning_rate"], config["seed"] = 1.0, 1e30, -1
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.parse(["--mode=eval", f"--workdir={tmp_path}"]).config.seed == -1


# --- Whose place a workdir is. ---


def test_a_run_that_recorded_nothing_leaves_its_place_to_the_corrected_command(tmp_path):
    first, second = (cli.load_config(cli.Path(cli.DEFAULT_CONFIG)) for _ in range(2))
    second.optimizer.learning_rate = 1e-3
    claim_workdir(tmp_path, first, ["a", "b"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    assert claim_workdir(tmp_path, first, ["a", "b"]) == ()
    (note,) = claim_workdir(tmp_path, second, ["a", "b", "c"])
    assert "recorded nothing" in note and read_config(tmp_path).optimizer.learning_rate == 1e-3
    assert json.loads((tmp_path / "class_names.json").read_text()) == ["a", "b", "c"]
    (tmp_path / "metrics.jsonl").write_text('{"step": 50}\n')
    with pytest.raises(UserError, match="learning_rate: 0.001 there, 0.008 now"):
        claim_workdir(tmp_path, first, ["a", "b", "c"])
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "checkpoints" / "500").mkdir()
    with pytest.raises(UserError, match="learning_rate"):
        claim_workdir(tmp_path, first, ["a", "b", "c"])


def test_a_folder_with_somebody_elses_config_is_not_taken(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "my-site", "theme": {"dark": true}}')
    (tmp_path / "index.html").touch()
    assert "lacks" in refused(capsys, f"--workdir={tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "index.html"]


def test_checkpoints_that_are_no_folder(capsys, tmp_path, finished_config):
    (tmp_path / "config.json").write_text(finished_config)
    (tmp_path / "checkpoints").write_text("mine")
    assert f"{tmp_path / 'checkpoints'} is not a folder" in refused(capsys, f"--workdir={tmp_path}")


def test_memory_that_is_not_there_is_a_line(capsys, tmp_path, monkeypatch):
    """What XLA itself says when 16 TiB are asked for; other errors of its stay what they are."""
    monkeypatch.setattr(cli, "run", lambda *_: jax.numpy.zeros(1 << 42).block_until_ready())
    assert cli.main([f"--workdir={tmp_path / 'run'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory" in line and "--config.train.accumulate" in line
    monkeypatch.setattr(cli, "run", lambda *_: jax.numpy.zeros(3).at[0].set(jax.numpy.zeros(2)))
    with pytest.raises(ValueError):
        cli.main([f"--workdir={tmp_path / 'run'}"])


# --- What --help says. ---


@pytest.mark.parametrize(
    ("argv", "told", "untold"),
    [
        (["--help"], ["--config.GROUP.FIELD", "--multiprocess", "docs/config.md"], ["--images", "--overlays"]),
        (["-h", "--mode", "eval"], ["--multiprocess", "changes nothing", "--images"], ["--overlays", "--config.GROUP"]),
        (["--mode=predict", "--help"], ["--images", "--output", "--overlays", "CSV"], ["--multiprocess", "--process"]),
    ],
)
def test_help_tells_what_belongs_to_the_mode(capsys, argv, told, untold):
    with pytest.raises(SystemExit) as left:
        cli.main(argv)
    text = capsys.readouterr().out
    assert left.value.code == 0 and text.count("\n  python launch.py") == 3 and max(map(len, text.splitlines())) <= 120
    for words in told:
        assert words in text
    for words in untold:
        assert words not in text.split("examples:")[0]
    for line in text.splitlines():  # the examples can be given as they are
        if line.startswith("  python launch.py") and "mode" not in line:
            assert cli.parse(line.split()[2:]).mode == "train"


def test_every_flag_is_told_in_the_help_of_its_modes(capsys):
    for mode in cli.MODES:
        with pytest.raises(SystemExit):
            cli.main([f"--mode={mode}", "--help"])
        text = capsys.readouterr().out.split("examples:")[0]
        for name, flag in (cli.FLAGS | cli.SWITCHES).items():
            assert (f"--{name} " in text or f"--{name}\n" in text) == (mode in flag.modes), (mode, name)


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
