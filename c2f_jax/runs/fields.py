"""What each field of a config may be: the one table, which `check` holds configs, files and flags against.

It needs neither JAX nor the package of configs, so a mistake is told at once. How fields must fit each other, the
backbone and the devices stands in `checks.py`. Who adds a field adds a line here; `tests/runs/test_fields.py` says
where one is missing, walks all with values that they cannot take, and trains on those that they can. `docs/config.md`
is written from this table and from the comments of `configs/default.py`.
"""

import difflib
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from c2f_jax import storage
from c2f_jax.errors import UserError


class Field(NamedTuple):
    """What a field takes.

    Attributes:
        kind: int, float (an int will do), bool, str, or tuple (of floats).
        low, high: the range, both ends included, of a number or of each number of a tuple; None: no such end.
        choices: all that it takes, if that is so little.
        prefix: beside choices, what another text that it takes begins with.
        length: of a tuple.
        path: whether a text is one.
        schemes: of a path: "gs" if it may be in a bucket, ...
        empty: whether a text may be empty.
        none: whether None will do.
        zero: whether 0 will do, which lies outside of the range.
    """

    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    prefix: str = ""
    length: int = 0
    path: bool = False
    schemes: tuple[str, ...] = ()
    empty: bool = True
    none: bool = False
    zero: bool = False

    def takes(self, *, most: int = 12) -> str:
        """In words: "int from 1 to 64". most: choices that are all named."""
        if len(self.choices) > most:
            words = f"one of the {len(self.choices)} names in docs/config.md"
        elif self.choices:
            words = f"one of {', '.join(str(choice) for choice in self.choices)}"
            words += f", or {self.prefix}NAME" if self.prefix else ""
        else:
            words = f"tuple of {self.length} floats" if self.kind is tuple else self.kind.__name__
            if self.low is not None:
                words += f" from {_number(self.low)} to {_number(self.high)}" + ", or 0" * self.zero
            if not self.empty:
                words += " that is not empty"
        return words + (" or None" if self.none else "")

    def accepts(self, value: Any) -> bool:
        """Whether `value` has the type and lies in the range."""
        if value is None:
            return self.none
        if self.prefix and type(value) is str and value.startswith(self.prefix):
            return value != self.prefix and value.isprintable()
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if self.kind is tuple:
            return type(value) is tuple and len(value) == self.length and all(map(self._holds, value))
        if self.kind is str:
            right = type(value) is str and "\0" not in value
            right = right and not (self.path and (_is_of_nobody(value) or _is_elsewhere(value, self.schemes)))
            return right and (self.empty or bool(value.strip()))
        if self.kind is bool:
            return type(value) is bool
        return self._holds(value)

    def _holds(self, value: Any) -> bool:
        # Not by isinstance for ints: True is one.
        right = type(value) is int or (self.kind is not int and isinstance(value, float))
        if not right or (isinstance(value, float) and not math.isfinite(value)):
            return False
        if self.zero and value == 0:
            return True
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


def _int(low: int, high: int, *, none: bool = False) -> Field:
    return Field(int, low, high, none=none)


def _float(low: float, high: float) -> Field:
    return Field(float, low, high)


def _floats(length: int, low: float, high: float) -> Field:
    return Field(tuple, low, high, length=length)


def _one_of(*choices: Any) -> Field:
    return Field(type(choices[0]), choices=choices)


def _is_of_nobody(path: str) -> bool:
    # `~nobody` would be expanded to nothing. Where there is no home folder at all, whoever needs the path says so.
    return path.startswith("~") and path[1:2] not in ("", "/") and os.path.expanduser(path).startswith("~")


def _is_elsewhere(path: str, schemes: tuple[str, ...]) -> bool:
    try:
        storage.check_scheme("", path, schemes)
    except UserError:
        return True
    return False


_BOOL, _TEXT, _PATH, _FOLDER = Field(bool), Field(str), Field(str, path=True), Field(str, path=True, empty=False)
_ANYWHERE = Field(str, path=True, schemes=("gs",))
_VIT_FORMS = ("patch16", "patch14_dinov2", "patch14_reg4_dinov2", "patch16_dinov3")
_SIDE = _float(0.01, 1.0)
_COUNT = 2**31 - 1

