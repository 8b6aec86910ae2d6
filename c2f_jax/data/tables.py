"""Tables of photos, CSV or JSON lines -> rows as they are written; a library finds the encoding."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chardet

from c2f_jax import storage
from c2f_jax.errors import UserError, as_text

TEXT, LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
SUFFIXES = TEXT + LINES

# Column -> other names that cannot mean anything else. In any case; spaces, hyphens and underscores do not count.
_NAMES = {
    "path": (
        *("file", "filename", "filepath", "image", "imagepath", "imagefile", "imagefilename", "imagename", "img"),
        *("imgpath", "imgname", "photo", "relativepath"),
    ),
    "label": ("class", "classname", "classlabel", "category", "species"),
    "split": ("part", "partition", "subset"),
    "group": ("groupid", "groupname"),
    "xmin": ("x1", "bboxxmin"),
    "ymin": ("y1", "bboxymin"),
    "xmax": ("x2", "bboxxmax"),
    "ymax": ("y2", "bboxymax"),
}
BOX = ("xmin", "ymin", "xmax", "ymax")
_BLANK = " \t\r\n"
_DEFUSED = re.compile("' *[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_LOOKED_AT = 200_000  # bytes that chardet looks at


class Row(NamedTuple):
    """A row: its number as a spreadsheet shows it (the header is row 1; of JSON lines the first is 1), and its cells.

    `cells` has the columns of `_NAMES` that the table has, without spaces around; an empty cell is "". `path` is the
    cell of that name with them.
    """

    number: int
    cells: dict[str, str]
    path: str


def read(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a table, and lines to tell the user about how it was read.

    Raises:
        UserError: if it cannot be read, or has no columns `path` and `label`; in one line.
    """
    try:
        data = storage.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({storage.told(error)})") from error
    text, encoding = _text(path, data)
    if "\0" in text:
        raise UserError(f"{path} holds NUL characters, as no text does; save it as CSV in UTF-8")
    notes = []
    if not encoding.startswith("utf"):
        notes = [f"{path.name} is read as {encoding}; if names come out wrong, save it as UTF-8"]
    if path.suffix.lower() in LINES:
        records = list(_json_lines(path, text))
        columns = list(dict.fromkeys(name for _, record in records for name in record))
    else:
        lines = _separated(path, text)
        columns = [cell.strip() for cell in next(lines, (1, []))[1]]
        records = [(number, dict[str, str | None](_record(path, number, columns, cells))) for number, cells in lines]
    names = _columns(path, columns)
    unused = [column for column in columns if column not in names.values() and column]
    if unused:
        notes.append(f"{path.name}: columns not used: {', '.join(unused)}")
    rows = []
    for number, record in records:
        cells: dict[str, str] = {}
        for name, column in names.items():
            word = record.get(column, "")
            if word is None:
                raise UserError(f"{path}: row {number}: {column} is an object or a list; write one word or number")
            cells[name] = word.strip() or word.strip(_BLANK)  # some class may be called by a line separator
            if name == "label":
                cells[name] = as_text(as_cell_is_meant(cells[name]))
        rows.append(Row(number, cells, record.get(names["path"]) or ""))
    if not rows:
        raise UserError(f"{path} holds no row besides its header; write one for each photo")
    return rows, notes


def as_cell_is_meant(cell: str) -> str:
    """Without the apostrophe that stands before what a spreadsheet would take for a formula."""
    return cell[1:] if _DEFUSED.match(cell) else cell


def _text(path: Path, data: bytes) -> tuple[str, str]:
    """The text and the name of its encoding: what a byte order mark says, UTF-8 if it is, else the likeliest."""
    marks = {
        codecs.BOM_UTF8: "utf-8",
        **{codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"},  # before UTF-16, whose mark begins one
        **{codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"},
    }
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    if b"\0" in data and encoding == "utf-8":
        encoding = chardet.detect(data)["encoding"] or encoding
    try:
        return data.decode(encoding).lstrip("\ufeff"), encoding.lower()
    except (UnicodeDecodeError, LookupError):
        pass
    if data[:_LOOKED_AT].isascii():
        telling = b"\n".join(line for line in data.splitlines() if not line.isascii())
    else:
        telling = data
    found = chardet.detect(telling, encoding_era=chardet.EncodingEra.MODERN_WEB, prefer_superset=True)["encoding"]
    try:
        return data.decode(found or "cp1252"), (found or "cp1252").lower()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in a known encoding; save it as CSV in UTF-8") from error


def _separated(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Numbered rows, without empty ones."""
    told = text[:4].lower() == "sep="  # Excel's own line
    if told:
        first, _, text = text.partition("\n")
        delimiter = first.strip()[4:] or ","
    else:
        delimiter = _delimiter(text)
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1):
            if any(map(str.strip, cells)):
                yield number + told, cells
    except csv.Error as error:
        raise UserError(f"{path}: {error}; a quotation mark is likely not closed, or not doubled inside") from error


def _delimiter(text: str) -> str:
    """With which the header has our columns; names of files and classes below may hold any of them."""

    def header(delimiter: str) -> list[str]:
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            return []

    def known(delimiter: str) -> int:
        return len({_OURS.get(_plain(column)) for column in header(delimiter)} & {"path", "label"})

    return max(",;\t|", key=lambda delimiter: (known(delimiter), len(header(delimiter))))


def _record(path: Path, number: int, columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    spare = cells[len(columns) :]
    if any(map(str.strip, spare)):
        raise UserError(
            f"{path}: row {number} has {len(cells)} cells and the header {len(columns)}; "
            'put cells that hold the separator into "quotation marks"'
        )
    return dict(zip(columns, cells, strict=False))


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            # Numbers stay as they are written: they are names here.
            record = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: row {number} is not JSON ({error}); write one object a line") from error
        if not isinstance(record, dict):
            raise UserError(f'{path}: row {number} is not an object; write {{"path": ..., "label": ...}}, one a line')
        yield number, {name: _word(value) for name, value in record.items()}


def _word(value: Any) -> str | None:
    """None: no word, but an object or a list."""
    if isinstance(value, dict | list):
        return None
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _plain(column: str) -> str:
    return "".join(letter for letter in column.strip().lower() if letter not in " _-")


_OURS = {other: name for name, others in _NAMES.items() for other in (name, *others)}


def _columns(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Name of ours -> the table's column."""
    names = {}
    for name, others in _NAMES.items():
        found = [column for column in columns if _plain(column) == name]
        found = found or [column for column in columns if _plain(column) in others]
        if len(found) > 1:
            raise UserError(f"{path}: columns {' and '.join(found)} could both be {name!r}; rename all but one")
        if found:
            names[name] = found[0]
    for name in ("path", "label"):
        if name not in names:
            shown = ", ".join(columns[:8]) + (", ..." if len(columns) > 8 else "")
            raise UserError(
                f"{path} has no column {name!r}: its first row is {shown or 'empty'}; write path,label there"
            )
    missing = [name for name in BOX if name not in names]
    if 0 < len(missing) < len(BOX):
        raise UserError(f"{path}: boxes need columns {', '.join(BOX)} (pixels); not there: {', '.join(missing)}")
    return names
