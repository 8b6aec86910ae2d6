"""Config -> objects; the only place where the config is unpacked."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.console import tell
from c2f_jax.data import pipeline
from c2f_jax.data.checking import Hosts
from c2f_jax.data.raw import Raw
from c2f_jax.data.sources import Balanced, Labelled, Source, Splits, load
from c2f_jax.data.splitting import compile_pattern
from c2f_jax.errors import UserError
from c2f_jax.models.attention_network import AttentionNetwork, PooledNetwork
from c2f_jax.models.backbones import BACKBONES, has_drop_path, output_strides, patch_of, smallest_view
from c2f_jax.models.pretrained import load_pretrained
from c2f_jax.models.published import INCEPTION
from c2f_jax.models.two_looks import learned_region, threshold_region
from c2f_jax.runs import event_files, fields, parallel, processes, recipe
from c2f_jax.runs.checkpoint import latest_step, read_latest
from c2f_jax.runs.init_from import Start, choose, told
from c2f_jax.runs.input_values import tell_of_other_values
from c2f_jax.runs.workdir import read_class_names, read_config
from c2f_jax.runs.writers import track
from c2f_jax.storage import as_path
from c2f_jax.training import augment, losses
from c2f_jax.training.optimizer import make_optimizer, make_schedule
from c2f_jax.training.stages import Stage, stage_of_checkpoint
from c2f_jax.training.train_state import TrainState, averages_of, create_train_state, init_variables, switch_stage

TWO_STAGES = ("coarse2fine", "random_box")
MOST_STEPS = 2**31 - 1  # the state counts them in int32


def check(config: Any) -> None:
    """Raises UserError for values that no use of a run could do with, before anything is read or written."""
    fields.check(config, training=False)
    compile_pattern(config.dataset.group_by)
    model, region = config.model, config.region
    if not region.min_side < region.max_side:
        raise UserError(
            f"region.min_side={region.min_side} must be less than region.max_side={region.max_side}: "
            "they are the limits of the second look's sides"
        )
    if region.teach and not region.side:
        raise UserError(
            f"region.teach={region.teach} compares places: give the second look a side, --config.region.side=0.4"
        )
    strides = output_strides(model.backbone)
    if model.output_stride not in (0, *strides):
        raise UserError(
            f"model.output_stride={model.output_stride}: {model.backbone} has "
            f"{' or '.join(str(stride) for stride in strides)} (0: {strides[0]})"
        )
    stride, patch = model.output_stride or strides[0], patch_of(model.backbone)
    smallest = smallest_view(model.backbone, model.output_stride)
    if model.view_size < smallest:
        raise UserError(
            f"model.view_size={model.view_size} is less than one feature of {model.backbone}, {smallest} pixels; "
            f"try --config.model.view_size={4 * max(stride, smallest)}"
        )
    if model.view_size % patch:
        whole = round(model.view_size / patch) * patch
        raise UserError(
            f"model.view_size={model.view_size} is not made of whole patches of {model.backbone}, {patch} pixels; "
            f"try --config.model.view_size={whole}"
        )
    if model.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("model.dtype=float64 needs the environment variable JAX_ENABLE_X64=1")


def stage_lengths(config: Any) -> tuple[str, ...]:
    """The fields of `stages` that a method heeds."""
    return ("coarse_epochs", "fine_epochs") if config.method in TWO_STAGES else ("coarse_epochs",)


def check_training(config: Any) -> None:
    """Raises UserError for values that nobody could train with on these devices."""
    fields.check(config)
    check(config)
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
    if config.region.teach and config.region.box_gradient == "none":
        raise UserError(
            f"region.teach={config.region.teach} teaches nothing with region.box_gradient=none: take mapping or all"
        )
    if config.region.teach and patch_of(config.model.backbone) > 1:
        raise UserError(
            f"region.teach={config.region.teach} shows whole photos, and {config.model.backbone} takes views "
            "of one size only: set --config.region.teach=0.0, or take a convolutional backbone"
        )
    if config.region.teach and (augment.mixup or augment.cutmix):
        raise UserError(
            "augment.mixup and augment.cutmix show two photos in one, region.teach knows where to look in each alone; "
            "set --config.region.teach=0.0, or the other two"
        )
    lengths = {name: stages[name] for name in stage_lengths(config)}
    if not optimizer.restart:
        lengths = {" + ".join(lengths): sum(lengths.values())}
    for name, length in lengths.items():
        if 0.0 < length < optimizer.warmup_epochs:
            raise UserError(
                f"optimizer.warmup_epochs={optimizer.warmup_epochs} is longer than what it starts, stages.{name}="
                f"{length}, which would never reach its learning rate; "
                f"try --config.optimizer.warmup_epochs={length / 10:g}"
            )
    parallel.check_batch_size("train.batch_size", train.batch_size)
    parallel.check_model_axis(config.parallel.model, backend=config.parallel.backend)
    share = train.batch_size // parallel.device_count()
    if share % train.accumulate:
        raise UserError(
            f"train.accumulate={train.accumulate} must divide each device's share of the batch, {share} images"
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
        network = PooledNetwork(backbone, num_classes)
    else:
        network = AttentionNetwork(
            backbone,
            num_classes,
            num_maps=model.num_maps,
            attention_init=model.attention_init,
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
    random_region = partial(losses.random_region, min_side=region.min_side, max_side=region.max_side)
    sampled_crop = partial(losses.sampled_crop_region, size=config.model.view_size)
    taught: losses.RegionOfKeys = losses.taught_region
    if region.side:
        taught = partial(losses.drawn_region, side=region.side, cell_offset=region.cell_offset)
    drop_view = config.loss.drop_view
    fine_losses = {
        "coarse2fine": partial(losses.fine_loss, region=taught, drop_view=drop_view),
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
        raise UserError(
            f"stages.coarse_epochs={config.stages.coarse_epochs} leaves no step to take; "
            "try --config.stages.coarse_epochs=1"
        )
    if stages[-1].end > MOST_STEPS:
        epochs = f"stages.coarse_epochs={config.stages.coarse_epochs}, stages.fine_epochs={config.stages.fine_epochs}"
        raise UserError(f"{epochs} are {stages[-1].end} steps of {batch_size} images; {MOST_STEPS} can be counted")
    return tuple(stages)


@dataclass(frozen=True)
class Run:
    """All that the loop needs.

    Attributes:
        config: as given, for the places that take single numbers from it.
        splits: the examples.
        task: the network and its input.
        stages: what to optimise, in order.
        backend: how a step runs on the devices.
        mesh: the devices.
        labels: of the training part, int [N].
    """

    config: Any
    splits: Splits
    task: losses.Task
    stages: tuple[Stage, ...]
    backend: parallel.Backend
    mesh: jax.sharding.Mesh
    labels: np.ndarray

    @property
    def total_steps(self) -> int:
        """Of all stages together."""
        return self.stages[-1].end

    def create_state(self) -> TrainState:
        """The state before step 0: with another run's parameters, or published weights, where the config names them.

        All processes call it; process 0 says what is taken from another run.

        Raises:
            UserError: if they cannot be had or do not fit.
        """
        new: Start | None = None
        if self.config.init_from:
            new = self._from_run()
        elif self.config.model.pretrained:
            new = processes.together(self._from_weights)

        def start(new: Start | None) -> TrainState:
            return self._scratch() if new is None else new.put_into(self._scratch())

        # As one program: operation by operation it takes ten times as long, and no cache keeps that.
        host = jax.device_get(new)
        return jax.jit(start, out_shardings=parallel.shardings(jax.eval_shape(start, host), self.mesh))(host)

    def _from_weights(self) -> Start:
        fresh = jax.eval_shape(self._scratch)
        stats = {name: tree["backbone"] for name, tree in fresh.batch_stats.items() if "backbone" in tree}
        old = {"params": fresh.params["backbone"], "batch_stats": stats.get("coarse", {})}
        new = load_pretrained(self.config.model.pretrained, self.config.model.backbone, old)
        stats = {name: {"backbone": new["batch_stats"]} for name in stats}
        if processes.is_first():
            tell_of_other_values(self.config)
        return Start({"backbone": new["params"]}, stats)

    def _from_run(self) -> Start:
        def look() -> tuple[Any, Any, tuple[str, ...]]:
            there = as_path("config.init_from", self.config.init_from)
            config, names = read_config(there), read_class_names(there)
            latest_step(there)
            if config.model.backbone != self.config.model.backbone:
                raise UserError(
                    f"config.init_from={there} has the backbone {config.model.backbone}, this run "
                    f"{self.config.model.backbone}: give the same --config.model.backbone"
                )
            check(config)
            return there, config, names

        there, config, names = processes.together(look)
        fresh, same = jax.eval_shape(self._scratch), names == tuple(self.splits.class_names)
        task = make_task(config, num_classes=len(names), axis_name=None)
        template = abstract_model(config, task, self.mesh)
        head = jax.tree.map(lambda leaf: leaf.shape, (fresh.params["head"], template["params"]["head"]))
        if same and head[0] == head[1] and fresh.centers is not None and "attention" in template["params"]:
            template |= parallel.on_mesh({"centers": fresh.centers}, self.mesh)
        step, model = read_latest(there, template, finite=True)
        model = {**model, **answering(model)}
        try:
            new, taken, left = choose(model, fresh, same_classes=same)
        except UserError as error:
            raise UserError(f"config.init_from={there}: {error}") from error
        if processes.is_first():
            tell(told(there, step, taken, left, (len(names), len(self.splits.class_names))))
        return new

    def abstract_state(self, step: int) -> TrainState:
        """Shapes, dtypes and places of the checkpoint at `step`, with the optimiser state of the stage that owns it."""
        owner = stage_of_checkpoint(self.stages, step)
        return parallel.on_mesh(jax.eval_shape(lambda: switch_stage(self._scratch(), owner)), self.mesh)

    @property
    def abstract_model(self) -> dict[str, Any]:
        """Shapes, dtypes and places of `params` and `batch_stats`."""
        return abstract_model(self.config, self.task, self.mesh)

    def _scratch(self) -> TrainState:
        state = create_train_state(
            jax.random.key(self.config.seed),
            self.task,
            self.stages[0],
            num_classes=len(self.splits.class_names),
            averaged=self.config.train.ema_decay > 0,
        )
        return _in_dtype(state, self.config.model.dtype)

    @property
    def taught_from(self) -> int | None:
        """The step from which on a table teaches the region; None if none does.

        Published weights can tell places at once, new ones not before the first stage is over.
        """
        if self.config.method != "coarse2fine" or not self.config.region.teach:
            return None
        return 0 if self.config.model.pretrained or self.config.init_from else self.stages[-1].start

    def training_batches(self, start: int, evidence: np.ndarray | None = None) -> Any:
        """Batches of steps `start`, start + 1, ... on the host. evidence: [N, G, G] of the training part."""
        return pipeline.training_batches(
            self._drawn(evidence),
            batch_size=self.config.train.batch_size,
            raw=raw_images(self.config),
            seed=self.config.seed,
            start=start,
            process=processes.index(),
            processes=processes.count(),
        )

    def _drawn(self, evidence: np.ndarray | None) -> Source:
        """What training batches are drawn from: the training part, or its classes equally often."""
        train = self.splits.train if evidence is None else pipeline.With(self.splits.train, "evidence", evidence)
        return Balanced(train, self.labels) if self.config.dataset.class_balanced else train

    def evaluation_batches(self, source: Source) -> Iterator[Any]:
        """Every example of `source` once, padded and masked, on the devices."""
        return evaluation_batches(self.config, source, self.mesh)

    def evaluation_is_due(self, step: int) -> bool:
        """Whether the validation part is evaluated before `step`: every so many epochs, and never before the first."""
        epochs = self.config.train.eval_every_epochs  # 0: never; less than a step: after each
        every = max(1, round(epochs * len(self.splits.train) / self.config.train.batch_size))
        return len(self.splits.validation) > 0 and epochs > 0 and step > 0 and step % every == 0


def _in_dtype(tree: Any, dtype: str) -> Any:
    """Parameters and what goes with them are float32 whatever is computed in; float64 is for checks."""
    kept = jnp.float64 if dtype == "float64" else jnp.float32
    return jax.tree.map(lambda x: x.astype(kept) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def abstract_model(config: Any, task: losses.Task, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Shapes, dtypes and places of `params`, `batch_stats` and perhaps `average`, as checkpoints hold them."""

    def fresh() -> dict[str, Any]:
        model = init_variables(jax.random.key(0), task)
        if config.train.ema_decay > 0:
            model = {**model, "average": averages_of(model["params"], model["batch_stats"])}
        return _in_dtype(model, config.model.dtype)

    return parallel.on_mesh(jax.eval_shape(fresh), mesh)


