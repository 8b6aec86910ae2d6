"""Every field of a config: what it cannot be is one line, what it can be takes a real training step."""

import functools
import importlib
import math
import re

import jax
import numpy as np
import pytest

from c2f_jax import shipped
from c2f_jax.data.sources import NAMES, TFDS
from c2f_jax.errors import UserError
from c2f_jax.models import backbones
from c2f_jax.models.attention_network import ATTENTION_INITS, BOX_GRADIENTS
from c2f_jax.models.backbones import BACKBONES, output_strides
from c2f_jax.models.resnet import BasicBlock, ResNet
from c2f_jax.runs import fields
from c2f_jax.runs.build import build
from c2f_jax.runs.checks import check, check_training
from c2f_jax.runs.fields import TABLE
from c2f_jax.training.steps import train_step
from c2f_jax.training.train_state import switch_stage
from configs import default
from tests.runs.make_config_docs import DOCS, comments, page
from tests.tiny import tiny_config

NAN, INF = math.nan, math.inf

# Given to every field.
VALUES = (
    *(0, 1, -1, 2, 7, 10**9, -(10**9), 2**31, 2**32, 2**63, 10**30, -(10**30)),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e9, 1e30, -1e30, 1e300, 5e-324, 1e-30, NAN, INF, -INF),
    *(True, False, None, "", " ", "0", "1", "none", "None", "nan", "x" * 5000, "a\0b", "a\nb", b"1", 1j, object),
    *((), (0.0,), (0.0, 0.0), (1.0, 0.5), (0.0, 1.0, 2.0), (0.0,) * 3, (0.0, NAN), (1.0, INF, 1.0), ("1", "1"), (1, 1)),
    *((True, True), (-1.0, -1.0), (255.0,) * 3, (1e30,) * 3, [], [0.5, 1.5], [1.0, 1.0, 1.0], {}, {"a": 1}),
    *(np.float32(1.0), np.float64(0.5), np.int64(1), np.array([1.0, 1.0])),
)

# What must train, each on its own merits: a table that refuses it is wrong.
MUST_TRAIN = {
    "seed": (0, 2**32 - 1),
    "dataset.shots": (0, 1, 1_000_000),
    "dataset.raw_size": (8, 512),
    "dataset.memory_mib": (0, 10**9),
    "dataset.validation_fraction": (0.0, 0.5),
    "dataset.train_size": (None,),
    "dataset.test_size": (None, 1),
    "region.view_size": (0, 8, 256),
    "augment.min_side": (0.01, 1.0),
    "augment.max_side": (1.0,),
    "augment.test_side": (0.01, 1.0),
    "augment.brightness": (0.0, 1.0),
    "augment.saturation": ((0.0, 0.0), (1.0, 1.0), (0.0, 10.0)),
    "augment.erase": (0.0, 1.0),
    "augment.mixup": (0.0, 1e-3, 10.0),
    "augment.cutmix": (0.0, 1e-3, 10.0),
    "augment.mean": ((0.0,) * 3, (255.0,) * 3),
    "augment.std": ((1.0,) * 3, (255.0,) * 3),
    "model.view_size": (8, 256),
    "model.num_maps": (1, 1024),
    "model.feature_channels": (0, 1, 4096),
    "model.feature_scale": (1e-3, 1e4),
    "model.channel_drop": (0.0, 0.9),
    "region.box_gradient_scale": (0.0, 1e3),
    "region.side": (0.0, 0.01, 1.0),
    "region.teach": (0.0,),
    "region.min_side": (0.01, 0.99),
    "region.max_side": (1.0,),
    "region.kappa": (0.01, 10.0),
    "region.floor": (0.0, 0.99),
    "region.background": (0.0, 1.0),
    "region.cell_offset": (-2.0, 0.0, 2.0),
    "loss.center_weight": (0.0, 1e3),
    "loss.center_rate": (0.0, 1.0),
    "loss.label_smoothing": (0.0, 0.99),
    "stages.coarse_epochs": (0.0, 1e6),
    "stages.fine_epochs": (0.0, 1e6),
    "optimizer.learning_rate": (1e-12, 100.0),
    "optimizer.head_factor": (0.0, 1e3),
    "optimizer.region_factor": (0.0, 1e3),
    "optimizer.fine_factor": (0.0, 1e3),
    "optimizer.momentum": (0.0, 0.9999),
    "optimizer.weight_decay": (0.0, 10.0),
    "optimizer.layer_decay": (0.01, 1.0),
    "optimizer.clip_norm": (0.0, 5e-324, 1e9),
    "optimizer.warmup_epochs": (0.0,),
    "optimizer.decay_rate": (1e-3, 1.0),
    "optimizer.decay_epochs": (0.01, 1e6),
    "train.batch_size": (4, 80),
    "train.accumulate": (1, 2),
    "train.ema_decay": (0.0, 0.999999),
    "train.eval_batch_size": (1, 64),
    "train.eval_every_epochs": (0.0, 5e-324, 1e6),
    "train.log_every_steps": (1, 2**31 - 1),
    "train.checkpoint_every_steps": (1, 2**31 - 1),
}

