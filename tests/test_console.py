"""What is told reaches whoever reads it: in any encoding, or nobody."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from c2f_jax import console, program
from c2f_jax.errors import Interrupted, UserError, as_name, as_text, one_line

ROOT = Path(__file__).resolve().parents[1]
ODD = "a\nb\t[red]\x1b[31m\u202e$x$\udce9\x00日é"


def test_a_line_stays_a_line():
    assert one_line(ODD) == r"a\nb\t[red]\x1b[31m\u202e$x$\xe9\x00日é"
    assert one_line("plain [x] é 日 🐦") == "plain [x] é 日 🐦"
    for error in (UserError(ODD), Interrupted(15, ODD)):
        assert str(error) == one_line(ODD) and str(error).isprintable()


def test_names_are_text_and_back():
    assert as_text("caf\udce9\n") == "caf\\xe9\n" and as_name("caf\\xe9\n") == "caf\udce9\n"
    assert as_text("\ud800").encode() == b"\\ud800"
    assert as_name("\\x41") == "\\x41"  # no byte that would have been spelled out


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252", "utf-16"])
def test_every_encoding_takes_every_line(monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    console.tell(ODD)
    written = out.buffer.getvalue().decode(encoding)
    assert written.count("\n") == 1 and written.isascii() == (encoding == "ascii") and r"\u202e" in written


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_a_stream_that_takes_nothing_is_told_once_and_ends_nothing(monkeypatch, capsys):
    for stream in (None, Full()):
        monkeypatch.setattr(sys, "stdout", stream)
        console.tell("a line")
    assert capsys.readouterr().err == "standard output cannot be written (No space left on device): nothing more is told there\n"  # fmt: skip # noqa: E501
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    console.tell("a line")
    monkeypatch.setattr(sys, "stderr", Full())
    console.warn("a line")


def test_flags_for_a_shell():
    for value in ("plain", "two words", "it's", "-x", "a\nb", "caf\udce9", "\u202e", "$x `y` \\z", "a\\b\n'"):
        shell = f"printf %s {program.flag('workdir', value)}"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
        assert done.stdout == os.fsencode(f"--workdir={value}")
        assert program.flag("workdir", value).isprintable()


def test_names_are_utf_8_in_every_locale(monkeypatch):
    assert console.unicode_names() == {}
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="iso8859-1"))
    variables = console.unicode_names()
    code = "import sys; print(sys.getfilesystemencoding(), sys.stdout.encoding, chr(233), chr(26085))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, check=True)
    assert done.stdout == b"utf-8 iso8859-1 \xe9 \\u65e5\n"


# argv of a run that ends in a line on standard error, and one on standard output.
REFUSED = ["--mode=eval", "--workdir=/nowhere/\udce9\n[red]"]


def launch(argv, redirection="", **variables):
    command = f'exec "$0" launch.py "$@" {redirection}'
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "LC_", "PYTHON"))}
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *argv],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"LANG": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1:strict"},
    ],
)
def test_a_terminal_of_another_encoding_gets_the_line(variables):
    done = launch(REFUSED, **variables)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr
    assert rb"/nowhere/\xe9\n[red] holds no run" in done.stderr


@pytest.mark.parametrize(
    ("argv", "redirection", "code"),
    [
        (REFUSED, "2>&-", 2),
        (REFUSED, ">&- 2>&- <&-", 2),
        (REFUSED, "2>/dev/full", 2),
        (["--help"], ">&-", 0),
        (["--help"], ">/dev/full", 0),
        (["--help"], "> >(true)", 0),
    ],
)
def test_nobody_reads(argv, redirection, code):
    done = launch(argv, redirection)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


CLOSED = """
import os, sys
from c2f_jax import console
console.open_standard_streams()
file = os.open("/dev/null", os.O_RDONLY)
os._exit(0 if file > 2 and sys.stdout is not None and sys.stderr is not None else 1)
"""


def test_no_file_takes_the_number_of_a_closed_stream():
    """Otherwise what libraries say on descriptor 2 would be written into a checkpoint."""
    done = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, CLOSED], cwd=ROOT, check=False)
    assert done.returncode == 0
