"""Four simulated CPU devices, so that what is meant for many devices is tested on many; and one finished run."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(workdir, results) of a tiny run that has gone through both stages."""
    from c2f_jax.training.loop import train_and_evaluate
    from tests.tiny import tiny_config

    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, train_and_evaluate(tiny_config(), workdir)