# Trained elsewhere (methods: test_loop, test_stages; backbones: test_backbones; back ends: test_devices) or in need of
# what is not here: data, a network.
ELSEWHERE = {
    *("method", "init_from", "dataset.name", "dataset.path", "dataset.fields", "dataset.cache_dir"),
    *("model.backbone", "model.pretrained"),
    "model.drop_path",  # test_features
    *("compilation_cache", "parallel.backend", "parallel.model"),
}
# Ends of ranges that this test has not the memory, the time or the data for: there the machine sets the limit, not the
# field. The largest value that is tried stands in MUST_TRAIN.
OF_THE_MACHINE = {
    **{"dataset.raw_size": 4096, "dataset.train_size": 1_000_000, "dataset.test_size": 1_000_000},
    **{"model.view_size": 2048, "region.view_size": 2048},
    **{"train.batch_size": 65536, "train.accumulate": 65536, "train.eval_batch_size": 4096},
}


def with_value(name, value, config=None):
    config = tiny_config() if config is None else config
    group, _, field = name.rpartition(".")
    holder = config[group] if group else config
    with config.ignore_type():
        holder[field] = value
    return config


def boundaries(name):
    """The ends of the range, what of the walk lies nearest to them, all choices, and what must train."""
    field = TABLE[name]
    found = [*MUST_TRAIN.get(name, ()), *field.choices]
    if field.kind is bool:
        found += [False, True]
    if field.low is not None:
        found += [(end,) * field.length if field.kind is tuple else end for end in (field.low, field.high)]
        taken = sorted(v for v in VALUES if type(v) in (int, float) and v != 0 and field.accepts(v))
        found += [*taken[:1], *taken[-1:]] if field.kind is not tuple else []
    distinct = []
    for value in found:
        if value != OF_THE_MACHINE.get(name) and not any(value == other for other in distinct):
            distinct.append(value)
    return distinct


@pytest.mark.parametrize("name", TABLE)
def test_what_a_field_cannot_be_is_one_line(name):
    refused = 0
    for value in VALUES:
        try:
            check(with_value(name, value))
            check_training(with_value(name, value))
        except UserError as error:
            refused += 1
            line = str(error)
            assert name in line and line.isprintable() and len(line) < 400, (value, line)
    assert refused >= len(VALUES) - 25  # of no field do more make sense


def test_nothing_else_is_said_of_wrong_values():
    """By number: the walk's values and how many the table refuses."""
    walked = [(name, value) for name in TABLE for value in VALUES]
    refused = [(name, value) for name, value in walked if not TABLE[name].accepts(value)]
    print(f"\n{len(TABLE)} fields, {len(walked)} values, {len(refused)} refused by the table")
    assert len(refused) > 0.8 * len(walked)


