"""Where files lie: on this machine, or in a bucket of Google Cloud Storage (`gs://bucket/...`).

Whoever reads or writes data, runs or predictions goes through these functions, and need not know which it is. A place
on this machine is a `pathlib.Path`; one in a bucket is etils' path, which joins and splits like one (and is typed as
one here). What differs: a bucket has no folders, only objects whose names hold slashes; an object appears whole or not
at all, and cannot be appended to.

Emulators are reached by `STORAGE_EMULATOR_HOST`, as Google's own libraries are, and by `TENSORSTORE_GCS_HTTP_URL`,
which checkpoints need besides (docs/runs.md).
"""

import contextlib
import errno
import hashlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePath
from typing import IO, Any, cast

from c2f_jax import program
from c2f_jax.errors import UserError

SCHEME = "gs://"
REQUESTS = 32  # at a time
NAME_BYTES = 255  # of a file or folder, in all file systems in use

Name = str | os.PathLike[str]

# Of the file itself, and not of the moment.
GONE = (errno.ENOENT, errno.ENOTDIR)


def is_remote(path: Name) -> bool:
    """Whether it lies in a bucket."""
    return os.fspath(path).startswith(SCHEME)


def scheme(text: str) -> str:
    """What stands before `://`, in lower case; "" for a path on this machine."""
    before, found, _ = text.partition("://")
    return before.lower() if found and before.replace("+", "").isalnum() else ""


def path(text: Name) -> Path:
    """The place of that name; `~` is the home folder.

    Raises:
        UserError: if there is no such home folder, no bucket is named, or buckets need a package that is not there.
    """
    name = os.fspath(text)
    if is_remote(name):
        return _remote(name)
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"there is no home folder for {name}: set HOME, or give the whole path") from error


def as_path(flag: str, text: str, *, remote: bool = True) -> Path:
    """A place as a user gives it; `~` is the home folder.

    Args:
        flag: for messages: the flag or field.
        text: what was given.
        remote: whether it may lie in a bucket.

    Raises:
        UserError: if there is no such place, or none that can be used.
    """
    if not text.strip():
        raise UserError(f"{flag} is empty: give a path, or leave the flag out")
    if "\0" in text:
        raise UserError(f"{flag}: a path holds no NUL character; got {text!r}")
    if text == "-":
        raise UserError(f"{flag}: - is no stream here; give a path, or ./- for a file of that name")
    check_scheme(flag, text, ("gs",) if remote else ())
    if not scheme(text):
        for part in text.split("/"):
            _check_length(flag, part, NAME_BYTES)
    try:
        return path(text)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error


def check_scheme(flag: str, text: str, known: Sequence[str]) -> None:
    """Raises UserError if `text` is a URL of a scheme that is not among the `known` ones; `flag` names it."""
    found = scheme(text)
    if not found or (found in known and text.startswith(f"{found}://")):
        return
    if found == "file":
        raise UserError(f"{flag} takes a path without file://; got {text}")
    if found in known:
        raise UserError(f"{flag}: write {found}:// in small letters; got {text}")
    takes = " or ".join(["a path on this machine", *(f"{name}://..." for name in known)])
    raise UserError(f"{flag} takes {takes}; got {text}")


def join(root: Path, name: str) -> Path:
    """`root / name`, where `name` may be a whole path of its own, also in a bucket."""
    if scheme(name) == "gs":
        return path(name)
    return Path(name) if name.startswith("/") else root / name


def inside(folder: Path, name: str) -> Path:
    """A place in `folder` for a relative name; what no file system takes, or is taken by a folder, gets another end.

    A part of the name may have `NAME_BYTES`: the end of a longer one is a digest of all of it.
    """
    parts = [part if len(os.fsencode(part)) <= _LONGEST else _cut(part) for part in name.split("/")]
    place = folder.joinpath(*parts)
    if not is_remote(folder):
        # `a.png` may be both a file's picture and a folder's name.
        blocked = place.is_dir() or any(above.is_file() for above in place.parents if above != folder)
        place = folder / _cut(name.replace("/", "_")) if blocked else place
    return place


_LONGEST = 240  # bytes, of 255: what is written first has a longer name


