"""Every photo is decoded once before it is used: can it be read, how large is it, does it look like another?

What is found out about a photo's content is remembered until the file changes; what the system said of the moment (too
many open files, no permission, not there) never is.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from c2f_jax import storage
from c2f_jax.console import warn
from c2f_jax.data import images
from c2f_jax.errors import UserError

FORMAT = 1  # of what is remembered: raise it when photos are decoded or compared otherwise
NAMED = 20  # files that are listed by name
LOOK = 16  # rows and columns of brightness steps that two photos are compared by
DECISIVE = LOOK * LOOK // 3  # so many steps must be of more than 2 grey levels, or the picture is too plain to compare
ALIKE = LOOK - 1  # steps that two copies of a photo may differ in, after scaling or compression (docs/data.md)
_PAIRS = 1 << 20  # compared at a time

_OF_THE_MOMENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT)
_WAITS = (0.1, 0.5, 2.0)  # seconds before another try


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


_READERS = [_version(package) for package in ("pillow", "pillow-heif")]  # others may read what could not be read


class Verdict(NamedTuple):
    """What is known of a file.

    Attributes:
        error: why it cannot be read, or None.
        height, width: in pixels of the upright photo; 0 if it cannot be read.
        pixels: a digest of them, equal for exact copies; "" for a picture of one colour, which is nobody's copy.
        look: its brightness steps from column to column as hexadecimal digits (the difference hash, 256 bits), close
            for scaled and recompressed copies; "" for a picture that is too plain.
    """

    error: str | None
    height: int = 0
    width: int = 0
    pixels: str = ""
    look: str = ""


class Hosts(NamedTuple):
    """Of a run of several: which this one is, how many there are, and what exchanges bytes between all of them."""

    place: int
    size: int
    gather: Callable[[Callable[[], bytes]], list[bytes]]


def check(
    root: Path, paths: Sequence[str], cache_dir: str | os.PathLike[str], hosts: Hosts | None = None
) -> dict[str, Verdict]:
    """Path -> verdict, for files below `root`; only those are decoded that are new or changed since the last time.

    Files in a bucket are the same for all `hosts`: each decodes its share of them, and is told of the others'.

    Raises:
        UserError: if the machine cannot read a file just now, which says nothing about the file; or if nothing can be
            written to `cache_dir`.
    """
    cache = storage.as_path("dataset.cache_dir", os.fspath(cache_dir), remote=False)
    digest = hashlib.sha256(os.fsencode(storage.resolved(root))).hexdigest()[:16]
    file = cache / "folder" / f"{digest}.json"
    key = [FORMAT, *_READERS]
    known = _remembered(file, key)
    states = storage.states(root, paths)
    verdicts = {path: Verdict(state) for path, state in states.items() if isinstance(state, str)}
    for path, state in states.items():
        if path not in verdicts and known.get(path, [None])[0] == state:
            verdicts[path] = Verdict(*known[path][1:])
    new = [path for path in paths if path not in verdicts]
    if new:  # before minutes of work that would be lost
        storage.check_writable("dataset.cache_dir", file.parent)
    if hosts is not None and paths and all(storage.is_remote(storage.join(root, path)) for path in paths):
        share = set(paths[hosts.place :: hosts.size])
        rows = hosts.gather(lambda: _decode_share(root, new, share, verdicts))
        # In the order of the hosts, so that all have the same.
        told = [json.loads(row) for row in rows]
        verdicts |= {path: Verdict(*verdict) for part in told for path, verdict in part["verdicts"].items()}
        failed = {path for part in told for path in part["failed"]}
    elif not new:
        return verdicts
    else:
        warn(f"checking {len(new)} images in {root}; this is done once")
        failed = _decode(root, new, verdicts)
    for path in new:
        if path not in failed:
            known[path] = [states[path], *verdicts[path]]
    _remember(file, {"key": key, "files": known})
    return verdicts


def unreadable_lines(verdicts: Mapping[str, Verdict]) -> list[str]:
    """How many files cannot be read, and the first of them with the reasons; those that are not there first."""
    gone = os.strerror(errno.ENOENT).lower()
    missing = [path for path in sorted(verdicts) if verdicts[path].error == gone]
    bad = [path for path in sorted(verdicts) if verdicts[path].error not in (None, gone)]
    lines = []
    for told, paths in (("are not there", missing), ("cannot be read", bad)):
        if paths:
            lines.append(f"{len(paths)} of {len(verdicts)} images {told} and are left out:")
            lines += [f"  {path}: {verdicts[path].error}" if paths is bad else f"  {path}" for path in paths[:NAMED]]
            lines += [f"  and {len(paths) - NAMED} more"] if len(paths) > NAMED else []
    return lines


def alike(verdicts: Mapping[str, Verdict], ones: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Those of `ones` with a photo among `others` that is a copy, or differs in no more than `ALIKE` brightness steps;
    and the first such photo."""
    ones, others = sorted(ones), sorted(others)
    copies: dict[str, str] = {}
    for path in reversed(others):
        copies[verdicts[path].pixels or path] = path
    found = {path: copies[verdicts[path].pixels] for path in ones if verdicts[path].pixels in copies}
    ones, others = ([path for path in paths if verdicts[path].look] for paths in (ones, others))
    if ones and others:
        left, right = (_rows([verdicts[path].look for path in paths]) for paths in (ones, others))
        for path, j in zip(ones, _first_close(left, right), strict=True):
            if j < len(others):
                found.setdefault(path, others[j])
    return found


