"""The files of a run besides its checkpoints: `config.json`, `class_names.json` and whose folder it is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from c2f_jax.errors import UserError

# By group ("": none), what a run's config holds: the fields of configs/default.py, which a package cannot import and a
# test compares. No default stands in for a field that a run was made without: what the program did before there was
# such a field may have been something else.
FIELDS: dict[str, tuple[str, ...]] = {
    "": ("method", "seed", "compilation_cache"),
    "dataset": (
        *("name", "path", "cache_dir", "unreadable", "raw_size", "memory_mib", "validation_fraction"),
        *("train_size", "test_size"),
    ),
    "augment": (
        *("keep_aspect", "min_side", "max_side", "test_side", "flip", "brightness", "saturation", "mean", "std"),
    ),
    "model": (
        *("backbone", "pretrained", "output_stride", "view_size", "num_maps", "attention_init"),
        *("feature_channels", "feature_scale", "dtype"),
    ),
    "region": ("box_gradient", "box_gradient_scale", "min_side", "max_side", "kappa", "floor", "background"),
    "loss": ("center_weight", "center_rate", "drop_view"),
    "stages": ("coarse_epochs", "fine_epochs"),
    "optimizer": (
        *("name", "learning_rate", "head_factor", "region_factor", "fine_factor", "momentum", "weight_decay"),
        *("clip_norm", "schedule", "warmup_epochs", "decay_rate", "decay_epochs"),
    ),
    "train": (
        *("batch_size", "accumulate", "eval_batch_size", "eval_every_epochs", "log_every_steps"),
        "checkpoint_every_steps",
    ),
    "parallel": ("backend",),
}


def claim_workdir(workdir: Path, config: Any, class_names: Sequence[str]) -> None:
    """Makes `workdir` the place of this config and these classes.

    Raises:
        UserError: if it holds another config, the same config over other classes, or things no run has put there.
    """
    path = workdir / "config.json"
    wanted = json.loads(config.to_json())
    if path.exists():
        differences = _differences(json.loads(path.read_text()), wanted)
        if differences:
            raise UserError(
                f"{workdir} holds a run with another config ({'; '.join(differences)}): "
                "choose another --workdir, or give the same settings to go on with it"
            )
        check_class_names(workdir, class_names)
        return
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"{workdir} exists and is not a run of this program: choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    # The config comes last: with it the workdir is complete, and without it it is nobody's.
    write_json(workdir / "class_names.json", list(class_names))
    write_json(path, wanted)


def check_class_names(workdir: Path, class_names: Sequence[str]) -> None:
    """Raises UserError unless the run in `workdir` was made for these classes, in this order."""
    stored = read_class_names(workdir)
    if stored != tuple(class_names):
        new, gone = sorted(set(class_names) - set(stored)), sorted(set(stored) - set(class_names))
        parts = [f"{word} {', '.join(names[:3])}" for word, names in (("new", new), ("gone", gone)) if names]
        raise UserError(
            f"{workdir} holds a run over {len(stored)} classes, the data have {len(class_names)} "
            f"({'; '.join(parts) or 'in another order'}): choose another --workdir, or the data it was trained on"
        )


def read_class_names(workdir: Path) -> tuple[str, ...]:
    """The run's class names, by label.

    Raises:
        UserError: if there is no run.
    """
    return tuple(json.loads(_read(workdir, "class_names.json")))


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`, with all of `FIELDS`; others that it may hold are kept.

    Raises:
        UserError: if there is no run, or its config lacks fields: another version of the program wrote it.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(entry) for name, entry in value.items()}
        return tuple(value) if isinstance(value, list) else value

    stored = json.loads(_read(workdir, "config.json"))
    missing = []
    for group, names in FIELDS.items():
        there = stored.get(group, {}) if group else stored
        missing += [f"{group}.{name}" if group else name for name in names if name not in there]
    if missing:
        raise UserError(
            f"{workdir / 'config.json'} lacks {', '.join(missing)}: another version of this program wrote it. "
            "Add what is missing (configs/default.py says what it does), or train again"
        )
    return ConfigDict(tuples(stored))


def write_json(path: Path, value: Any) -> None:
    """Written beside and moved into place: a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def _read(workdir: Path, name: str) -> str:
    path = workdir / name
    if not path.is_file():
        raise UserError(f"{workdir} holds no run; train first: python launch.py --workdir {workdir}")
    return path.read_text()


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{prefix}: {old} there, {new} now"]
    found = []
    for name in sorted({*old, *new}):
        found += _differences(old.get(name), new.get(name), f"{prefix}.{name}" if prefix else name)
    return found