def _cut(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f"{_within(stem, _LONGEST - 17 - len(os.fsencode(suffix[:16])))}-{digest}{suffix[:16]}"


def resolved(text: Any) -> str:
    """One spelling for each place."""
    return os.fspath(path(text)) if scheme(os.fspath(text)) else str(path(text).resolve())


# --- What is there ---


def exists(place: Path) -> bool:
    """Whether there is a file or folder."""
    if not is_remote(place):
        return place.exists()
    with _asked(place) as files:
        return bool(files.exists(_key(place)))


def is_dir(place: Path) -> bool:
    """Whether there is a folder; in a bucket, whether an object lies below."""
    if not is_remote(place):
        return place.is_dir()
    with _asked(place) as files:
        return bool(files.isdir(_key(place)))


def is_file(place: Path) -> bool:
    """Whether there is a file."""
    if not is_remote(place):
        return place.is_file()
    with _asked(place) as files:
        return bool(files.isfile(_key(place)))


def names(folder: Path) -> list[str]:
    """Of what is in a folder; nothing if there is none."""
    if not is_remote(folder):
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
    with _asked(folder) as files:
        try:
            found = files.ls(_key(folder), detail=False)
        except FileNotFoundError:
            return []
    return sorted({name.rstrip("/").rpartition("/")[2] for name in found} - {"", folder.name})


def find(folder: Path) -> list[str]:
    """Paths of all objects below a folder of a bucket, relative to it."""
    assert is_remote(folder)
    with _asked(folder) as files:
        found = files.find(_key(folder))
    start = len(_key(folder)) + 1
    return sorted(name[start:] for name in found if len(name) > start and not name.endswith("/"))


def states(root: Path, paths: Sequence[str]) -> dict[str, list[int] | str]:
    """Path below `root` (or whole) -> what changes when the file's content does; or why there is none."""
    places = {name: join(root, name) for name in paths}
    keys = {name: _key(place) for name, place in places.items() if is_remote(place)}
    found = {name: _state(place) for name, place in places.items() if name not in keys}
    listed: dict[str, Any] = {}
    folders: dict[str, list[str]] = {}
    for key in keys.values():
        folders.setdefault(key.partition("/")[0], []).append(os.path.dirname(key))
    # One request a thousand objects of a bucket, where asking for each would be a request each.
    for bucket, those in folders.items():
        with contextlib.suppress(FileNotFoundError), _asked(path(SCHEME + bucket)) as files:
            listed |= files.find(os.path.commonpath(those), detail=True)
    gone = os.strerror(errno.ENOENT).lower()
    for name, key in keys.items():
        info = listed.get(key)
        found[name] = gone if info is None else [int(info["size"]), int(info["generation"])]
    return {name: found[name] for name in paths}


def _state(place: Path) -> list[int] | str:
    try:
        status = place.stat()
    except ValueError as error:  # no name for a file
        return str(error)
    except OSError as error:
        if error.errno in LASTING:
            return (error.strerror or type(error).__name__).lower()
        return [0, 0, 0]
    # The time of the last change to the file's entry cannot be set, as programs that restore files do with the other.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


# What the system says of a file, and will say again.
LASTING = (*GONE, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


# --- Reading and writing ---


def read_bytes(place: Path, size: int | None = None) -> bytes:
    """What a file holds, or its first `size` bytes.

    Raises:
        OSError: if it cannot be read.
    """
    if not is_remote(place):
        with place.open("rb") as file:
            return file.read(-1 if size is None else size)
    with _asked(place) as files:
        try:
            return bytes(files.cat_file(_key(place), start=None if size is None else 0, end=size))
        except Exception as error:
            if getattr(error, "code", None) == 416:  # of an empty object nothing is a part
                return b""
            raise


def size(place: Path) -> int:
    """Bytes of a file; raises OSError if there is none."""
    if not is_remote(place):
        return place.stat().st_size
    with _asked(place) as files:
        return int(files.info(_key(place))["size"])


def read_text(place: Path, errors: str = "strict") -> str:
    """What a file of UTF-8 holds; raises OSError or UnicodeDecodeError."""
    return read_bytes(place).decode("utf-8", errors)


def write_bytes(place: Path, data: bytes) -> None:
    """Written whole or not at all: a kill or a full disk leaves the old file or the new one, never half of one.

    Raises:
        OSError: if it cannot be written.
    """
    if is_remote(place):
        with _asked(place) as files:
            files.pipe_file(_key(place), data)
        return
    with writing(place) as file:
        file.write(data)


def write_text(place: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(place, text.encode())


@contextlib.contextmanager
def writing(place: Path) -> Iterator[IO[bytes]]:
    """A binary file to write; it gets its name, in place of what has it, when the block ends without an error.

    Raises:
        OSError: if it cannot be written.
    """
    if is_remote(place):
        with tempfile.TemporaryFile() as local:
            yield local
            size = local.tell()
            local.seek(0)
            with _asked(place) as files:
                if size <= 1 << 25:
                    files.pipe_file(_key(place), local.read())
                else:
                    with files.open(_key(place), "wb") as file:
                        shutil.copyfileobj(local, file, 1 << 24)
        return
    temporary = place.with_name(f"{_within(place.name, _LONGEST)}.part")
    try:
        with _naming(temporary):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # a full disk may tell it no sooner
            temporary.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def append_text(place: Path, text: str) -> None:
    """More for a file of this machine, all of it or nothing; raises OSError if it cannot be written."""
    with _naming(place), place.open("ab", buffering=0) as file:
        before, data = os.fstat(file.fileno()).st_size, memoryview(text.encode())
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), before)
            raise


@contextlib.contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Says of which file the system speaks, where it does not itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno:
            raise OSError(error.errno, told(error), os.fspath(place)) from error
        raise


@contextlib.contextmanager
def writing_text(place: Path) -> Iterator[IO[str]]:
    """`writing` of UTF-8 with line ends as they are given, as `csv` wants it."""
    with writing(place) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        try:
            yield text
            text.flush()
        finally:
            text.detach()


def make_folder(folder: Path) -> None:
    """With those above it; a bucket needs none. Raises OSError if it cannot be made."""
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def remove(place: Path) -> None:
    """A file, if it is there."""
    if not is_remote(place):
        place.unlink(missing_ok=True)
        return
    with _asked(place) as files, contextlib.suppress(FileNotFoundError):
        files.rm_file(_key(place))


def move_folder(folder: Path, to: Path) -> None:
    """A folder, to a name that is free; in a bucket object by object."""
    if not is_remote(folder):
        folder.rename(to)
        return
    below = find(folder)
    with _asked(folder) as files:
        for name in below:
            files.cp_file(_key(folder / name), _key(to / name))
        for name in below:
            files.rm_file(_key(folder / name))


def check_name(flag: str, place: Path) -> None:
    """Raises UserError if no file of that name can be written, nor what its name is made of meanwhile; `flag` names it.

    It need not be there yet: after hours of work is late to hear of it.
    """
    _check_length(flag, place.name, _LONGEST)


def _check_length(flag: str, name: str, most: int) -> None:
    if (size := len(os.fsencode(name))) > most:
        raise UserError(f"{flag}: {_within(name, 40)}...: name too long, {size} bytes; give one of at most {most}")


def check_writable(flag: str, folder: Path) -> None:
    """Makes a folder for results, before they are worked for.

    Raises:
        UserError: if nothing can be written there; `flag` names it.
    """
    try:
        make_folder(folder)
        if is_remote(folder):
            trial = folder / f"trial.{os.getpid()}"
            write_bytes(trial, b"")
            remove(trial)
        reason = "" if is_remote(folder) or os.access(folder, os.W_OK) else "no permission"
    except OSError as error:
        reason = told(error)
    if reason:
        raise UserError(f"{flag}: nothing can be written into {folder} ({reason.lower()}); choose another place")


_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "your quota there is used up: make room",
    errno.EFBIG: "files may not be so large here (ulimit -f): raise the limit",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "give the permission, or choose another place",
    errno.EPERM: "give the permission, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file: choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs' files",
}


