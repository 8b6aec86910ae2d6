"""Config -> the network with its losses, and the stages that train it."""

from functools import partial
from typing import Any

import jax.numpy as jnp

from c2f_jax.errors import UserError
from c2f_jax.models.attention_network import AttentionNetwork, PooledNetwork
from c2f_jax.models.backbones import BACKBONES, has_drop_path
from c2f_jax.models.published import INCEPTION
from c2f_jax.models.two_looks import learned_region, threshold_region
from c2f_jax.runs import recipe
from c2f_jax.training import augment, losses
from c2f_jax.training.optimizer import make_optimizer, make_schedule
from c2f_jax.training.stages import Stage

TWO_STAGES = ("coarse2fine", "random_box")
MOST_STEPS = 2**31 - 1  # the state counts them in int32


def stage_lengths(config: Any) -> tuple[str, ...]:
    """The fields of `stages` that a method heeds."""
    return ("coarse_epochs", "fine_epochs") if config.method in TWO_STAGES else ("coarse_epochs",)


def no_step(config: Any) -> UserError:
    """That a method's stages leave no step to take."""
    stages = config.stages
    told = ", ".join(f"stages.{name}={stages[name]}" for name in stage_lengths(config))
    only = "" if config.method in TWO_STAGES else f", the only stage of method={config.method},"
    return UserError(
        f"{told}{only} leaves no step to take; try --config.stages.coarse_epochs={max(1.0, stages.fine_epochs):g}"
    )


def unheeded(config: Any) -> str:
    """A line where a method of one stage leaves out what a config has for two, or ""."""
    stages = config.stages
    if config.method in TWO_STAGES or not stages.fine_epochs:
        return ""
    return (
        f"method={config.method} has one stage, of stages.coarse_epochs={stages.coarse_epochs}; "
        f"stages.fine_epochs={stages.fine_epochs} is for methods of two"
    )


def make_task(config: Any, *, num_classes: int, axis_name: str | None) -> losses.Task:
    """The network, its input and the constants of the losses.

    Args:
        config: all fields of `configs/default.py`.
        num_classes: C.
        axis_name: device axis under pmap, None under jit.
    """
    model, region = config.model, config.region
    # float64 is for checks: nothing is cast, everything promotes. Otherwise the compute dtype is told to each layer.
    dtype = None if model.dtype == "float64" else jnp.dtype(model.dtype)
    backbone = BACKBONES[model.backbone](
        dtype=dtype,
        axis_name=axis_name,
        output_stride=model.output_stride,
        drop_path=model.drop_path if has_drop_path(model.backbone) else 0.0,
        remat=model.remat,
    )
    network: AttentionNetwork | PooledNetwork
    if config.method == "baseline":
        network = PooledNetwork(backbone, num_classes, channel_drop=model.channel_drop)
    else:
        network = AttentionNetwork(
            backbone,
            num_classes,
            num_maps=model.num_maps,
            attention_init=model.attention_init,
            channel_drop=model.channel_drop,
            feature_channels=model.feature_channels,
            feature_scale=model.feature_scale,
            box_gradient=region.box_gradient,
            box_gradient_scale=region.box_gradient_scale,
            min_side=region.min_side,
            max_side=region.max_side,
            kappa_init=region.kappa,
            floor=region.floor,
            background=region.background,
            cell_offset=region.cell_offset,
            side=region.side,
            dtype=dtype,
            axis_name=axis_name,
        )
    learned = partial(learned_region, side=region.side)
    test_regions = {
        "baseline": None,
        "attention": learned,  # its score head never learns: the attention's own box, the control to beat
        "wsdan": partial(threshold_region, size=model.view_size),
        "coarse2fine": learned,
        "random_box": learned,  # untrained, as with attention
    }
    return losses.Task(
        network=network,
        view_size=model.view_size,
        fine_size=region.view_size or model.view_size,
        normalise=partial(
            augment.normalise,
            mean=tuple(config.augment.mean or INCEPTION.mean),
            std=tuple(config.augment.std or INCEPTION.std),
        ),
        random_boxes=partial(
            augment.random_boxes,
            min_side=config.augment.min_side,
            max_side=config.augment.max_side,
            flip=config.augment.flip,
            upside_down=config.augment.flip_vertical,
        ),
        random_colour=recipe.random_changes(config.augment),
        center_weight=config.loss.center_weight,
        center_rate=config.loss.center_rate,
        test_side=config.augment.test_side,
        test_region=test_regions[config.method],
        side=region.side,
        cell_offset=region.cell_offset,
        teach=region.teach,
        mix=recipe.mix(config.augment),
        label_smoothing=config.loss.label_smoothing,
    )