def answering(model: dict[str, Any]) -> dict[str, Any]:
    """The `params` and `batch_stats` with which a run answers: the averages, where its checkpoint has them."""
    return model.get("average") or {name: model[name] for name in ("params", "batch_stats")}


def load_splits(config: Any) -> Splits:
    """The data set that `config` names.

    Raises:
        UserError: if it is not there, or not whole.
    """
    return load(
        config.dataset.name,
        path=config.dataset.path,
        cache_dir=config.dataset.cache_dir,
        unreadable=config.dataset.unreadable,
        validation_fraction=config.dataset.validation_fraction,
        train_size=config.dataset.train_size,
        test_size=config.dataset.test_size,
        group_by=config.dataset.group_by,
        shots=config.dataset.shots,
        min_side=config.dataset.raw_size,
        fields=config.dataset.fields,
        track=track,
        hosts=Hosts(processes.index(), processes.count(), processes.gathered) if processes.count() > 1 else None,
    )


def raw_images(config: Any) -> Raw:
    """How photos become raw images."""
    return Raw(config.dataset.raw_size, config.augment.keep_aspect)


def evaluation_batches(config: Any, source: Source, mesh: jax.sharding.Mesh, **more: int) -> Iterator[Any]:
    """Every example of `source` once, padded and masked, on the devices; `more` as of the pipeline's."""
    batches = pipeline.evaluation_batches(
        source,
        batch_size=parallel.fitting(config.train.eval_batch_size),
        raw=raw_images(config),
        process=processes.index(),
        processes=processes.count(),
        **more,
    )
    return (parallel.shard_batch(batch, mesh) for batch in batches)


