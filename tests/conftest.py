"""Four simulated CPU devices, so that what is meant for many devices is tested on many; and one finished run."""

import os
import shutil
import tempfile
from importlib.metadata import version

# Four devices on the two cores of a CI machine: XLA has as many threads as cores or devices, whichever are more, and
# a collective blocks one per device; with none to spare, anything else in flight can leave a device without a thread,
# and after 40 seconds XLA aborts the process. So: threads to spare, patience, and one program in flight at a time.
# The two variables are read when the CPU client starts; subprocesses inherit them.
os.environ.setdefault("PJRT_NPROC", "8")
if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 10):  # older ones, for the kernels alone, abort on it
    os.environ["XLA_FLAGS"] = " ".join(
        [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_collective_call_terminate_timeout_seconds=300"]
    ).strip()

# Programs are compiled once for all workers of this run, and none is found from an earlier one: the first process makes
# the folder and takes it away, workers inherit its name.
FIRST = "C2F_TESTS_COMPILED" not in os.environ
if FIRST:
    os.environ["C2F_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="c2f-tests-")
COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["C2F_TESTS_COMPILED"]

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_enable_async_dispatch", False)


def pytest_unconfigure() -> None:
    if FIRST:
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(workdir, results) of a tiny run that has gone through both stages."""
    from c2f_jax.runs.loop import train_and_evaluate
    from tests.tiny import tiny_config

    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, train_and_evaluate(tiny_config(), workdir)
