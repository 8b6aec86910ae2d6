"""By which name this program was called: `python launch.py` in a checkout, `c2f-jax` once it is installed."""

import sys
from pathlib import Path

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
