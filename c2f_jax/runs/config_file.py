"""Configs as users write them: a Python file with `get_config()`, and `--config.group.field=value`.

A mistake in a file is told with the file and the line, as far as they can be known.
"""

import ast
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from ml_collections import ConfigDict

from c2f_jax import shipped
from c2f_jax.errors import UserError
from c2f_jax.runs import fields


def load_config(path: Path) -> ConfigDict:
    """What `get_config()` of a Python file returns: every field of `fields.TABLE`, and no other.

    Raises:
        UserError: if there is no such file, it cannot be run, or what it returns is no such config.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        names = ", ".join(shipped.names())
        raise UserError(f"--config: the file {path} {what}; those that ship, in configs/, go by their names: {names}")
    shipped.make_importable(path)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _raised(path, error) from error
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"--config: {path} has no function get_config()")
    where = f"{path}:{function.__code__.co_firstlineno}" if isinstance(function, FunctionType) else str(path)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UserError(f"--config: {where}: get_config() is called without arguments ({error})") from error
    except ValueError:  # a callable that tells no signature
        pass
    try:
        config = function()
    except (Exception, SystemExit) as error:
        raise _raised(path, error) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: {where}: get_config() returns {fields.shown(config)} of type {type(config).__name__}; "
            "begin with config = default.get_config() and return it"
        )
    config = config if type(config) is ConfigDict else ConfigDict(config)  # a frozen one takes no flags
    try:
        fields.check_names(config)
    except fields.FieldError as error:
        if error.missing:
            raise UserError(f"--config: {where}: {error}") from error
        raise located(path, error) from error
    return config


def located(path: Path, error: fields.FieldError) -> fields.FieldError:
    """The same error with the line of `path`, or of a config that it builds on, that names the field."""
    others = [getattr(module, "__file__", None) for module in list(sys.modules.values()) if _is_config(module)]
    for file in [path, *(Path(other) for other in others if other)]:
        lines = sorted(_lines(file, error.field))
        if lines:
            return fields.FieldError(error.field, f"--config: {file}:{lines[-1][1]}: {error}")
    return fields.FieldError(error.field, f"--config: {path}: {error}")


def override(config: ConfigDict, name: str, text: str) -> None:
    """Sets the field called `name`, "group.field", from a flag's text.

    Raises:
        UserError: if there is no such field, or it takes no such value.
    """
    if name not in fields.TABLE:
        raise UserError(_unknown(name))
    field, value = fields.TABLE[name], _parsed(fields.TABLE[name], text)
    if not field.accepts(value):
        hint = fields.hint(name, field, value)
        raise fields.FieldError(name, f"--config.{name} must be {field.takes()}; got {fields.shown(text)}{hint}")
    group, _, key = name.rpartition(".")
    with config.ignore_type():  # None and numbers, both ways
        (config[group] if group else config)[key] = value


def _parsed(field: fields.Field, text: str) -> Any:
    if field.kind is str:
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    if field.kind is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if field.kind is tuple and isinstance(value, list | tuple):
        return tuple(float(entry) if type(entry) is int and abs(entry) < 2**63 else entry for entry in value)
    return value


def _unknown(name: str) -> str:
    """Which part of a field's name there is not, and what there is in its place."""
    known = fields.groups()
    group, dot, field = name.partition(".")
    if name in known:
        return f"config.{name} is a group of fields, not a field: {', '.join(sorted(known[name]))}"
    if dot and group in known:
        return f"config.{group} has no field {field!r}" + fields.close(field, known[group])
    if dot and group in known[""]:
        return f"config.{group} is a field and has none of its own; --config.{group}=..."
    return f"config has no field {group!r}" + fields.close(group, [*known, *known[""]])


def _raised(path: Path, error: BaseException) -> UserError:
    """What running the file at `path` raised, with the last line of it that was being run."""
    line: int | None = None
    said = str(error)
    if isinstance(error, KeyError | AttributeError):  # ml_collections quotes what it says in a KeyError
        said = said.replace("\\n", " ").replace("\\'", "'").strip("'\"")
    said = " ".join(said.split())
    if isinstance(error, SyntaxError) and error.filename:
        path = path if error.filename == os.path.abspath(path) else Path(error.filename)
        line, said = error.lineno, error.msg
    else:
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == os.path.abspath(path):
                line = frame.lineno
    where = f"{path}:{line}" if line else str(path)
    return UserError(f"--config: {where}: {type(error).__name__}: {said[:300]}")


def _is_config(module: Any) -> bool:
    return hasattr(module, "get_config") and str(getattr(module, "__file__", "")).endswith(".py")


def _lines(path: Path, name: str) -> Iterator[tuple[bool, int]]:
    """(whether the group is named, too, line) of each place in a Python file that sets something called `name`."""
    group, _, field = name.rpartition(".")
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return
    for node in ast.walk(tree):
        named = None
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            named = node.attr == field
        elif isinstance(node, ast.keyword):
            named = node.arg == field
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # a key of a dict or a subscript
            named = node.value in (field, name)
        if named:
            words = ast.unparse(node)
            yield not group or group in words, getattr(node, "lineno", 0)
