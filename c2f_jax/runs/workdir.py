"""The files of a run besides its checkpoints: `config.json`, `class_names.json`, and whose folder it is."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from c2f_jax import program, storage
from c2f_jax.errors import UserError, as_text
from c2f_jax.runs import fields
from c2f_jax.runs.lease import Lease

LOCK = "train.lock"
TOKEN = "shared.tmp"  # by which several processes see whether they share the folder
# What a start that was killed before it had claimed the workdir may have left.
UNCLAIMED = {LOCK, TOKEN, "class_names.json", "class_names.json.part", "config.json.part"}
UNCLAIMED |= {"class_names.tmp", "config.tmp"}  # of earlier versions

# By group ("": none), what a run's config holds.
FIELDS = fields.groups()

# Whoever adds a field says here what the program did before there was one: runs made then stay usable. It need not be
# the field's default.
BEFORE: dict[str, Any] = {
    "init_from": "",
    "augment.max_side": 1.0,
    "augment.test_side": 1.0,
    "train.accumulate": 1,
    "dataset.memory_mib": 0,
    "compilation_cache": "",
    "augment.keep_aspect": False,
    "loss.drop_view": False,
    "region.floor": 0.0,
    "region.background": 0.0,
    "region.cell_offset": 0.0,
    "dataset.group_by": "",
    "dataset.shots": 0,
    "dataset.class_balanced": False,
    "dataset.fields": "",
    "parallel.model": 1,
    "train.tensorboard": False,
    "region.side": 0.0,
    "region.teach": 0.0,
    **{"region.view_size": 0, "augment.flip_vertical": False},
    "optimizer.restart": True,
    **{"augment.erase": 0.0, "augment.mixup": 0.0, "augment.cutmix": 0.0, "loss.label_smoothing": 0.0},
    **{"model.drop_path": 0.0, "model.remat": False, "optimizer.layer_decay": 1.0, "optimizer.freeze": ""},
    "train.ema_decay": 0.0,
    "model.channel_drop": 0.0,
}

# Whoever takes a field away says here with which value a run was as it is now without: others cannot be trained on.
GONE: dict[str, Any] = {"region.gradient_blur": 0.0, "loss.teach_weight": 0.0, "region.jitter": 0.0}

# What cannot change a run's result beyond rounding, and so may be given otherwise when it goes on.
FREE = {
    *("compilation_cache", "dataset.cache_dir", "dataset.memory_mib", "parallel.backend", "parallel.model"),
    *("train.eval_batch_size", "train.eval_every_epochs", "train.log_every_steps", "train.checkpoint_every_steps"),
    "train.tensorboard",
}
PATHS = {"init_from", "dataset.path", "model.pretrained"}


@contextmanager
def locked(workdir: Path) -> Iterator[Callable[[], None]]:
    """Makes `workdir`, and is its one trainer meanwhile; gives what raises UserError if it is that no longer.

    On this machine the lock is the operating system's, which dies with its process; in a bucket see `lease`. A folder
    that is not a run's afterwards is left as it was found.

    Raises:
        UserError: if another process trains there.
    """
    if storage.is_remote(workdir):
        with ExitStack() as leaving:
            with _as_workdir(workdir):
                lease = leaving.enter_context(Lease(workdir / LOCK, str(workdir)))
            yield lease.check
        return
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    path = workdir / LOCK
    lock = FileLock(path, blocking=False)
    try:
        with _as_workdir(workdir):
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                lock.acquire()
            except Timeout as error:
                raise UserError(
                    f"{workdir} is being trained by another process: wait for it, stop it, or choose another --workdir"
                ) from error
        yield lambda: None
    finally:
        claimed = _is_run(workdir)
        if not claimed and lock.is_locked:
            path.unlink(missing_ok=True)
        lock.release()
        if not claimed:
            for folder in made:
                with suppress(OSError):  # somebody else may have begun there
                    folder.rmdir()


@contextmanager
def _as_workdir(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        above = [folder for folder in workdir.parents if folder.is_file()] if not storage.is_remote(workdir) else []
        why = f"{above[0]} is a file" if above else storage.told(error)
        raise UserError(f"--workdir {workdir} cannot be written to ({why}); choose another") from error


def _is_run(workdir: Path) -> bool:
    with suppress(OSError):
        return storage.exists(workdir / "config.json")
    return False


def check_workdir(workdir: Path, config: Any, class_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """What differs from the run in `workdir` without changing its result, a line each; writes nothing.

    A run that has recorded nothing yet is no hindrance: its place can be taken.

    Args:
        workdir: the run's folder, or what is to be it.
        config: what would be trained there.
        class_names: over which classes; None where that is not known yet.

    Raises:
        UserError: if it holds another config, the same config over other classes, or things no run has put there.
    """
    with _as_workdir(workdir):
        return _checked(workdir, config, class_names)


def _checked(workdir: Path, config: Any, class_names: Sequence[str] | None) -> tuple[str, ...]:
    if not storage.exists(workdir / "config.json"):
        if set(storage.names(workdir)) - UNCLAIMED or storage.is_file(workdir):
            raise UserError(f"{workdir} exists and is not a run of this program: choose another --workdir")
        return ()
    if storage.is_file(workdir / "checkpoints"):
        raise UserError(f"{workdir / 'checkpoints'} is not a folder: move it away, or choose another --workdir")
    old_fields, new_fields = _fields(_stored(workdir)), _fields(_as_stored(config))
    if has_recorded_nothing(workdir):
        return ("takes the place of a run that had recorded nothing",) if old_fields != new_fields else ()
    differences: list[str] = []
    notes: list[str] = []
    for name in sorted({*old_fields, *new_fields}):
        old, new = old_fields.get(name, GONE.get(name)), new_fields.get(name, GONE.get(name))
        if old == new or (name in PATHS and resolved(old) == resolved(new)):
            continue
        (notes if name in FREE else differences).append(f"{name}: {old} there, {new} now")
    if differences:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(differences)}): "
            "choose another --workdir, or give the same settings to go on with it"
        )
    if class_names is not None:
        check_class_names(workdir, class_names)
    _check_not_emptied(workdir, old_fields["train.checkpoint_every_steps"])
    return tuple(notes)


def _check_not_emptied(workdir: Path, every_steps: int) -> None:
    """Raises UserError if a run that must have had checkpoints has none: it would start over, and its log would go."""
    if _checkpoints(workdir):
        return
    last = 0
    with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        last = json.loads(storage.read_text(workdir / "metrics.jsonl").splitlines()[-1])["step"]
    # The second checkpoint is begun when the first is whole.
    if storage.exists(workdir / "results.json") or last > 2 * every_steps:
        raise UserError(
            f"{workdir} holds the log of a run and no checkpoint: restore {workdir / 'checkpoints'}, or choose another "
            "--workdir"
        )


def claim_workdir(workdir: Path, config: Any, class_names: Sequence[str]) -> tuple[str, ...]:
    """Makes `workdir` the place of this config and these classes; returns the lines of `check_workdir`, and raises."""
    notes = check_workdir(workdir, config, class_names)
    if not storage.exists(workdir / "config.json") or has_recorded_nothing(workdir):
        storage.remove(workdir / "config.json")
        write_json(workdir / "class_names.json", list(class_names))
    # The config comes last: with it the workdir is complete, and without it it is nobody's.
    wanted = _as_stored(config)
    if not storage.exists(workdir / "config.json") or _json(workdir, "config.json") != wanted:
        write_json(workdir / "config.json", wanted)
    return notes


def has_recorded_nothing(workdir: Path) -> bool:
    """Whether the run in `workdir` has neither a checkpoint nor a line in its log: nothing to go on with."""
    log = workdir / "metrics.jsonl"
    recorded = storage.exists(workdir / "results.json") or (storage.exists(log) and storage.size(log) > 0)
    return not recorded and not _checkpoints(workdir)


def _checkpoints(workdir: Path) -> list[str]:
    return [name for name in storage.names(workdir / "checkpoints") if name[:1].isdigit()]


def check_reading(workdir: Path, config: Any) -> None:
    """Raises UserError if `config`, to look at the run in `workdir` with, is not what its weights were made for.

    Mean and deviation of the input that it leaves open become the run's.
    """
    there = _fields(_stored(workdir))
    with config.ignore_type():
        for name in ("mean", "std"):
            known = there[f"augment.{name}"]
            if config.augment[name] is None and known is not None:
                config.augment[name] = tuple(known)
    given = _fields(_as_stored(config))
    different = [name for name in fields.MADE_FOR if given[name] != there[name]]
    average = "train.ema_decay"  # whether there is one: it answers, and the weights and threshold are fitted to it
    different += [average] if (given[average] > 0) != (there[average] > 0) else []
    differences = [f"{name}={given[name]}, made with {there[name]}" for name in different]
    if differences:
        raise UserError(
            f"the checkpoint in {workdir} was not made for {'; '.join(differences)}: leave that out, "
            "or train with it in another --workdir"
        )


def essential(config: Any) -> dict[str, Any]:
    """Without what may differ from machine to machine in one run of several processes: folders, and memory."""
    differing = {"compilation_cache", "dataset.cache_dir", "dataset.memory_mib", *PATHS}
    return {name: value for name, value in _fields(_as_stored(config)).items() if name not in differing}


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
    names = _json(workdir, "class_names.json")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{workdir / 'class_names.json'} is not a list of class names; restore it, or train again")
    return tuple(map(as_text, names))


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`, with all of `FIELDS`; others that it may hold are kept.

    Raises:
        UserError: if there is no run, or its config lacks fields that every version of the program wrote.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(entry) for name, entry in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(tuples(_stored(workdir)))


def write_json(path: Path, value: Any) -> None:
    """Written beside and moved into place: a kill leaves the old file or the new one, never half of one.

    Raises:
        ValueError: if it holds a number that is not finite, which JSON has no word for.
    """
    storage.write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _json(workdir: Path, name: str) -> Any:
    path = workdir / name
    if not storage.is_file(path):
        raise UserError(f"{workdir} holds no run; train first: {program.command()} {program.flag('workdir', workdir)}")
    try:
        return json.loads(storage.read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); restore it, or train again in another --workdir") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({storage.told(error)})") from error


def _stored(workdir: Path) -> dict[str, Any]:
    """`config.json`, with what the program did before the fields it lacks."""
    stored = _json(workdir, "config.json")
    held = stored if isinstance(stored, dict) else {}
    if not held or not all(isinstance(held.get(group, {}), dict) for group in FIELDS if group):
        raise UserError(f"{workdir / 'config.json'} is not the config of a run; restore it, or train again")
    missing = []
    for group, names in FIELDS.items():
        for name in names:
            field = f"{group}.{name}" if group else name
            there = stored.setdefault(group, {}) if group else stored
            if name not in there and field in BEFORE:
                there[name] = BEFORE[field]
            elif name not in there:
                missing.append(field)
    if missing:
        raise UserError(
            f"{workdir / 'config.json'} lacks {', '.join(missing)}, which every version of this program has written. "
            "Add what is missing (configs/default.py says what it does), or train again"
        )
    return stored


def _as_stored(config: Any) -> dict[str, Any]:
    """The config as JSON has it; paths are absolute, so that they hold wherever the next command is given."""
    stored = json.loads(config.to_json())
    for name in PATHS:
        group, _, field = name.rpartition(".")
        holder = stored[group] if group else stored
        holder[field] = resolved(holder[field])
    return stored


def resolved(path: Any) -> Any:
    """One spelling for each path; what is empty or names a thing elsewhere (hf://...) is its own."""
    return path if not path or storage.scheme(path) == "hf" else storage.resolved(path)


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    """{"group.field": value}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{field}": entry for field, entry in value.items()}
        else:
            flat[name] = value
    return flat