def build(config: Any) -> Run:
    """Everything that `config` describes.

    Raises:
        UserError: if a field has a value that cannot be used, or data are missing.
    """
    check_training(config)
    splits, memory = load_splits(config), pipeline.Memory(config.dataset.memory_mib)
    # What is seen again and again; training first.
    train, validation = (
        pipeline.InMemory(part, raw_images(config), memory) for part in (splits.train, splits.validation)
    )
    labels = cast(Labelled, splits.train).labels
    splits = replace(splits, train=train, validation=validation)
    mesh = parallel.make_mesh(model=config.parallel.model)
    backend = parallel.make_backend(config.parallel.backend, mesh)
    task = make_task(config, num_classes=len(splits.class_names), axis_name=backend.axis_name)
    recipe.check_frozen(config.optimizer.freeze, task)
    return Run(
        config=config,
        splits=splits,
        task=task,
        stages=make_stages(config, train_size=len(splits.train)),
        backend=backend,
        mesh=mesh,
        labels=labels,
    )


@dataclass(frozen=True)
class Trained:
    """What a finished run is used with: no data set, no optimiser.

    Attributes:
        task: the network and its input.
        raw: how photos become raw images.
        batch_size: images at a time.
        mesh: the devices.
        abstract_model: shapes, dtypes and places of its `params` and `batch_stats`.
    """

    task: losses.Task
    raw: Raw
    batch_size: int
    mesh: jax.sharding.Mesh
    abstract_model: dict[str, Any]


def build_trained(config: Any, *, num_classes: int) -> Trained:
    """What prediction and evaluation need of a run's config.

    Raises:
        UserError: if a field has a value that cannot be used.
    """
    check(config)
    task, mesh = make_task(config, num_classes=num_classes, axis_name=None), parallel.make_mesh()
    return Trained(
        task=task,
        raw=raw_images(config),
        batch_size=parallel.fitting(config.train.eval_batch_size),
        mesh=mesh,
        abstract_model=abstract_model(config, task, mesh),
    )
