"""Training features that are off by default: from the config to what the step takes."""

import re
from functools import partial, reduce
from typing import Any

import jax

from c2f_jax.errors import UserError
from c2f_jax.models.backbones import has_drop_path
from c2f_jax.models.published import INCEPTION
from c2f_jax.runs import fields
from c2f_jax.training import augment
from c2f_jax.training.losses import Task
from c2f_jax.training.optimizer import frozen_parameters
from c2f_jax.training.train_state import init_variables


def check(config: Any) -> None:
    """Raises UserError for what no training could do with."""
    try:
        re.compile(config.optimizer.freeze)
    except re.error as error:
        shown = fields.shown(config.optimizer.freeze)
        raise UserError(f"optimizer.freeze={shown} is not a regular expression: {error}") from error
    if config.model.drop_path and not has_drop_path(config.model.backbone):
        raise UserError(
            f"model.drop_path={config.model.drop_path}: {config.model.backbone} has no stochastic depth; "
            "give --config.model.drop_path=0.0"
        )


def check_frozen(pattern: str, task: Task) -> None:
    """Raises UserError if `optimizer.freeze` is found in no parameter's path, or in all; it may be empty."""
    if not pattern:
        return
    params = jax.eval_shape(lambda: init_variables(jax.random.key(0), task))["params"]
    frozen = jax.tree.leaves(frozen_parameters(params, pattern))
    if any(frozen) and not all(frozen):
        return
    paths = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    raise UserError(
        f"optimizer.freeze={fields.shown(pattern)} is found in {'all' if all(frozen) else 'none'} of the "
        f"{len(paths)} parameters' paths, such as {paths[0]}; ^backbone/ freezes the whole backbone"
    )


def random_changes(settings: Any) -> Any:
    """(keys [B], views) -> views, of `augment.random_colour` and `random_erase` where they are on; None for neither."""
    changes = []
    if settings.brightness > 0 or tuple(settings.saturation) != (1.0, 1.0):
        saturation = tuple(settings.saturation)
        changes.append(partial(augment.random_colour, brightness=settings.brightness, saturation=saturation))
    if settings.erase > 0:
        fill = tuple(settings.mean or INCEPTION.mean)
        changes.append(partial(augment.random_erase, probability=settings.erase, fill=fill))
    if not changes:
        return None
    return lambda keys, views: reduce(lambda seen, change: change(keys, seen), changes, views)


def mix(settings: Any) -> Any:
    """`augment.mix_examples` where mixup or cutmix is on, else None. settings: the config's group `augment`."""
    if not settings.mixup and not settings.cutmix:
        return None
    return partial(augment.mix_examples, mixup=settings.mixup, cutmix=settings.cutmix)
