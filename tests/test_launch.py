"""`python launch.py` as a user starts it: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from c2f_jax.memory import TUNABLES

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
    """A run of two steps leaves its programs in the cache, and a second one finds them."""
    settings = ["--config.method=baseline", "--config.dataset.train_size=80", "--config.dataset.test_size=16"]
    settings += ["--config.train.batch_size=8", "--config.stages.coarse_epochs=0.25", "--config.model.view_size=32"]
    settings += [f"--config.compilation_cache={tmp_path / 'compiled'}", "--config.optimizer.warmup_epochs=0"]
    environment = {"JAX_PLATFORMS": "cpu", "JAX_LOGGING_LEVEL": "DEBUG"}
    first, second = (launch(*settings, f"--workdir={tmp_path / name}", **environment) for name in ("one", "two"))
    assert first.returncode == second.returncode == 0, first.stderr[-2000:] + second.stderr[-2000:]
    assert any((tmp_path / "compiled").iterdir())
    hit = "Persistent compilation cache hit for 'jit_train_step'"
    assert hit not in first.stderr and hit in second.stderr
