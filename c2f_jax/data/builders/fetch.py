"""Archives from the network: into the cache once, gone on with after a stop, and checked."""

import hashlib
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from c2f_jax import storage
from c2f_jax.console import warn
from c2f_jax.errors import UserError

BLOCK = 1 << 20
SECONDS = 30  # without an answer

Track = Callable[..., Iterator[Any]]  # items, total=, what= -> the items, with a progress bar


def untracked(items: Iterable[Any], *, total: int, what: str) -> Iterator[Any]:
    """The items, without a bar."""
    del total, what
    yield from items


@dataclass(frozen=True)
class Archive:
    """A file that somebody publishes.

    Attributes:
        name: what it is called there.
        url: where it is fetched; empty if nobody gives it without being asked.
        size: in bytes; 0 if nobody whom we read says.
        sha256, md5: either, or none if nobody whom we read says.
        source: who says so.
        photos: whether it holds photos alone, and no table.
        optional: whether the data set is whole without it.
    """

    name: str
    url: str
    size: int = 0
    sha256: str = ""
    md5: str = ""
    source: str = ""
    photos: bool = False
    optional: bool = False


def fetch(archive: Archive, folder: Path, *, title: str, how: str, track: Track = untracked) -> Path:
    """The archive in `folder`, where it is left for the next time; what an earlier try had fetched is gone on with.

    Args:
        archive: which.
        folder: where.
        title: the data set's, for messages.
        how: what to do instead, for messages.
        track: shows the progress, in MiB.

    Raises:
        UserError: if it cannot be had.
        OSError: if it cannot be written.
    """
    place = folder / archive.name
    if place.is_file():
        return place
    storage.make_folder(folder)
    part = place.with_name(f"{place.name}.part")
    size = f" ({archive.size / 1e9:.2f} GB)" if archive.size else ""
    warn(f"fetching {archive.url}{size} to {place}")
    try:
        came, whole = _append(archive.url, part, partial(track, what=f"{archive.name}, MiB"))
        problem = "" if came == whole or not whole else f"{came} of {whole} bytes came; the same command goes on"
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        problem = str(getattr(error, "reason", error)) or type(error).__name__
    if not problem and not _is_right(archive, part):
        problem = f"{came} bytes with another checksum came"
        part.unlink()
    if problem:
        raise UserError(f"{title} cannot be fetched ({problem}); get {archive.url} some other way and give {how}")
    part.replace(place)
    return place


def _append(url: str, part: Path, track: Track) -> tuple[int, int]:
    """Bytes that are there afterwards, and that there should be; 0 if the server does not say."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to fetch
            return start, start
        raise
    with response:
        start = start if response.status == 206 else 0  # else the server sends all of it again
        length = int(response.headers.get("Content-Length") or 0)
        blocks = iter(partial(response.read, BLOCK), b"")
        try:
            with open(part, "ab" if start else "wb") as file:
                for block in track(blocks, total=-(-length // BLOCK)):
                    file.write(block)
                return file.tell(), length and start + length
        except OSError as error:
            if error.errno is not None and error.filename is None and not isinstance(error, _NETWORK):
                raise OSError(error.errno, error.strerror, str(part)) from error  # of the disk
            raise


_NETWORK = (TimeoutError, ConnectionError, ssl.SSLError)


def _is_right(archive: Archive, place: Path) -> bool:
    """Whether size and checksum are those that are published, as far as they are."""
    if archive.size and place.stat().st_size != archive.size:
        return False
    if not (archive.sha256 or archive.md5):
        return True
    with open(place, "rb") as file:
        found = hashlib.file_digest(file, "sha256" if archive.sha256 else "md5").hexdigest()
    return found == (archive.sha256 or archive.md5)
