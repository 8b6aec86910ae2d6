"""The command line: parses, checks, and turns every mistake of the user into one line and exit code 2."""

import argparse
import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict

from c2f_jax import console, program, shipped, storage
from c2f_jax.errors import Interrupted, UserError
from c2f_jax.flags import ALWAYS, DEFAULT_CONFIG, DESCRIPTIONS, EXAMPLES, FLAGS, MODES, SEVERAL, SWITCHES
from c2f_jax.runs import fields, supervisor
from c2f_jax.runs.config_file import load_config, located, override
from c2f_jax.runs.interruption import Interruption
from c2f_jax.runs.workdir import check_reading, read_config

HOW = ("refuse", "skip")  # photos of classes that a run does not know
# By mode, where --output says nothing, or names a folder.
OUTPUTS = {"prepare": "contact_sheet.jpg", "predict": "predictions.csv", "export": "export", "report": "report.html"}


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
    images: Path | None  # of modes predict and eval
    output: Path | None  # where there are images, and of modes prepare, export and report
    overlays: Path | None  # of mode predict
    unknown: bool = False
    unknown_classes: str = "refuse"
    fast: bool = False
    gate: float | None = None
    top: int = 5
    compare: tuple[Path, ...] = ()  # of mode report
    host: str = "127.0.0.1"  # of mode serve
    port: int = 8000


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
    except OSError as error:
        return _told(storage.failed(error), 2)
    if command.cluster is None:
        return _run(command)
    if not supervisor.is_supervised():
        return supervisor.supervise()
    return _run_one_of_several(command, command.cluster)


def _run(command: Command) -> int:
    """Does it, and tells how it ended; by process 0 alone, where there are several."""
    goes_on = "; the same command goes on, from the last checkpoint if there is one"
    partings = {"train": goes_on} | dict.fromkeys(("predict", "prepare"), "; the same command goes on from there")
    parting = "interrupted" + partings.get(command.mode, "")
    heard = "answering what was asked, then stopping" if command.mode == "serve" else "finishing this step and saving"
    try:
        with Interruption(parting, heard) as interruption:
            run(command, interruption)
    except UserError as error:
        return _told(error, 2) if error.shared else _told_alone(error, 2)
    except OSError as error:  # a full disk, a bucket out of reach, ...
        return _told_alone(UserError(f"{storage.failed(error)}{goes_on if command.mode == 'train' else ''}"), 1)
    except FloatingPointError as error:
        return _told(error, 1)
    except Interrupted as error:
        return _told(error, 128 + error.signal)
    except (MemoryError, RuntimeError) as error:  # jax's is a RuntimeError
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        remedy = "train.accumulate (more parts)" if command.mode == "train" else "train.eval_batch_size (smaller)"
        return _told(UserError(f"out of memory: {str(error)[:150]}; give another --config.{remedy}"), 1)
    return 0


def _told(error: Exception, code: int) -> int:
    if not supervisor.is_supervised() or _is_first():
        console.fail(str(error))
    return code


def _told_alone(error: Exception, code: int) -> int:
    """Of several processes this one cannot go on: the others, who wait for it, are ended too."""
    from c2f_jax.runs import processes

    if not supervisor.is_supervised() or processes.count() == 1:
        return _told(error, code)
    console.fail(f"process {processes.index()} of {processes.count()}: {error}")
    supervisor.end(code)


def _is_first() -> bool:
    from c2f_jax.runs import processes

    return processes.is_first()


def _run_one_of_several(command: Command, cluster: Cluster) -> int:
    """`_run` as the child of `supervisor.supervise`: meets the others first, and parts from them in the end."""
    from c2f_jax.runs import processes

    channel = supervisor.Channel()
    if cluster.process == 0:
        console.tell(f"waiting for {cluster.processes} processes at {cluster.coordinator}")
    try:
        processes.join(*cluster)
    except UserError as error:
        console.fail(str(error))
        supervisor.end(2)
    channel.joined()
    try:
        code = _run(command)
        processes.leave()
    except BaseException as error:
        if processes.is_lost(error):
            console.fail(supervisor.LOST)
            supervisor.end(1)
        supervisor.end_with_traceback(error, wait=processes.HEARTBEAT_SECONDS + 10)
    return code


