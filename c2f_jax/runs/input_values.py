"""Mean and deviation of a run's input: its config's, or those of the weights that it begins with."""

import copy
from pathlib import Path
from typing import Any

from c2f_jax import storage
from c2f_jax.console import warn
from c2f_jax.errors import UserError
from c2f_jax.models.pretrained import input_values
from c2f_jax.models.published import INCEPTION, Values
from c2f_jax.runs.workdir import read_config

ROUNDING = 1.0  # grey levels: what different places make of the same numbers


def with_input_values(config: Any, workdir: Path | None = None) -> Any:
    """The config with the mean and deviation of its input, where it leaves them to the weights that it begins with.

    Those that a run in `workdir` began with go first, which need not be there any more; then those of another run
    (`init_from`), then those of published weights; from scratch they are 127.5.

    Raises:
        UserError: if nobody says what the weights expect.
    """
    if None not in (config.augment.mean, config.augment.std):
        return config
    config = copy.deepcopy(config)
    begun = workdir is not None and storage.is_file(storage.join(workdir, "config.json"))
    values = _of_run(workdir) if begun else None
    if values is None or None in values:
        values = _of_beginning(config)
    with config.ignore_type():
        for name, value in values._asdict().items():
            if config.augment[name] is None:
                config.augment[name] = value
    return config


def _of_beginning(config: Any) -> Values:
    if config.init_from:
        return _of_run(storage.as_path("config.init_from", config.init_from))
    if not config.model.pretrained:
        return INCEPTION
    values = input_values(config.model.pretrained, config.model.backbone)
    if values is None:
        raise UserError(
            f"what mean and deviation model.pretrained={config.model.pretrained} expects stands nowhere beside it; "
            "give --config.augment.mean and --config.augment.std, in grey levels"
        )
    return values


def _of_run(workdir: Any) -> Values:
    there = read_config(workdir).augment
    return Values(there.mean, there.std)


def tell_of_other_values(config: Any) -> None:
    """Says so where the config gives the input another mean or deviation than its weights were trained with."""
    source = config.init_from or config.model.pretrained
    if config.init_from:
        expected: Values | None = _of_run(storage.as_path("config.init_from", config.init_from))
    else:
        expected = input_values(config.model.pretrained, config.model.backbone)
    if expected is None or None in expected:
        return
    given = Values(*(tuple(config.augment[name] or there) for name, there in expected._asdict().items()))
    if (
        max(abs(a - b) for here, there in zip(given, expected, strict=True) for a, b in zip(here, there, strict=True))
        > ROUNDING
    ):
        flags = " ".join(f"--config.augment.{name}='{there}'" for name, there in expected._asdict().items())
        warn(
            f"augment.mean={given.mean} and augment.std={given.std} are not what {source} was trained "
            f"with, which is {flags}"
        )