def make_stages(config: Any, *, train_size: int) -> tuple[Stage, ...]:
    """The method's stages, one after the other. train_size: examples in an epoch.

    Raises:
        UserError: if there is nothing to do, or an epoch is shorter than a step.
    """
    settings, batch_size = config.optimizer, config.train.batch_size
    if train_size < batch_size:
        raise UserError(
            f"train.batch_size={batch_size} is more than the {train_size} training examples; "
            f"try --config.train.batch_size={max(1, train_size // 2)}"
        )

    def steps_of(epochs: float) -> int:
        return round(epochs * train_size / batch_size)

    total = sum(steps_of(config.stages[name]) for name in stage_lengths(config))

    def stage(name: str, start: int, epochs: float, loss: Any, *, factor: float = 1.0, probe: bool = False) -> Stage:
        steps = steps_of(epochs)
        begun = 0 if settings.restart else start
        whole = make_schedule(
            settings.schedule,
            learning_rate=factor * settings.learning_rate,
            steps=steps if settings.restart else total,
            warmup_steps=steps_of(settings.warmup_epochs),
            decay_rate=settings.decay_rate,
            decay_steps=max(1, steps_of(settings.decay_epochs)),
        )

        def schedule(count: Any) -> Any:
            return whole(begun + count)

        tx = make_optimizer(
            settings.name,
            schedule,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
            factors={"backbone": 1.0, "head": settings.head_factor, "region": settings.region_factor},
            layer_decay=settings.layer_decay,
            frozen=settings.freeze,
        )
        return Stage(name, start, steps, loss, tx, schedule, probe, settings.freeze)

    region = config.region
    random_region: losses.RegionOfKeys
    random_region = partial(losses.random_region, min_side=region.min_side, max_side=region.max_side)
    sampled_crop = partial(losses.sampled_crop_region, size=config.model.view_size)
    taught: losses.RegionOfKeys = losses.taught_region
    if region.side:
        taught = partial(losses.drawn_region, side=region.side, cell_offset=region.cell_offset)
        random_region = partial(losses.random_square, side=region.side)
    drop_view = config.loss.drop_view
    fine_losses = {
        "coarse2fine": partial(losses.fine_loss, region=taught, drop_view=drop_view, compare=region.teach > 0),
        "random_box": partial(losses.fine_loss, region=random_region, drop_view=drop_view),
        "wsdan": partial(losses.fine_loss, region=sampled_crop, drop_view=True),
    }
    fine_loss = fine_losses.get(config.method)
    if config.method == "wsdan":
        stages = [stage("wsdan", 0, config.stages.coarse_epochs, fine_loss)]
    else:
        stages = [stage("coarse", 0, config.stages.coarse_epochs, losses.coarse_loss)]
        if fine_loss is not None:
            start, epochs, factor = stages[0].end, config.stages.fine_epochs, settings.fine_factor
            stages.append(stage("fine", start, epochs, fine_loss, factor=factor, probe=True))
    stages = [one for one in stages if one.steps > 0]
    if not stages:
        raise no_step(config)
    if stages[-1].end > MOST_STEPS:
        epochs = f"stages.coarse_epochs={config.stages.coarse_epochs}, stages.fine_epochs={config.stages.fine_epochs}"
        raise UserError(f"{epochs} are {stages[-1].end} steps of {batch_size} images; {MOST_STEPS} can be counted")
    return tuple(stages)
