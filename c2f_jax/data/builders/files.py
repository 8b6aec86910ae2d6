"""What lies at `dataset.path`: an unpacked folder, an archive, or a folder of archives. Nothing is unpacked to read it.

A file is asked for by the end of its path, as the official layout has it (`images.txt`, `cars_train/00001.jpg`): in
which folders all of it has been wrapped since does not matter. Names come from tables that anybody may have written, so
none leads out of the folder.
"""

import hashlib
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from c2f_jax import storage
from c2f_jax.data import images
from c2f_jax.errors import UserError, as_text

SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip")
MANY = 64  # a folder with more folders than that holds classes, and wraps nothing
DEPTH = 6  # of folders that wrap the layout
MOST = 4096  # of them, should `dataset.path` name much more than a data set
OF_SYSTEMS = ("thumbs.db", "desktop.ini")  # what comes and goes while somebody looks into a folder

_ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


class Files:
    """The files of one data set, wherever they lie."""

    def __init__(
        self,
        path: Path,
        archives: Sequence[Path],
        tables: str,
        photos: Collection[str] = (),
        optional: Collection[str] = (),
        how: str = "",
    ):
        """Reads nothing yet.

        Args:
            path: the folder, or the archive.
            archives: those to look into.
            tables: a regular expression, of the members of archives that `read` will be asked for.
            photos: names of archives, without suffixes, that hold no table.
            optional: names of folders that may lie beside `path` as well.
            how: to give the data set, for messages.
        """
        self.path, self._tables, self._photos, self.how = path, re.compile(tables), photos, how
        self.archives = tuple(archives)
        self._optional, self._found_one = optional, False
        self._candidates: dict[str, list[Path]] = {}

    # --- Tables ---

    def read(self, name: str) -> bytes:
        """What a table holds.

        Raises:
            UserError: if there is none.
        """
        content = self.find(name)
        if content is None and not self._found_one:
            below = " and in the folders below" if self.path.is_dir() else ""
            raise UserError(
                f"{self.path}: {name} is missing there{below}; give the unpacked folder, or {self.how or 'its archive'}"
            )
        if content is None:
            raise UserError(f"{self.path}: {name} is missing; unpack the whole of the official archive")
        return content

    def find(self, name: str) -> bytes | None:
        """What a table holds; None if there is none."""
        place = self._place(name)
        content = self._members[0].get(name) if place is None else storage.read_bytes(place)
        self._found_one |= content is not None
        return content

    def text(self, name: str) -> str:
        """`read` of UTF-8, with or without a byte order mark; raises UserError if it is none."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} is not a text file in UTF-8") from error

    def key(self, tables: Sequence[str], folders: Sequence[str]) -> tuple[str, str]:
        """Tells data sets apart, without reading one: by what unpacked tables say, and by the files beside them.

        The second tells by name, size and date of archives and of all files in `folders`, wherever the data set lies:
        other photos, boxes or masks make it another one. It is empty if there are none of these.
        """
        of_tables, of_files = hashlib.sha256(), hashlib.sha256()
        for name in tables:
            place = self._place(name)
            of_tables.update(b"\0" if place is None else storage.read_bytes(place) + b"\1")
        count = 0
        for archive in self.archives:
            count += 1
            of_files.update(_state(archive.name, archive.stat()))
        for name in folders:
            for base in self._parents(name):
                for below, status in _below(base / name):
                    count += 1
                    of_files.update(_state(below, status))
        return of_tables.hexdigest()[:16], of_files.hexdigest()[:16] if count else ""

    def places(self, name: str) -> bool:
        """Whether a file of that name lies in the folder; archives are not looked into."""
        return self._place(name) is not None

    def holds(self, name: str) -> bool:
        """Whether there is a folder of that name, or an archive, or a folder in one that has tables."""
        if any(stem(archive.name) == name for archive in self.archives) or self._parents(name):
            return True
        return name in self._members[1]

    @cached_property
    def _members(self) -> tuple[dict[str, bytes], set[str]]:
        """Tables in archives, by every end of their paths, the less wrapped one of two; and names of folders."""
        found: dict[str, tuple[int, bytes]] = {}
        folders: set[str] = set()

        def wanted(member: str) -> bool:
            folders.update(member.split("/")[:-1])
            return bool(self._tables.search(member))

        for archive in self.archives:
            if stem(archive.name) in self._photos:
                continue
            for member, content in _members(archive, wanted):
                for end in _ends(member):
                    if end not in found or len(member) < found[end][0]:
                        found[end] = len(member), content
        return {end: content for end, (_, content) in found.items()}, folders

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
            beside = [self.path.absolute().parent] if parent.partition("/")[0] in self._optional else []
            self._candidates[parent] = [base for base in (*self._bases, *beside) if (base / parent).is_dir()]
        return self._candidates[parent]

    @cached_property
    def _bases(self) -> list[Path]:
        """The folder itself and those below it that may wrap the layout, from above to below."""
        return _wrapping(self.path)


def _wrapping(path: Path) -> list[Path]:
    found, level = [], [path] if path.is_dir() else []
    for _ in range(DEPTH):
        found += level
        level = [place for folder in level for place in _folders(folder)][: max(0, MOST - len(found))]
    return found + level


def _folders(folder: Path) -> list[Path]:
    """Those in a folder, unless they are many."""
    with suppress(PermissionError), os.scandir(folder) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir() and not images.is_hidden(entry.name))
        return [folder / name for name in inside] if len(inside) <= MANY else []
    return []


def _below(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Path below `folder` and state of each of the files in it, in a fixed order; links are followed."""
    left, seen = [""], set()
    while left:
        above = left.pop()
        status = os.stat(folder / above)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder / above) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if images.is_hidden(entry.name) or entry.name.lower() in OF_SYSTEMS:
                    continue
                if entry.is_dir():
                    left.append(f"{above}{entry.name}/")
                elif entry.is_file():
                    yield f"{above}{entry.name}", entry.stat()


