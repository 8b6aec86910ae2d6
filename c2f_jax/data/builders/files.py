"""What lies at `dataset.path`: an unpacked folder, an archive, or a folder of archives. Nothing is unpacked to read it.

A file is asked for by the end of its path, as the official layout has it (`images.txt`, `cars_train/00001.jpg`): in
which folders all of it has been wrapped since does not matter. Names come from tables that anybody may have written, so
none leads out of the folder.
"""

import hashlib
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from c2f_jax import storage
from c2f_jax.data import images
from c2f_jax.errors import UserError, as_text

SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip")
MANY = 64  # a folder with more folders than that holds classes, and wraps nothing

_ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


class Files:
    """The files of one data set, wherever they lie."""

    def __init__(self, path: Path, archives: Sequence[Path], tables: str, photos: Collection[str] = ()):
        """Reads nothing yet.

        Args:
            path: the folder, or the archive.
            archives: those to look into.
            tables: a regular expression, of the members of archives that `read` will be asked for.
            photos: names of archives, without suffixes, that hold no table.
        """
        self.path, self._tables, self._photos = path, re.compile(tables), photos
        self.archives = tuple(archives)
        self._candidates: dict[str, list[Path]] = {}

    # --- Tables ---

    def read(self, name: str) -> bytes:
        """What a table holds.

        Raises:
            UserError: if there is none.
        """
        content = self.find(name)
        if content is None:
            raise UserError(f"{self.path}: {name} is missing; unpack the whole of the official archive")
        return content

    def find(self, name: str) -> bytes | None:
        """What a table holds; None if there is none."""
        place = self._place(name)
        if place is not None:
            return storage.read_bytes(place)
        return self._members.get(name)

    def text(self, name: str) -> str:
        """`read` of UTF-8, with or without a byte order mark; raises UserError if it is none."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} is not a text file in UTF-8") from error

    def key(self, tables: Sequence[str], optional: Sequence[str] = ()) -> str:
        """Tells data sets apart: by what unpacked tables say, by the dates of archives, and by which options are there.

        optional: names of folders, or of archives without suffixes.
        """
        whole = hashlib.sha256()
        for archive in self.archives:
            state = archive.stat()
            whole.update(f"{as_text(archive.name)} {state.st_size} {state.st_mtime_ns}\0".encode())
        for name in tables:
            place = self._place(name)
            whole.update(b"\0" if place is None else storage.read_bytes(place) + b"\1")
        whole.update("\0".join(name for name in optional if self.holds(name)).encode())
        return whole.hexdigest()[:16]

    def holds(self, name: str) -> bool:
        """Whether there is a folder of that name, or an archive."""
        return any(stem(archive.name) == name for archive in self.archives) or bool(self._parents(name))

    @cached_property
    def _members(self) -> dict[str, bytes]:
        """Tables in archives, by every end of their paths; of two the one that is wrapped less."""
        found: dict[str, tuple[int, bytes]] = {}
        for archive in self.archives:
            if stem(archive.name) in self._photos:
                continue
            for member, content in _members(archive, lambda name: bool(self._tables.search(name))):
                for end in _ends(member):
                    if end not in found or len(member) < found[end][0]:
                        found[end] = len(member), content
        return {end: content for end, (_, content) in found.items()}

    # --- Photos ---

    def photos(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of those that are there: of the folder in the order of `names`, then of archives in theirs."""
        left = dict.fromkeys(names)
        for name in names:
            place = self._place(name)
            if place is not None:
                del left[name]
                yield name, storage.read_bytes(place)

        def wanted(member: str) -> str | None:
            return next((end for end in _ends(member) if end in left), None)

        for archive in self.archives if left else ():
            for member, content in _members(archive, lambda name: wanted(name) is not None):
                yield str(wanted(member)), content

    def _place(self, name: str) -> Path | None:
        """Where in the folder a file of that name is."""
        parent, _, _ = name.rpartition("/")
        return next((base / name for base in self._parents(parent) if (base / name).is_file()), None)

    def _parents(self, parent: str) -> list[Path]:
        """The folders in which there is a folder `parent`."""
        if parent not in self._candidates:
            if parent.startswith("/") or ".." in parent.split("/") or "\0" in parent:
                raise UserError(f"{self.path}: a table names {parent}, which leads out of the data set; mend the table")
            self._candidates[parent] = [base for base in self._bases if (base / parent).is_dir()]
        return self._candidates[parent]

    @cached_property
    def _bases(self) -> list[Path]:
        """The folder itself and those in it, two levels deep, that may wrap the layout."""
        if not self.path.is_dir():
            return []
        levels = [[self.path]]
        for _ in range(2):
            levels.append([])
            for folder in levels[-2]:
                inside = [place for place in sorted(folder.iterdir()) if place.is_dir()]
                inside = [place for place in inside if not images.is_hidden(place.name)]
                levels[-1] += inside if len(inside) <= MANY else []
        return [folder for level in levels for folder in level]


def stem(name: str) -> str:
    """An archive's name without its suffixes; other names as they are."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def open_files(path: Path, *, known: Collection[str], tables: str, photos: Collection[str] = ()) -> Files:
    """The data set at `path`.

    Args:
        path: a folder, or an archive.
        known: names of the official archives, without suffixes; those that lie in the folder are looked into.
        tables, photos: see `Files`.

    Raises:
        UserError: if there is nothing.
    """
    if not path.exists():
        raise UserError(f"dataset.path: there is no {path}")
    if not path.is_dir():
        return Files(path, [path], tables, photos)
    archives = [
        place
        for place in sorted(path.iterdir())
        if place.name.lower().endswith(SUFFIXES) and stem(place.name) in known and place.is_file()
    ]
    return Files(path, archives, tables, photos)


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Writes the wanted members below `folder`; what leads out of it is refused.

    Raises:
        UserError: if it is not a whole archive.
    """
    for member, content in _members(archive, wanted):
        name = member.removeprefix("./")
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{archive}: holds {member}, which leads out of where it is unpacked; fetch it again")
        storage.make_folder((folder / name).parent)
        storage.write_bytes(folder / name, content)


def _ends(member: str) -> Iterator[str]:
    """`a/b/c`, `b/c`, `c`."""
    rest = member.removeprefix("./")
    while rest:
        yield rest
        rest = rest.partition("/")[2]


def _members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name, with forward slashes, and content of each wanted file in an archive."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                for entry in zipped.infolist():
                    name = entry.filename.replace("\\", "/")
                    if not entry.is_dir() and wanted(name):
                        _check_size(path, name, entry.file_size)
                        yield name, zipped.read(entry)
        else:
            with tarfile.open(path) as tarred:
                for member in tarred:
                    stream = tarred.extractfile(member) if wanted(member.name) else None
                    if stream is not None:
                        _check_size(path, member.name, member.size)
                        yield member.name, stream.read()
                # A damaged header ends the loop as if the archive ended there; the checksum at the end of what is
                # compressed tells.
                while tarred.fileobj is not None and tarred.fileobj.read(1 << 20):
                    pass
    except (*_ARCHIVE_ERRORS, EOFError, KeyError, OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a whole tar or zip archive ({' '.join(str(error).split())}); "
            "fetch it again, or give another --config.dataset.path"
        ) from error


def _check_size(path: Path, name: str, size: int) -> None:
    if size > images.MAX_BYTES:
        raise UserError(f"{path}: {name} has {size / 2**30:.1f} GiB; at most {images.MAX_BYTES >> 30} are read")