def groups_of_values():
    """(configs, [(name, value) in none]): all boundaries in as few configs as will do. In each there are no two of one
    field, and it can be built; what is in none is refused beside the defaults for what another field says."""
    configs, alone = [], []
    for name in TABLE:
        for value in boundaries(name) if name not in ELSEWHERE else ():
            for config, placed in [*configs, (tiny_config(region__max_side=1.0), {})]:
                trial = with_value(name, value, config.copy_and_resolve_references())
                if name in placed or not buildable(trial):
                    continue
                if not placed:
                    configs.append((config, placed))
                with_value(name, value, config)
                placed[name] = value
                break
            else:
                alone.append((name, value))
    return configs, alone


def buildable(config):
    try:
        return build(config)
    except UserError:
        return None


def test_a_step_with_every_boundary_value(monkeypatch):
    """Not refused and then found impossible: loss, gradient and the parameters after a real step are numbers. The
    backbone has one block here and its program is hardly optimised: fields do not depend on either."""
    small = functools.partial(
        ResNet,
        BasicBlock,
        **{"block_counts": (1,), "widths": (32,), "group_strides": (4,), "stem_width": 8, "stem_kernel": 3},
        stem_pool=False,
    )
    monkeypatch.setitem(backbones._CONSTRUCTORS, "resnet10_small", (small, {8: {}}))
    configs, alone = groups_of_values()
    trained = 0
    for config, placed in configs:
        run = build(config)
        stage = run.stages[-1]

        def step(batch, run=run, stage=stage):
            state = switch_stage(run._scratch(), stage).replace(step=stage.start)
            settings = {"seed": run.config.seed, "accumulate": run.config.train.accumulate}
            return train_step(state, batch, task=run.task, stage=stage, **settings)

        batch = next(run.training_batches(0))
        program = (
            jax.jit(step)
            .lower(batch)
            .compile({"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
        )
        state, metrics = jax.device_get(program(batch))
        broken = [name for name, value in metrics.items() if not np.isfinite(value)]
        broken += [] if all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)) else ["parameters"]
        assert not broken and state.step == stage.start + 1, (broken, placed)
        trained += len(placed)
    print(f"\n{trained} boundary values trained in {len(configs)} programs; beside the defaults refused: {alone}")
    missing = [(name, value) for name, values in MUST_TRAIN.items() for value in values if (name, value) in alone]
    assert not missing
    assert set(MUST_TRAIN) | ELSEWHERE >= {name for name, field in TABLE.items() if field.low is not None}


# --- The table and what is written from it. ---


def test_the_table_has_the_fields_of_the_default_config_and_takes_its_values():
    config = default.get_config()
    fields.check_names(config)
    fields.check(config)
    for name in shipped.names():
        fields.check(importlib.import_module(f"configs.{name}").get_config())


def test_choices_are_those_of_the_code():
    assert set(TABLE["model.backbone"].choices) == set(BACKBONES)
    strides = {stride for name in BACKBONES for stride in output_strides(name)}
    assert set(TABLE["model.output_stride"].choices) == {0, *strides}
    assert set(TABLE["model.attention_init"].choices) == set(ATTENTION_INITS)
    assert set(TABLE["region.box_gradient"].choices) == set(BOX_GRADIENTS)
    assert set(TABLE["dataset.name"].choices) == set(NAMES) and TABLE["dataset.name"].prefix == TFDS


@pytest.mark.parametrize("name", [name for name, field in TABLE.items() if field.kind is str and field.choices])
def test_the_comments_name_every_choice(name):
    if name == "model.backbone":  # too many for a comment; docs/config.md has them
        return
    said = f"{comments()[name]} {fields.values(default.get_config())[name]}"
    for choice in TABLE[name].choices:
        assert re.search(rf"\b{choice}\b", said), f"configs/default.py does not say that {name} can be {choice}"


def test_the_docs_are_written_from_table_and_comments():
    assert DOCS.read_text() == page(), "write them again: python -m tests.runs.make_config_docs"