def _state(name: str, status: os.stat_result) -> bytes:
    return f"{as_text(name)} {status.st_size} {status.st_mtime_ns}\0".encode()


def stem(name: str) -> str:
    """An archive's name without its suffixes; other names as they are."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def open_files(
    path: Path,
    *,
    known: Collection[str],
    tables: str,
    names: Sequence[str],
    photos: Collection[str] = (),
    optional: Collection[str] = (),
    how: str = "",
) -> Files:
    """The data set at `path`.

    Args:
        path: a folder, or an archive.
        known: names of the official archives, without suffixes; those that lie in the folder are looked into. If
            there are none, nor tables, then those of a folder below, or the only archive, whatever it is called.
        tables, photos, how: see `Files`.
        names: of the tables.
        optional: names of folders, or of archives without suffixes, that may lie beside `path` as well.

    Raises:
        UserError: if there is nothing.
    """
    if not path.exists():
        raise UserError(f"dataset.path: there is no {path}")
    beside = [place for place in _archives(path.absolute().parent) if stem(place.name) in optional]
    if not path.is_dir():
        others = [place for place in beside if place.name != path.name]
        return Files(path, [path, *others], tables, (), optional, how)
    found = [place for place in _archives(path) if stem(place.name) in known]
    if not found and not any(Files(path, (), tables).places(name) for name in names):
        every = [_archives(folder) for folder in _wrapping(path)]
        of_known = ([place for place in places if stem(place.name) in known] for places in every)
        found = next((places for places in of_known if places), [])
        if not found and sum(map(len, every)) == 1:
            found = [place for places in every for place in places]
    there = {stem(place.name) for place in found}
    found += [place for place in beside if stem(place.name) not in there]
    return Files(path, found, tables, photos if len(found) > 1 else (), optional, how)


def _archives(folder: Path) -> list[Path]:
    """Those in a folder, by name."""
    with suppress(OSError):
        return [
            place for place in sorted(folder.iterdir()) if place.name.lower().endswith(SUFFIXES) and place.is_file()
        ]
    return []


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
