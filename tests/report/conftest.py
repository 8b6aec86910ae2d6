import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed_without():
    """Calls launch.py where a package is not installed."""

    def call(package, *arguments):
        code = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['launch.py', *sys.argv[1:]];"
        code += "from c2f_jax.__main__ import main; main()"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    return call
