"""Four simulated CPU devices, so that what is meant for many devices is tested on many; and one finished run."""

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

# Four devices on the two cores of a CI machine: XLA has as many threads as cores or devices, whichever are more, and
# a collective blocks one per device; with none to spare, anything else in flight can leave a device without a thread,
# and after 40 seconds XLA aborts the process. So: threads to spare, patience, and one program in flight at a time.
# The two variables are read when the CPU client starts; subprocesses inherit them.
os.environ.setdefault("PJRT_NPROC", "8")
# Most of the suite's time is LLVM's, for programs that then run for milliseconds. Without its optimisations the same
# operations are compiled in half the time; they only run slower.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 10):  # older ones, for the kernels alone, abort on it
    FLAGS.append("--xla_cpu_collective_call_terminate_timeout_seconds=300")
    # By XLA's older CPU emitters, in half of that again (what users run is compiled by the newer ones).
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

# Programs are compiled once for all processes of this run, however small they are, and none is found from an earlier
# run: the first process makes the folder and takes it away, workers and what tests start inherit its name.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
FIRST = "C2F_TESTS_SHARED" not in os.environ
if FIRST:
    os.environ["C2F_TESTS_SHARED"] = tempfile.mkdtemp(prefix="c2f-tests-")
SHARED = Path(os.environ["C2F_TESTS_SHARED"])
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(SHARED / "compiled")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_enable_async_dispatch", False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: in the end the quick ones keep all workers busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure() -> None:
    if FIRST:
        shutil.rmtree(SHARED, ignore_errors=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(workdir, results) of a tiny run that has gone through both stages; trained by the first worker that needs it."""
    from filelock import FileLock

    from c2f_jax.runs.loop import train_and_evaluate
    from tests.tiny import tiny_config

    with FileLock(SHARED / "finished.lock"):
        if not (SHARED / "finished").exists():
            train_and_evaluate(tiny_config(), SHARED / "finished.part")
            (SHARED / "finished.part").rename(SHARED / "finished")
    workdir = shutil.copytree(SHARED / "finished", tmp_path_factory.mktemp("finished") / "run")
    return workdir, json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="session")
def compiled():
    """The folder of compiled programs, for processes that tests start."""
    return SHARED / "compiled"
