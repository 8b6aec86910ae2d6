"""JSON lines that a kill leaves whole: each is on the disk before the next is begun."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds one line to `path` in one write, and waits until it is on the disk.

    What a kill may have torn off at the end is closed off first, so that no line is ever glued to half of another.

    Raises:
        ValueError: for a number that JSON does not have (not finite).
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[os.write(file, line) :]
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of `path`, none if there is no such file; half a line, as a kill may leave it, is no line."""
    records = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:  # empty, or torn
            continue
    return records


def pack(bits: np.ndarray) -> str:
    """bool [count] -> hexadecimal, eight to a byte."""
    return np.packbits(bits).tobytes().hex()


def unpack(text: str, count: int) -> np.ndarray:
    """What `pack` made of bool [count]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)
