"""The command `c2f-jax`, which does what launch.py does: `main` is its entry."""

import _signal as signal  # without what `signal` imports, in the midst of which Ctrl-C would be a traceback
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Trains, evaluates or predicts as the command line says, and ends the process."""
    # Until `cli.main` takes signals over, Ctrl-C simply ends the program.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from c2f_jax import console
    from c2f_jax.memory import restart_with_huge_pages

    console.open_standard_streams()
    restart_with_huge_pages(**console.unicode_names())
    try:
        from c2f_jax import cli
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("c2f_jax"):
            raise
        console.fail(f"{error.name} is missing; pip install 'c2f-jax[train]' installs all it needs")
        sys.exit(2)
    try:
        code = cli.main(sys.argv[1:])
    finally:
        console.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