def keep_compiled(folder: str) -> None:
    """Keeps compiled programs in `folder` (empty: nowhere): a second start need not compile again for half a minute.

    JAX's own variable JAX_COMPILATION_CACHE_DIR goes first.
    """
    import jax

    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        place = storage.as_path("config.compilation_cache", folder, remote=False)
        storage.check_writable("config.compilation_cache", place)
    except UserError as error:  # a start without it is slower, and no worse
        console.warn(f"compiled programs are not kept: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(place))


def run(command: Command, interruption: Interruption | None = None) -> None:
    """Does what a checked command line says. interruption: what notes signals."""
    # What needs JAX is imported late: --help and a misspelt flag need not wait for it.
    keep_compiled(command.config.compilation_cache)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home folder it tells where it keeps its fonts
    if command.mode == "prepare":
        from c2f_jax.runs.prepare import prepare

        assert command.output is not None
        prepare(command.config, command.output)
        return
    if command.mode == "serve":
        from c2f_jax.serve.server import serve

        serve(
            command.workdir,
            command.config,
            host=command.host,
            port=command.port,
            unknown=command.unknown,
            interruption=interruption or Interruption(),
        )
        return
    if command.mode == "report":
        from c2f_jax.report.page import write

        path = write(command.workdir, command.config, others=command.compare, output=command.output)
        console.tell(f"{path}, {storage.size(path) / 1e6:.1f} MB")
        return
    if command.mode == "predict":
        from c2f_jax.inference.predict import model_of_run
        from c2f_jax.inference.predictions import check_output, predict_folder

        assert command.images is not None and command.output is not None  # `parse` has seen to it
        check_output(command.output)  # before the model is made, which takes a while
        model = model_of_run(command.workdir, command.config)
        unreadable = predict_folder(
            model,
            command.images,
            command.output,
            command.overlays,
            mark_unknown=command.unknown,
            fast=command.fast,
            gate=command.gate,
            top=command.top,
        )
        console.tell(f"{command.output}" + (f"; {unreadable} unreadable: see error there" if unreadable else ""))
        return
    if command.mode == "export":
        from c2f_jax.inference.export import export_run

        assert command.output is not None
        export_run(command.workdir, command.config, command.output)
        return
    if command.images is not None:
        from c2f_jax.inference.evaluation import check_outputs, evaluate_photos
        from c2f_jax.inference.predict import model_of_run

        assert command.output is not None
        check_outputs(command.output)  # before the model is made, which takes a while
        evaluate_photos(
            model_of_run(command.workdir, command.config),
            command.images,
            command.output,
            unknown_classes=command.unknown_classes,
            mark_unknown=command.unknown,
            fast=command.fast,
            gate=command.gate,
        )
        return
    from c2f_jax.runs.evaluation import evaluate_checkpoint
    from c2f_jax.runs.loop import train_and_evaluate

    if command.mode == "eval":
        evaluate_checkpoint(command.config, command.workdir, tell_unknown=command.unknown)
    else:
        train_and_evaluate(command.config, command.workdir, interruption=interruption)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {program.command()} --help")


def _parser(mode: str) -> _Parser:
    """Takes all flags; its help tells of those that have a meaning in `mode`."""
    parser = _Parser(
        prog=program.name(),
        usage=program.command() + (f" --mode={mode}" if mode != "train" else "") + " [flags]",
        description=DESCRIPTIONS[mode],
        epilog=EXAMPLES[mode].replace("python launch.py", program.command()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--mode", default="train", help=f"{', '.join(MODES)}; default train")
    for name, flag in FLAGS.items():
        told = flag.help if mode in flag.modes else argparse.SUPPRESS
        kind = {"N": int, "I": int, "K": int, "P": float}.get(flag.value, str)
        many: dict[str, Any] = {"nargs": "+", "action": "extend"} if name in SEVERAL else {}
        parser.add_argument(f"--{name}", metavar=flag.value, type=kind, help=told, **many)
    for name, flag in SWITCHES.items():
        told = flag.help if mode in flag.modes else argparse.SUPPRESS
        parser.add_argument(f"--{name}", action="store_true", help=told)
    return parser


def _mode(argv: Sequence[str]) -> str:
    """The mode that a command line is for, before all of it is parsed.

    Raises:
        UserError: if there is no such mode.
    """
    mode = "train"
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == "--mode" or word.startswith("--mode="):
            mode = word.partition("=")[2] if "=" in word else following
    if mode not in MODES:
        raise UserError(f"--mode must be one of {', '.join(MODES)}; got {mode!r}")
    return mode


def parse(argv: Sequence[str]) -> Command:
    """argv -> what to do.

    Raises:
        UserError: for everything that is wrong with it.
    """
    mode = _mode(argv)
    options, rest = _parser(mode).parse_known_args(_joined(argv))
    for name, flag in (FLAGS | SWITCHES).items():
        if _given(options, name) and mode not in flag.modes and name not in ALWAYS:
            raise UserError(f"--{name} belongs to --mode {' and '.join(flag.modes)}; this is --mode {mode}")
    predicting = mode == "predict"
    if predicting and options.images is None:
        raise UserError("--mode predict needs --images DIR, the folder of images, or an image")
    for name in ("output", "unknown_classes", "fast", "gate"):
        if _given(options, name) and options.images is None and mode not in ("prepare", "export", "report"):
            raise UserError(f"--{name} belongs to --mode {mode} with --images")
    if options.unknown_classes not in (None, *HOW):
        raise UserError(f"--unknown_classes must be {' or '.join(HOW)}; got {options.unknown_classes!r}")
    if options.gate is not None and not 0.0 <= options.gate <= 1.0:
        raise UserError(f"--gate takes a probability from 0 to 1; got {options.gate:g}")
    if options.gate is not None and options.fast:
        raise UserError("--fast and --gate exclude each other: the first look alone, or a second where it is unsure")
    if options.top is not None and options.top < 1:
        raise UserError(f"--top takes a number of classes, 1 or more; got {options.top}")
    given = {name: getattr(options, name) for name in ("config", "workdir", "images", "output", "overlays")}
    paths = {
        name: storage.as_path(f"--{name}", text, remote=name != "config")
        for name, text in given.items()
        if text is not None
    }
    workdir = paths.get("workdir", Path("runs") / paths.get("config", Path(DEFAULT_CONFIG)).stem)
    cluster = _cluster(options)
    if options.images is not None and cluster is not None:
        raise UserError(
            "--images is for one process, on all of its devices; leave out --multiprocess and --coordinator"
        )
    config = _config(mode, paths.get("config"), workdir, rest)
    config.lock()
    default = OUTPUTS.get(mode, "evaluation.json")
    output = paths.get("output", Path(default))
    if mode != "export" and options.output is not None and _is_folder(options.output, output):
        output = paths["output"] = output / default
    return Command(
        config,
        workdir,
        mode,
        cluster,
        paths.get("images"),
        output if "images" in paths or mode in ("export", "prepare") else paths.get("output"),
        paths.get("overlays"),
        options.unknown,
        options.unknown_classes or HOW[0],
        options.fast,
        options.gate,
        options.top or 5,
        tuple(storage.as_path("--compare", text) for text in options.compare or ()),
        options.host or "127.0.0.1",
        _port(options.port),
    )


def _is_folder(text: str, place: Path) -> bool:
    """Whether a place for results, as it was given, is one to put them into: `out/`, or a folder that is there."""
    return text.endswith("/") or (not storage.is_remote(place) and place.is_dir())


def _given(options: argparse.Namespace, name: str) -> bool:
    value = getattr(options, name, None)
    return value is not None and value is not False  # a 0 is given


def _port(port: int | None) -> int:
    if port is not None and not 0 <= port < 65536:
        raise UserError(f"--port takes a number from 0 to 65535; got {port}")
    return 8000 if port is None else port


def _config(mode: str, path: Path | None, workdir: Path, rest: Sequence[str]) -> ConfigDict:
    """The config of the command, checked: from a file, or the run's own, with the fields that flags give.

    Raises:
        UserError: if it has a value that cannot be used, or one that the weights in `workdir` were not made for.
    """
    words = [_field(word) for word in rest]
    training = mode in ("train", "prepare")  # a config of its own, and no run yet
    if training or path is not None:
        path = shipped.find(path or Path(DEFAULT_CONFIG))
        config = load_config(path)
    else:
        config = read_config(workdir)
    for name, text in words:
        override(config, name, text)
    try:
        fields.check(config, training=training)
    except fields.FieldError as error:
        if path is None:
            raise UserError(f"{workdir / 'config.json'}: {error}") from error
        raise located(path, error) from error
    if not training:
        check_reading(workdir, config)
    return config


def _field(word: str) -> tuple[str, str]:
    """`--config.a.b=v` -> ("a.b", "v").

    Raises:
        UserError: if the word is something else.
    """
    name, equals, text = word.removeprefix("--config.").partition("=")
    if not word.startswith("--config."):
        flags = [f"--{flag}" for flag in ("mode", *FLAGS, *SWITCHES)]
        close = difflib.get_close_matches(word.partition("=")[0], flags, n=1)
        hint = f"{close[0]}?" if close else f"see {program.command()} --help"
        raise UserError(f"there is no flag {word}; {hint}")
    if not equals:
        raise UserError(f"{word} needs a value: {word}=...")
    return name, text


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
