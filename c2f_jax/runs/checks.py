"""What no run could do with, told before anything is read or written."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from c2f_jax import storage
from c2f_jax.data.sources import PUBLISHED, TFDS, check_options
from c2f_jax.data.splitting import compile_pattern
from c2f_jax.errors import UserError
from c2f_jax.models.backbones import output_strides, patch_of, smallest_view
from c2f_jax.models.pretrained import load_pretrained, locate
from c2f_jax.runs import event_files, fields, parallel, recipe
from c2f_jax.runs.checkpoint import latest_step
from c2f_jax.runs.methods import make_task, no_step, stage_lengths
from c2f_jax.runs.workdir import read_config


def check(config: Any) -> None:
    """Raises UserError for values that no use of a run could do with, before anything is read or written."""
    fields.check(config, training=False)
    compile_pattern(config.dataset.group_by)
    model, region = config.model, config.region
    if not region.side and not region.min_side < region.max_side:
        raise UserError(
            f"region.min_side={region.min_side} must be less than region.max_side={region.max_side}: "
            "they are the limits of the second look's sides"
        )
    strides = output_strides(model.backbone)
    if model.output_stride not in (0, *strides):
        raise UserError(
            f"model.output_stride={model.output_stride}: {model.backbone} has "
            f"{' or '.join(str(stride) for stride in strides)} (0: {strides[0]})"
        )
    stride, patch = model.output_stride or strides[0], patch_of(model.backbone)
    smallest = smallest_view(model.backbone, model.output_stride)
    sizes = {"model.view_size": model.view_size}
    if patch == 1:  # elsewhere it is the first's, or refused below
        sizes["region.view_size"] = region.view_size or model.view_size
    for name, size in sizes.items():
        if size < smallest:
            raise UserError(
                f"{name}={size} is less than one feature of {model.backbone}, {smallest} pixels; "
                f"try --config.{name}={4 * max(stride, smallest)}"
            )
        if size % patch:
            raise UserError(
                f"{name}={size} is not made of whole patches of {model.backbone}, {patch} pixels; "
                f"try --config.{name}={round(size / patch) * patch}"
            )
    if patch > 1 and region.view_size not in (0, model.view_size):
        raise UserError(
            f"region.view_size={region.view_size}: {model.backbone} takes views of one size only, "
            f"model.view_size={model.view_size}; set --config.region.view_size=0, or take a convolutional backbone"
        )
    if model.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("model.dtype=float64 needs the environment variable JAX_ENABLE_X64=1")


def check_training(config: Any) -> None:
    """Raises UserError for values that nobody could train with on these devices."""
    fields.check(config)
    check(config)
    options = ("path", "train_size", "test_size", "group_by", "fields")
    check_options(config.dataset.name, **{name: config.dataset[name] for name in options})
    augment, stages, optimizer, train = config.augment, config.stages, config.optimizer, config.train
    if train.tensorboard:
        event_files.check()
    recipe.check(config)
    if augment.min_side > augment.max_side:
        raise UserError(
            f"augment.min_side={augment.min_side} must not be more than augment.max_side={augment.max_side}: "
            "the sides of the random coarse boxes are drawn between them"
        )
    if augment.saturation[0] > augment.saturation[1]:
        raise UserError(f"augment.saturation={augment.saturation} must be (lowest, highest) factor")
    teaches = config.method == "coarse2fine" and config.region.teach > 0
    if teaches and not config.region.side:
        raise UserError(
            f"region.teach={config.region.teach} compares places: give the second look a side, "
            "--config.region.side=0.4, or set --config.region.teach=0.0"
        )
    if teaches and config.region.box_gradient == "none":
        raise UserError(
            f"region.teach={config.region.teach} teaches nothing with region.box_gradient=none: take mapping or all"
        )
    if teaches and patch_of(config.model.backbone) > 1:
        raise UserError(
            f"region.teach={config.region.teach} shows whole photos, and {config.model.backbone} takes views "
            "of one size only: set --config.region.teach=0.0, or take a convolutional backbone"
        )
    if teaches and (augment.mixup or augment.cutmix):
        raise UserError(
            "augment.mixup and augment.cutmix show two photos in one, region.teach knows where to look in each alone; "
            "set --config.region.teach=0.0, or the other two"
        )
    lengths = {name: stages[name] for name in stage_lengths(config)}
    if not any(lengths.values()):  # here, since data may take hours to make ready
        raise no_step(config)
    if not optimizer.restart:
        lengths = {" + ".join(lengths): sum(lengths.values())}
    for name, length in lengths.items():
        if 0.0 < length < optimizer.warmup_epochs:
            raise UserError(
                f"optimizer.warmup_epochs={optimizer.warmup_epochs} is longer than what it starts, stages.{name}="
                f"{length}, which would never reach its learning rate; "
                f"try --config.optimizer.warmup_epochs={length / 10:g}"
            )
    if teaches and not (config.model.pretrained or config.init_from or stages.fine_epochs):
        raise UserError(
            f"region.teach={config.region.teach} teaches nothing: new weights can tell no places in the coarse stage, "
            "and there is no other; give --config.model.pretrained or --config.stages.fine_epochs, or set "
            "--config.region.teach=0.0"
        )
    if teaches and config.region.box_gradient == "mapping" and not optimizer.region_factor:
        raise UserError(
            "optimizer.region_factor=0.0 with region.box_gradient=mapping leaves region.teach nothing to teach: take a "
            "factor above 0, or set --config.region.teach=0.0"
        )
    parallel.check_batch_size("train.batch_size", train.batch_size)
    parallel.check_model_axis(config.parallel.model, backend=config.parallel.backend)
    recipe.check_frozen(optimizer.freeze, make_task(config, num_classes=2, axis_name=None))
    share = train.batch_size // parallel.device_count()
    if share % train.accumulate:
        raise UserError(
            f"train.accumulate={train.accumulate} must divide each device's share of the batch, {share} images"
        )


def check_beginning(config: Any, workdir: Path) -> None:
    """`check_training`, and that what a new run begins with is there: its data may take hours to make ready.

    Raises:
        UserError: if a value cannot be used, or the other run or the weights are not there.
    """
    check_training(config)
    if storage.is_dir(workdir / "checkpoints"):  # which goes on
        return
    if config.init_from:
        check_other_run(config)
    elif config.model.pretrained and not (config.model.pretrained.startswith("hf://") and _quickly_told(config)):
        locate(config.model.pretrained)
        _check_weights(config)


def check_other_run(config: Any) -> tuple[Path, Any]:
    """The folder and config of the run that `config.init_from` names; raises UserError unless it can be begun from."""
    there = storage.as_path("config.init_from", config.init_from)
    other = read_config(there)
    latest_step(there)
    if other.model.backbone != config.model.backbone:
        raise UserError(
            f"config.init_from={there} has the backbone {other.model.backbone}, this run {config.model.backbone}: give "
            f"--config.model.backbone={other.model.backbone}"
        )
    check(other)
    return there, other


def _check_weights(config: Any) -> None:
    """Raises UserError unless the published weights are the backbone's."""
    network: Any = make_task(config, num_classes=2, axis_name=None).network
    view = jax.ShapeDtypeStruct((1, config.model.view_size, config.model.view_size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: network.backbone.init(jax.random.key(0), x, train=False), view)
    load_pretrained(config.model.pretrained, config.model.backbone, variables)


def _quickly_told(config: Any) -> bool:
    """Whether data that are not as they should be are told at once: before weights are fetched for nothing."""
    path = config.dataset.path
    made_ready = config.dataset.name in (*PUBLISHED, "deep_pcb") or config.dataset.name.startswith(TFDS)
    return not made_ready or bool(path and not storage.exists(storage.as_path("dataset.path", path, remote=False)))