def _first_close(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """For each row of `left` [N, LOOK] the first of `right` [M, LOOK] that differs in at most `ALIKE` bits; M: none."""
    first = np.full(len(left), len(right))
    for row in range(LOOK):
        # ALIKE differing bits leave one of LOOK words as it is: only pairs with an equal word are compared.
        order = np.argsort(right[:, row], kind="stable")
        start, end = (np.searchsorted(right[order, row], left[:, row], side) for side in ("left", "right"))
        counts = end - start
        for block in np.array_split(np.arange(len(left)), 1 + int(counts.sum()) // _PAIRS):
            i = np.repeat(block, counts[block])
            within = np.arange(len(i)) - np.repeat(np.cumsum(counts[block]) - counts[block], counts[block])
            j = order[start[i] + within]
            near = np.bitwise_count(left[i] ^ right[j]).sum(axis=1, dtype=int) <= ALIKE
            np.minimum.at(first, i[near], j[near])
    return first


def _rows(looks: Sequence[str]) -> np.ndarray:
    """uint16 [N, LOOK], a bit for each step."""
    return np.frombuffer(bytes.fromhex("".join(looks)), np.uint8).reshape(len(looks), -1).view(np.uint16)


def _decode_share(root: Path, new: Sequence[str], share: Collection[str], verdicts: dict[str, Verdict]) -> bytes:
    """What this host says of the files of its `share`, for the others."""
    mine = [path for path in new if path in share]
    if mine:
        warn(f"checking {len(mine)} images in {root}, this host's share; this is done once")
    failed = _decode(root, mine, verdicts)
    return json.dumps({"verdicts": {path: verdicts[path] for path in share}, "failed": sorted(failed)}).encode()


def _decode(root: Path, paths: Sequence[str], verdicts: dict[str, Verdict]) -> set[str]:
    """Fills `verdicts`; returns the paths whose verdict says nothing of the content.

    Tried again, alone and after a while: files that the system did not give, though they are there.
    """

    def look(path: str) -> Verdict | tuple[Exception, str]:
        try:
            return _look(images.decode(storage.join(root, path)))
        except (images.UnreadableImage, MemoryError, OSError) as error:
            cause = _system_error(error)
            if cause is None and type(error) is images.UnreadableImage:  # others of its kind are no verdict
                return Verdict(str(error))
            return cause or error, str(error) or type(error).__name__

    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        results: dict[str, Any] = dict(zip(paths, executor.map(look, paths), strict=True))
    finally:
        executor.shutdown(cancel_futures=True)  # otherwise Ctrl-C would wait for all of them

    def again() -> list[str]:
        return [path for path, found in results.items() if not isinstance(found, Verdict) and not _lasting(found[0])]

    for seconds in _WAITS:
        waiting = again()
        if waiting:
            time.sleep(seconds)
            results.update((path, look(path)) for path in waiting)
    for path in again():
        error, reason = results[path]
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _OF_THE_MOMENT:
            what = "memory" if isinstance(error, MemoryError) else reason
            raise UserError(
                f"{storage.join(root, path)} cannot be read just now ({what}), which says nothing about the photo: "
                "free some memory or raise the limit of open files (ulimit -n), and start again"
            ) from error
    failed = set()
    for path, found in results.items():
        if isinstance(found, Verdict):
            verdicts[path] = found
        else:
            failed.add(path)
            verdicts[path] = Verdict(found[1])
    return failed


def _system_error(error: BaseException | None) -> Exception | None:
    """What the system said, if that is behind an error. Pillow raises OSError for broken content, without a number."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            return error
        error = error.__cause__
    return None


def _lasting(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in storage.LASTING


def _look(image: np.ndarray) -> Verdict:
    height, width = image.shape[:2]
    pixels = ""
    if image.min() != image.max():
        pixels = hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest()
    grey = Image.fromarray(image).convert("L").resize((LOOK + 1, LOOK), Image.Resampling.BILINEAR)
    steps = np.diff(np.asarray(grey).astype(np.int16), axis=1)
    plain = np.count_nonzero(np.abs(steps) > 2) < DECISIVE
    return Verdict(None, height, width, pixels, "" if plain else np.packbits(steps > 0).tobytes().hex())


def _remembered(file: Path, key: Any) -> dict[str, list[Any]]:
    try:
        stored = json.loads(storage.read_text(file))
    except (OSError, ValueError):
        return {}
    files = stored.get("files") if isinstance(stored, dict) and stored.get("key") == key else None
    return files if isinstance(files, dict) else {}


def _remember(file: Path, value: Any) -> None:
    try:
        storage.make_folder(file.parent)
        storage.write_text(file, json.dumps(value))
    except OSError as error:
        raise UserError(
            f"{error.filename or file}: {storage.told(error)}; choose another place with --config.dataset.cache_dir=DIR"
        ) from error