TABLE: dict[str, Field] = {
    "method": _one_of("baseline", "attention", "wsdan", "coarse2fine", "random_box"),
    "seed": _int(0, 2**32 - 1),
    "init_from": _ANYWHERE,
    "dataset.name": _one_of(
        *("paper_birds", "cub200_2011", "fgvc_aircraft", "inat2021", "inat2021_mini", "nabirds", "oxford_iiit_pet"),
        *("stanford_cars", "stanford_dogs", "deep_pcb", "folder"),
    )._replace(prefix="tfds:"),
    "dataset.path": _ANYWHERE,
    "dataset.cache_dir": _FOLDER,
    "dataset.fields": _TEXT,
    "dataset.unreadable": _one_of("skip", "fail"),
    "dataset.group_by": _TEXT,
    "dataset.shots": _int(0, 1_000_000),
    "dataset.class_balanced": _BOOL,
    "dataset.raw_size": _int(8, 4096),
    "dataset.memory_mib": _int(0, _COUNT),
    "dataset.validation_fraction": _float(0.0, 0.99),
    # Test images are drawn from the millionth on, beyond all that training may use.
    "dataset.train_size": _int(1, 1_000_000, none=True),
    "dataset.test_size": _int(1, 1_000_000, none=True),
    "augment.keep_aspect": _BOOL,
    "augment.min_side": _SIDE,
    "augment.max_side": _SIDE,
    "augment.test_side": _SIDE,
    "augment.flip": _BOOL,
    "augment.flip_vertical": _BOOL,
    "augment.brightness": _float(0.0, 1.0),
    "augment.saturation": _floats(2, 0.0, 10.0),
    "augment.erase": _float(0.0, 1.0),
    "augment.mixup": _float(0.0, 10.0),
    "augment.cutmix": _float(0.0, 10.0),
    "augment.mean": _floats(3, 0.0, 255.0)._replace(none=True),
    "augment.std": _floats(3, 1.0, 255.0)._replace(none=True),  # below 1 they are meant for pixels of 0 to 1
    "model.backbone": _one_of(
        *(f"efficientnet_lite{size}" for size in range(5)),
        *("resnet10_small", *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))),
        *("resnext50_32x4d", "resnext101_32x8d", "inception_v3"),
        *("convnext_tiny", "convnext_small", "convnext_base", "convnextv2_tiny", "convnextv2_base"),
        *(f"vit_{size}_{form}" for form in _VIT_FORMS for size in ("small", "base", "large")),
        *(f"vit_{form}_clip{kind}" for form in ("base_patch16", "large_patch14") for kind in ("", "_quickgelu")),
    ),
    "model.pretrained": _ANYWHERE._replace(schemes=("gs", "hf")),
    "model.output_stride": _one_of(0, 8, 14, 16, 32),
    "model.view_size": _int(8, 2048),
    "model.num_maps": _int(1, 1024),
    "model.attention_init": _one_of("orthogonal", "lecun_normal"),
    "model.feature_channels": _int(0, 4096),
    "model.feature_scale": _float(1e-3, 1e4),
    "model.drop_path": _float(0.0, 0.9),
    "model.channel_drop": _float(0.0, 0.9),
    "model.remat": _BOOL,
    "model.dtype": _one_of("float32", "bfloat16", "float64"),
    "region.box_gradient": _one_of("none", "mapping", "all"),
    "region.box_gradient_scale": _float(0.0, 1e3),
    "region.min_side": _SIDE,
    "region.max_side": _SIDE,
    "region.kappa": _float(0.01, 10.0),
    "region.floor": _float(0.0, 0.99),
    "region.background": _float(0.0, 1.0),
    "region.cell_offset": _float(-2.0, 2.0),
    "region.side": _SIDE._replace(zero=True),
    "region.view_size": _int(0, 2048),
    "region.teach": _float(0.0, 1e3),
    "loss.center_weight": _float(0.0, 1e3),
    "loss.center_rate": _float(0.0, 1.0),
    "loss.drop_view": _BOOL,
    "loss.label_smoothing": _float(0.0, 0.99),
    "stages.coarse_epochs": _float(0.0, 1e6),
    "stages.fine_epochs": _float(0.0, 1e6),
    "optimizer.name": _one_of("sgd", "adamw"),
    "optimizer.learning_rate": _float(1e-12, 100.0),
    "optimizer.head_factor": _float(0.0, 1e3),
    "optimizer.region_factor": _float(0.0, 1e3),
    "optimizer.fine_factor": _float(0.0, 1e3),
    "optimizer.momentum": _float(0.0, 0.9999),
    "optimizer.weight_decay": _float(0.0, 10.0),
    "optimizer.clip_norm": _float(0.0, 1e9),
    "optimizer.layer_decay": _float(0.01, 1.0),
    "optimizer.freeze": _TEXT,
    "optimizer.schedule": _one_of("cosine", "exponential"),
    "optimizer.restart": _BOOL,
    "optimizer.warmup_epochs": _float(0.0, 1e6),
    "optimizer.decay_rate": _float(1e-3, 1.0),
    "optimizer.decay_epochs": _float(0.01, 1e6),
    "train.batch_size": _int(1, 65536),
    "train.accumulate": _int(1, 65536),
    "train.ema_decay": _float(0.0, 0.999999),
    "train.eval_batch_size": _int(1, 4096),
    "train.eval_every_epochs": _float(0.0, 1e6),
    "train.log_every_steps": _int(1, _COUNT),
    "train.checkpoint_every_steps": _int(1, _COUNT),
    "train.tensorboard": _BOOL,
    "compilation_cache": _PATH,
    "parallel.backend": _one_of("jit", "pmap"),
    "parallel.model": _int(1, 4096),
}

