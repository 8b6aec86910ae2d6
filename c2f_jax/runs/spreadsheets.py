"""CSV files that a spreadsheet opens as what they are: text is text, never a formula.

A cell that begins like a formula (`=`, `+`, `-`, `@`, their wide forms, a tab or an end of line, also after spaces)
gets an apostrophe before it, which spreadsheets take for "this is text".

References: OWASP, CSV Injection.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from c2f_jax import storage
from c2f_jax.errors import as_text

DANGEROUS = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20")
# What has no code in UTF-8 (names of files may be any bytes) is spelled out.
FORMAT = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}


def text(value: str) -> str:
    """A cell of text that comes from outside: names of files and classes, reasons."""
    plain = as_text(value)
    return f"'{plain}" if plain.lstrip(" ").startswith(DANGEROUS) else plain


def line(fields: Sequence[str]) -> str:
    """One row, as it is; `text` is for the caller."""
    buffer = io.StringIO()
    csv.writer(buffer).writerow(fields)
    return buffer.getvalue()


def write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """A whole table, every cell as `text`; it appears when it is complete."""
    with storage.writing_text(path) as file:
        for fields in rows:
            file.write(line([text(field) for field in fields]))
