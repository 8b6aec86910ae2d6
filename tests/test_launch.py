"""`python launch.py` as a user starts it: a process of its own."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from c2f_jax.memory import TUNABLES
from c2f_jax.program import EXTRAS

ROOT = Path(__file__).resolve().parents[1]


def launch(*arguments, **environment):
    ours = ("GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in ours} | environment
    return subprocess.run(
        [sys.executable, "launch.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )


def test_mistakes_keep_their_exit_code():
    told = launch("--mode=nothing")
    assert told.returncode == 2 and told.stderr.count("\n") == 1 and "--mode" in told.stderr


@pytest.mark.parametrize("given", [None, "glibc.malloc.check=0"])
def test_memory_settings_are_made_once_and_never_overridden(given):
    code = "from c2f_jax.memory import restart_with_huge_pages; restart_with_huge_pages();"
    code += "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])"
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    env |= {} if given is None else {"GLIBC_TUNABLES": given}
    told = subprocess.run([sys.executable, "-c", code, "a b"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert told.returncode == 0
    expected = given or (TUNABLES if os.confstr("CS_GNU_LIBC_VERSION") else None)
    assert told.stdout == f"{expected} ['a b']\n"


@pytest.mark.slow
def test_compiled_programs_are_kept(tmp_path):
    """A run of two steps leaves its programs in the cache, and a second one over other photos finds them.

    Also the one that draws samples.png: weights are arguments of a program, and no part of it.
    """
    settings = ["--config.method=baseline", "--config.dataset.test_size=16"]
    settings += ["--config.train.batch_size=8", "--config.stages.coarse_epochs=0.25", "--config.model.view_size=32"]
    settings += [f"--config.compilation_cache={tmp_path / 'compiled'}", "--config.optimizer.warmup_epochs=0"]
    environment = {"JAX_PLATFORMS": "cpu", "JAX_LOGGING_LEVEL": "DEBUG"}
    said, kept = [], []
    for size in (80, 82):
        varied = [f"--config.dataset.train_size={size}", f"--workdir={tmp_path / str(size)}"]
        done = launch(*settings, *varied, **environment)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append("Persistent compilation cache hit for 'jit_train_step'" in done.stderr)
        kept.append({path.name for path in (tmp_path / "compiled").iterdir() if "predict" in path.name})
    assert said == [False, True] and kept[0] and kept[0] == kept[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What `pip install` makes: packages where pyproject.toml puts them, and the script of the command."""
    root = tmp_path_factory.mktemp("installed")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    places = settings["tool"]["setuptools"]["package-dir"]
    for package in settings["tool"]["setuptools"]["packages"]:
        to = root / "site" / package.replace(".", "/")
        to.mkdir(parents=True, exist_ok=True)
        for path in (ROOT / places.get(package, package.replace(".", "/"))).glob("*.py"):
            shutil.copy(path, to)
    module, _, function = settings["project"]["scripts"]["c2f-jax"].partition(":")
    script = root / "bin" / "c2f-jax"
    script.parent.mkdir()
    script.write_text(
        f"import os, sys\nprint(os.environ.get('GLIBC_TUNABLES'))\nsys.stdout.flush()\n"
        f"from {module} import {function}\nsys.exit({function}())\n"
    )
    return script


def call(script, folder, *arguments):
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=env | {"PYTHONPATH": str(script.parents[1] / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode=nothing"], "--mode must be one of"),
        (["--config=folder"], "--config.dataset.path=DIR"),
        (["--config=configs/folder.py"], "--config.dataset.path=DIR"),
        (["--config=cub", "--config.dataset.path=nowhere.tgz"], "nowhere.tgz"),
        (["--config.train.batch_sizee=8"], "batch_size?"),  # of the default config
        (["--config=nope"], "in configs/, go by their names: cub, cub50_lite0, cub50_taught, cub_one_stage, "),
        (["--config=mine/configs/nope.py"], "does not exist"),
        (["--mode=eval", "--workdir=none"], "train first: c2f-jax --workdir=none"),
        (["--zzz"], "see c2f-jax --help"),
    ],
)
def test_the_command_in_an_empty_folder(installed, tmp_path, arguments, words):
    """It does what launch.py does: finds the configs that ship, and starts again with huge pages, once."""
    told = call(installed, tmp_path, *arguments)
    assert told.returncode == 2, told.stderr
    assert told.stderr.startswith("c2f-jax: ") and told.stderr.count("\n") == 1 and words in told.stderr
    assert told.stdout == ("None\n" + f"{TUNABLES}\n" if os.confstr("CS_GNU_LIBC_VERSION") else "None\n")


def test_the_command_takes_configs_of_ones_own(installed, tmp_path):
    """One that builds upon those that ship; and a whole folder of them, with a default of its own."""
    (tmp_path / "mine.py").write_text(
        "from configs import folder\ndef get_config():\n    config = folder.get_config()\n    config.seed = 7\n"
        "    raise SystemExit(f'{config.dataset.name} {config.seed}')\n"
    )
    assert call(installed, tmp_path, "--config=mine.py").stderr.endswith("SystemExit: folder 7\n")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "default.py").write_text("def get_config():\n    raise SystemExit('my own')\n")
    assert call(installed, tmp_path, "--config=configs/folder.py").stderr.endswith("SystemExit: my own\n")
    assert "dataset.path" in call(installed, tmp_path, "--config=folder").stderr


def test_the_command_without_its_packages(installed, tmp_path):
    """`pip install .` alone brings what the kernels need."""
    code = "import sys; sys.modules['ml_collections'] = None; from c2f_jax.__main__ import main; main()"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2 and told.stderr.count("\n") == 1
    assert "ml_collections is missing; pip install 'c2f-jax[train]'" in told.stderr


def test_every_package_and_requirement_is_named():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "c2f_jax").rglob("__init__.py")}
    assert set(settings["tool"]["setuptools"]["packages"]) == found | {"c2f_jax.configs"}
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    project = settings["project"]
    assert sorted(lines) == sorted(project["optional-dependencies"]["train"])
    for extra, packages in EXTRAS.items():
        assert [line.partition(">")[0] for line in project["optional-dependencies"][extra]] == list(packages)