# What the weights of a finished run were made for: whoever looks at it cannot give these otherwise.
MADE_FOR = (
    *("method", "dataset.raw_size", "augment.keep_aspect", "augment.test_side", "augment.mean", "augment.std"),
    *("model.backbone", "model.output_stride", "model.view_size", "model.num_maps", "model.feature_channels"),
    *("model.feature_scale", "region.min_side", "region.max_side", "region.floor", "region.background"),
    *("region.kappa", "region.side", "region.view_size"),
)
# What else is heeded then. With which values of the other fields it was trained is not judged again.
_HEEDED = {
    *MADE_FOR,
    *("model.dtype", "model.attention_init", "region.box_gradient", "region.cell_offset", "train.eval_batch_size"),
}


class FieldError(UserError):
    """A field that is missing, unknown, or has a value that it cannot take.

    Attributes:
        field: its name, "group.field".
        missing: whether it is missing.
    """

    def __init__(self, field: str, message: str, *, missing: bool = False):
        super().__init__(message)
        self.field, self.missing = field, missing


def groups() -> dict[str, tuple[str, ...]]:
    """Group ("": none) -> its fields."""
    found: dict[str, tuple[str, ...]] = {}
    for name in TABLE:
        group, _, field = name.rpartition(".")
        found[group] = (*found.get(group, ()), field)
    return found


def check(config: Any, *, training: bool = True) -> None:
    """Raises FieldError for the first field with a value that it cannot take.

    Args:
        config: of `configs/default.py`'s fields; others that it may have are no matter.
        training: False for a run that is only looked at: the ranges that training alone heeds are then left aside.
    """
    for name in TABLE:
        check_value(name, _value(config, name), training=training)


def check_value(name: str, value: Any, *, training: bool = True) -> None:
    """Raises FieldError unless the field called `name` takes `value`."""
    field = TABLE[name]
    heeded = training or name in _HEEDED or name.startswith("dataset.")
    if not (field if heeded else field._replace(low=None, high=None)).accepts(value):
        raise FieldError(name, f"{name} must be {field.takes()}; got {shown(value)}{hint(name, field, value)}")


def check_names(config: Any) -> None:
    """Raises FieldError for a field or group that there is not, or that is missing."""
    known = groups()
    for name in _keys(config):
        if name in known[""]:
            continue
        if name not in known:
            raise FieldError(name, f"there is no field or group {name!r}" + close(name, [*known, *known[""]]))
        for field in _keys(config[name]):
            if field not in known[name]:
                raise FieldError(f"{name}.{field}", f"{name} has no field {field!r}" + close(field, known[name]))
    for name in TABLE:
        _holder(config, name)


def values(config: Any) -> dict[str, Any]:
    """Every field's value by its name, "group.field"."""
    return {name: _value(config, name) for name in TABLE}


def shown(value: Any, limit: int = 60) -> str:
    """A value for a message: on one line, and cut where it is long."""
    try:
        text = "a group of fields" if isinstance(value, Mapping) or hasattr(value, "to_dict") else repr(value)
    except ValueError:  # an int of thousands of digits
        text = f"a huge {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _holder(config: Any, name: str) -> Any:
    """The group, or the config itself, that holds the field called `name`."""
    group, _, field = name.rpartition(".")
    if group and (group not in config or not _keys(config[group])):
        raise FieldError(group, f"the config lacks the group {group}; configs/default.py has it", missing=True)
    holder = config[group] if group else config
    if field not in _keys(holder):
        raise FieldError(name, f"the config lacks {name}; configs/default.py has it", missing=True)
    return holder


def _value(config: Any, name: str) -> Any:
    try:
        return _holder(config, name)[name.rpartition(".")[2]]
    except FieldError:
        raise
    except Exception as error:  # ml_collections' required placeholder
        raise FieldError(name, f"{name} has been given no value", missing=True) from error


def _keys(group: Any) -> tuple[str, ...]:
    return tuple(group.keys()) if hasattr(group, "keys") else ()


def close(name: str, known: Any) -> str:
    """The most similar of the known names, for a message; or all of them."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; {close[0]}?" if close else f"; there are {', '.join(sorted(filter(None, known)))}"


def hint(name: str, field: Field, value: Any) -> str:
    """What else there is to say of a value that the field does not take."""
    if field.choices and isinstance(value, str) and field.kind is str:
        close = difflib.get_close_matches(value, field.choices, n=1)
        return f"; {close[0]}?" if close else ""
    if field.path and isinstance(value, str) and _is_of_nobody(value):
        return "; there is no home folder of that name"
    if field.path and isinstance(value, str) and _is_elsewhere(value, field.schemes):
        return f"; it takes a path {' or '.join(['on this machine', *(f'{name}://...' for name in field.schemes)])}"
    if name == "augment.std" and type(value) is tuple and any(type(v) is float and 0 < v < 1 for v in value):
        return "; it counts in grey levels of 0 to 255"
    return ""


def _number(value: float | None) -> str:
    if type(value) is int:
        return str(value)
    return f"{value:g}"
