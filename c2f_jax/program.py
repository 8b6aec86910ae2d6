"""By which name this program was called: `python launch.py` in a checkout, `c2f-jax` once it is installed."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from c2f_jax.errors import UserError

COMMAND = "c2f-jax"


def is_command() -> bool:
    """Whether it is the installed command."""
    path = Path(sys.argv[0])
    return path.name in (COMMAND, f"{COMMAND}.exe") or path.parts[-2:] == ("c2f_jax", "__main__.py")


def name() -> str:
    """What its messages begin with."""
    return COMMAND if is_command() else "launch.py"


def command() -> str:
    """What to type to call it."""
    return COMMAND if is_command() else "python launch.py"


def flag(name: str, value: str | os.PathLike[str]) -> str:
    r"""`--name=value` as a shell takes it, whatever the value holds: 'a b', $'a\nb'."""
    text = os.fspath(value)
    if text.isprintable():
        return f"--{name}={shlex.quote(text)}"

    def letter(c: str) -> str:
        return c if c.isprintable() and c not in "\\'" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c))

    return f"--{name}=$'{''.join(map(letter, text))}'"


# What only one mode or field needs: the extras of pyproject.toml.
EXTRAS = {
    "export": ("flatbuffers", "onnx"),
    "gcs": ("gcsfs",),
    "report": ("jinja2",),
    "serve": ("pebble", "python-multipart", "starlette", "uvicorn"),
    "tensorboard": ("tensorboardX",),
}


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Imports of what `EXTRAS` says.

    Raises:
        UserError: if one of them is not installed; it says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("c2f_jax"):
            raise
        install = f"'{COMMAND}[{extra}]'" if is_command() else " ".join(EXTRAS[extra])
        raise UserError(f"{error.name} is missing; pip install {install} brings what this needs") from error
