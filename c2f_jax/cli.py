"""The command line: parses, checks, and turns every mistake of the user into one line and exit code 2."""

import argparse
import ast
import difflib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict

from c2f_jax.errors import Interrupted, UserError
from c2f_jax.runs import supervisor
from c2f_jax.runs.interruption import Interruption
from c2f_jax.runs.workdir import read_config

MODES = ("train", "eval", "predict")
DEFAULT_CONFIG = "configs/paper_birds.py"


class Cluster(NamedTuple):
    """How one of several processes finds the others: what `runs.processes.join` takes."""

    coordinator: str | None
    processes: int | None
    process: int | None


class Command(NamedTuple):
    """A checked command line."""

    config: ConfigDict
    workdir: Path
    mode: str
    cluster: Cluster | None  # None: this process is alone
    images: Path | None  # of mode predict, like the next two
    output: Path | None
    overlays: Path | None


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (without the program's name).

    Returns:
        The exit code: 0; 2 for a user's mistake, told in one line; 1 for a run that failed; 128 and the signal's number
        for one that a signal stopped.
    """
    try:
        command = parse(argv)
    except UserError as error:
        return _told(error, 2)
    if command.cluster is None:
        return _run(command)
    if not supervisor.is_supervised():
        return supervisor.supervise()
    return _run_one_of_several(command, command.cluster)


def _run(command: Command) -> int:
    """Does it, and tells how it ended; by process 0 alone, where there are several."""
    goes_on = "; the same command goes on, from the last checkpoint if there is one"
    parting = "interrupted" + (goes_on if command.mode == "train" else "")
    try:
        with Interruption(parting) as interruption:
            run(command, interruption)
    except UserError as error:
        return _told(error, 2)
    except FloatingPointError as error:
        return _told(error, 1)
    except Interrupted as error:
        return _told(error, 128 + error.signal)
    return 0


def _told(error: Exception, code: int) -> int:
    if not supervisor.is_supervised() or _is_first():
        print(f"launch.py: {error}", file=sys.stderr)
    return code


def _is_first() -> bool:
    from c2f_jax.runs import processes

    return processes.is_first()


def _run_one_of_several(command: Command, cluster: Cluster) -> int:
    """`_run` as the child of `supervisor.supervise`: meets the others first, and parts from them in the end."""
    from c2f_jax.runs import processes

    channel = supervisor.Channel()
    if cluster.process == 0:
        print(f"waiting for {cluster.processes} processes at {cluster.coordinator}")
    try:
        processes.join(*cluster)
    except UserError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        supervisor.end(2)
    channel.joined()
    try:
        code = _run(command)
        processes.leave()
    except BaseException as error:
        supervisor.end_with_traceback(error, wait=processes.HEARTBEAT_SECONDS + 10)
    return code


def keep_compiled(folder: str) -> None:
    """Keeps compiled programs in `folder` (empty: nowhere): a second start need not compile again for half a minute.

    JAX's own variable JAX_COMPILATION_CACHE_DIR goes first.
    """
    import jax

    if folder and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))


def run(command: Command, interruption: Interruption | None = None) -> None:
    """Does what a checked command line says. interruption: what notes signals."""
    # What needs JAX is imported late: --help and a misspelt flag need not wait for it.
    keep_compiled(command.config.compilation_cache)
    if command.mode == "predict":
        from c2f_jax.inference.predict import model_of_run
        from c2f_jax.inference.predictions import predict_folder

        assert command.images is not None and command.output is not None  # `parse` has seen to it
        model = model_of_run(command.workdir, command.config)
        unreadable = predict_folder(model, command.images, command.output, command.overlays)
        print(f"{command.output}" + (f"; {unreadable} unreadable: see the column error" if unreadable else ""))
        return
    from c2f_jax.runs.loop import evaluate_checkpoint, train_and_evaluate

    if command.mode == "eval":
        evaluate_checkpoint(command.config, command.workdir)
    else:
        train_and_evaluate(command.config, command.workdir, interruption=interruption)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python launch.py --help")


def parse(argv: Sequence[str]) -> Command:
    """argv -> what to do.

    Raises:
        UserError: for everything that is wrong with it.
    """
    parser = _Parser(prog="launch.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help=f"what to run; default {DEFAULT_CONFIG}")
    parser.add_argument("--config.FIELD", metavar="VALUE", help="any field of it, e.g. --config.train.batch_size=32")
    parser.add_argument("--workdir", metavar="DIR", help="where the run lives; default runs/<the config's name>")
    parser.add_argument("--mode", default="train", help="train (goes on where a run stopped; default), eval or predict")
    parser.add_argument("--images", metavar="DIR", help="predict: the folder of images")
    parser.add_argument("--output", metavar="CSV", help="predict: the file to write; default predictions.csv")
    parser.add_argument("--overlays", metavar="DIR", help="predict: a folder for pictures of what the model looked at")
    parser.add_argument(
        "--multiprocess",
        action="store_true",
        help="this is one of several processes, which TPU metadata, SLURM, Open MPI or Kubernetes know",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="the same without those: where process 0 is reached")
    parser.add_argument("--processes", type=int, metavar="N", help="with --coordinator: how many there are")
    parser.add_argument("--process", type=int, metavar="I", help="with --coordinator: which one this is, from 0")
    options, rest = parser.parse_known_args(_joined(argv))

    if options.mode not in MODES:
        raise UserError(f"--mode must be one of {', '.join(MODES)}; got {options.mode!r}")
    config_path = Path(options.config or DEFAULT_CONFIG)
    workdir = Path(options.workdir or f"runs/{config_path.stem}")
    predicting = options.mode == "predict"
    for name in ("images", "output", "overlays"):
        if getattr(options, name) is not None and not predicting:
            raise UserError(f"--{name} belongs to --mode predict; this is --mode {options.mode}")
    if predicting and options.images is None:
        raise UserError("--mode predict needs --images DIR, the folder of images")
    cluster = _cluster(options)
    if predicting and cluster is not None:
        raise UserError(
            "--mode predict runs in one process, on all of its devices; leave out --multiprocess and --coordinator"
        )
    of_run = options.mode != "train" and options.config is None
    config = read_config(workdir) if of_run else load_config(config_path)
    for word in rest:
        override(config, word)
    config.lock()
    return Command(
        config,
        workdir,
        options.mode,
        cluster,
        Path(options.images) if predicting else None,
        Path(options.output or "predictions.csv") if predicting else None,
        Path(options.overlays) if options.overlays is not None else None,
    )


def _cluster(options: argparse.Namespace) -> Cluster | None:
    given = {f"--{name}": getattr(options, name) for name in Cluster._fields}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        return Cluster(None, None, None) if options.multiprocess else None
    if missing:
        raise UserError(f"{', '.join(given)} belong together; {' and '.join(missing)} is missing")
    host, colon, port = options.coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(
            f"--coordinator takes HOST:PORT of process 0, such as 10.0.0.1:9000; got {options.coordinator!r}"
        )
    if not 0 <= options.process < options.processes:
        raise UserError(
            "--process counts from 0 to --processes - 1; "
            f"got --process {options.process} of --processes {options.processes}"
        )
    return Cluster(options.coordinator, options.processes, options.process)


def _joined(argv: Sequence[str]) -> list[str]:
    """`--config.a.b v` -> `--config.a.b=v`."""
    words: list[str] = []
    for word in argv:
        if words and words[-1].startswith("--config.") and "=" not in words[-1] and not word.startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def load_config(path: Path) -> ConfigDict:
    """What `get_config()` of a Python file returns.

    Raises:
        UserError: if there is no such file, or no such function in it.
    """
    if not path.is_file():
        raise UserError(f"--config: there is no file {path}; those that ship are in configs/")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} has no function get_config()")
    return module.get_config()


def override(config: ConfigDict, word: str) -> None:
    """Sets one field from `--config.a.b=v`, with the type it has.

    Raises:
        UserError: if the word is something else, the field does not exist, or the value has another type.
    """
    name, equals, text = word.removeprefix("--config.").partition("=")
    if not word.startswith("--config."):
        flags = ["--config", "--workdir", "--mode", "--images", "--output", "--overlays", "--multiprocess"]
        flags += [f"--{name}" for name in Cluster._fields]
        close = difflib.get_close_matches(word.partition("=")[0], flags, n=1)
        raise UserError(f"there is no flag {word}" + (f"; {close[0]}?" if close else "; see python launch.py --help"))
    if not equals:
        raise UserError(f"{word} needs a value: {word}=...")
    *groups, field = name.split(".")
    group = config
    for depth, part in enumerate([*groups, field]):
        if not isinstance(group, ConfigDict) or part not in group:
            known = list(group.keys()) if isinstance(group, ConfigDict) else []
            close = difflib.get_close_matches(part, known, n=1)
            where = ".".join(["config", *name.split(".")[:depth]])
            hint = f"; {close[0]}?" if close else f"; there are {', '.join(sorted(known))}" if known else ""
            raise UserError(f"{where} has no field {part!r}{hint}")
        if depth < len(groups):
            group = group[part]
    if isinstance(group[field], ConfigDict):
        raise UserError(f"config.{name} is a group of fields, not a field: {', '.join(sorted(group[field].keys()))}")
    group[field] = _value(f"config.{name}", text, group[field], group.get_type(field))


def _value(name: str, text: str, current: Any, kind: type) -> Any:
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        value = text
    if kind is type(None):  # a field that a finished run's config.json has left open
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    fits = type(value) is kind and (not isinstance(value, tuple) or len(value) == len(current))
    if not fits and not (value is None and current is None):
        length = f" of {len(current)}" if kind is tuple else ""
        raise UserError(f"{name} takes {kind.__name__}{length}, such as {current!r}; got {text!r}")
    return value
