"""Config -> all that the loop needs. `checks`, `methods`, `recipe`, `evidence` and this unpack the config."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.console import tell
from c2f_jax.data import pipeline
from c2f_jax.data.checking import Hosts
from c2f_jax.data.raw import Raw
from c2f_jax.data.sources import Balanced, Labelled, Source, Splits, load
from c2f_jax.errors import UserError
from c2f_jax.models.pretrained import load_pretrained
from c2f_jax.runs import parallel, processes
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.checks import check, check_other_run, check_training
from c2f_jax.runs.init_from import Start, choose, told
from c2f_jax.runs.input_values import tell_of_other_values
from c2f_jax.runs.methods import make_stages, make_task
from c2f_jax.runs.workdir import read_class_names
from c2f_jax.runs.writers import track
from c2f_jax.training import losses
from c2f_jax.training.stages import Stage, stage_of_checkpoint
from c2f_jax.training.train_state import TrainState, averages_of, create_train_state, init_variables, switch_stage


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
        groups: of its examples, what no split divides; None where nothing is known of any.
        photos: of the training part, a digest of which photos of the user's these are; None of other data.
    """

    config: Any
    splits: Splits
    task: losses.Task
    stages: tuple[Stage, ...]
    backend: parallel.Backend
    mesh: jax.sharding.Mesh
    labels: np.ndarray
    groups: list[str] | None
    photos: str | None

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
            there, config = check_other_run(self.config)
            return there, config, read_class_names(there)

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
            tell_of_other_values(self.config)
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
    def table_until(self) -> int:
        """The step until which a table teaches the region, that of the coarse stage's end; 0 if none does.

        Weights that come from elsewhere can tell places before the first step, new ones cannot.
        """
        begun = bool(self.config.model.pretrained or self.config.init_from)
        if self.config.method != "coarse2fine" or not self.config.region.teach or not begun:
            return 0
        return self.stages[0].end if self.stages[0].name == "coarse" else 0

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
    labels, groups = cast(Labelled, splits.train).labels, getattr(splits.train, "groups", None)
    photos = getattr(splits.train, "digest", None)
    splits = replace(splits, train=train, validation=validation)
    mesh = parallel.make_mesh(model=config.parallel.model)
    backend = parallel.make_backend(config.parallel.backend, mesh)
    task = make_task(config, num_classes=len(splits.class_names), axis_name=backend.axis_name)
    return Run(
        config=config,
        splits=splits,
        task=task,
        stages=make_stages(config, train_size=len(splits.train)),
        backend=backend,
        mesh=mesh,
        labels=labels,
        groups=groups,
        photos=photos,
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