def failed(error: OSError) -> UserError:
    """What the system could not do with which file, in a line, with a remedy where there is one."""
    name = error.filename if error.filename is not None else ""
    place = os.fsdecode(name) if isinstance(name, str | bytes) else ""
    number = error.errno or 0
    remedy = _REMEDIES.get(number, "")
    said = UserError(f"{place}: " * bool(place) + told(error) + f"; {remedy}" * bool(remedy))
    said.__cause__ = error
    return said


def told(error: OSError) -> str:
    """What the system says, without the file's name."""
    return error.strerror or str(error) or type(error).__name__


def _within(name: str, size: int) -> str:
    """A file's name, cut to so many bytes."""
    return os.fsdecode(os.fsencode(name)[:size])


# --- Buckets ---


def _remote(name: str) -> Path:
    bucket, _, below = name.removeprefix(SCHEME).partition("/")
    if not bucket or ".." in below.split("/"):
        raise UserError(f"a place in a bucket is {SCHEME}BUCKET/PATH; got {name}")
    with program.needing("gcs"):
        import gcsfs  # noqa: F401
    _files()
    from etils import epath

    return cast(Path, epath.Path(name))


@cache
def _files() -> Any:
    """The bucket service as files. Listings are not kept: others write there, too."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it tells of every retry; we tell of the failure
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils opens it: one for both


@contextlib.contextmanager
def _asked(place: PurePath) -> Iterator[Any]:
    """The bucket service; whatever it says is an OSError of `place`."""
    try:
        yield _files()
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(place)) from error
    except OSError as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(error.errno or errno.EIO, said, os.fspath(place)) from error
    except Exception as error:  # of gcsfs, google-auth, aiohttp: they have no common base
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(errno.EIO, said, os.fspath(place)) from error


def _key(place: PurePath) -> str:
    return os.fspath(place).removeprefix(SCHEME)


def each(do: Any, items: Sequence[Any]) -> list[Any]:
    """`do` of each, several at a time: a request to a bucket is mostly waiting."""
    with ThreadPoolExecutor(REQUESTS) as executor:
        return list(executor.map(do, items))
