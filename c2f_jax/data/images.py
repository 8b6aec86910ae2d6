"""Image files of every usual kind -> uint8 [H, W, 3], or one kind of error with a short reason.

What one file may take is bounded, whatever it says of itself: `MAX_BYTES` to read, `MAX_PIXELS` to decode, `MAX_SCANS`
for a JPEG; and nothing is handed to another program, as Pillow would do with EPS.
"""

import io
import os
import stat
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from c2f_jax import storage
from c2f_jax.data import pixels, png

# Also kinds that Pillow may not know: better named as unreadable than passed over in silence.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".tga"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif", ".hif"),
    *(".mpo", ".apng", ".avifs", ".heics", ".heifs", ".jxl"),
)
# Of which pixels can be had without starting another program; the first that takes the bytes reads them.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "TGA")

MAX_BYTES = 1 << 30
MAX_PIXELS = 1 << 27  # 134 million: a 100-megapixel camera's, and some to spare
MAX_SCANS = 1 << 32  # scans of a JPEG times its pixels: 30 of the largest; usual progressive ones have 10

# From 89 million pixels on Pillow warns; `MAX_PIXELS` is below its own end.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_TURNS = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.transpose(1, 0, 2),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: array[::-1, ::-1].transpose(1, 0, 2),
    8: lambda array: np.rot90(array, 1),
}


class UnreadableImage(ValueError):
    """A file that gives no picture. Its message is a short reason without the file's name.

    Raised as such, it is a verdict on the file's content: not a whole image in a known format.
    """


class OutOfReach(UnreadableImage):
    """The file, or the memory for it, could not be had this time: no verdict on its content, and not to be kept."""


class Photo(NamedTuple):
    """A picture: `image` uint8 [h, w, 3], and the size that the file has, turned upright."""

    image: np.ndarray
    height: int
    width: int


Source = bytes | str | os.PathLike[str] | np.ndarray | Image.Image
Shape = Callable[[int, int], tuple[int, int]]  # height and width -> those to scale to


def decode(source: Source, *, min_side: int | None = None) -> np.ndarray:
    """The picture as people see it, uint8 [H, W, 3]: `decode_photo` without the file's own size."""
    return decode_photo(source, min_side=min_side).image


def decode_photo(
    source: Source, *, min_side: int | None = None, max_pixels: int | None = None, shape: Shape | None = None
) -> Photo:
    """The picture as people see it.

    Turned upright as EXIF says; the first frame of an animation, page of a TIFF, or picture of several; colours brought
    to sRGB; transparent places white; grey levels of 16 and 32 bits and floats scaled to 8 bits: see `pixels.to_rgb`.

    Args:
        source: an image file's bytes, or its path; or a picture in memory: of Pillow, or an array (see `from_array`).
        min_side: if the shorter side is to be reduced to so many pixels or more, a JPEG may be decoded at a half, a
            quarter or an eighth of its size, with twice that many left at least: quicker, and by an antialiased
            reduction afterwards hardly told apart. None: the file's own size.
        max_pixels: of a file; None: `MAX_PIXELS`. A JPEG's scans are limited in proportion.
        shape: what to scale the upright picture to, as `resized` does; told what has been decoded. None: as it is.

    Raises:
        OutOfReach: if the file cannot be read or memory is short: it may be had another time.
        UnreadableImage: if the file is empty, cut short, damaged, not an image, or unreasonably large.
        ValueError: if an array is no picture.
    """
    if isinstance(source, np.ndarray):
        array = from_array(source)
        return Photo(_scaled(array, shape), *array.shape[:2])
    if isinstance(source, Image.Image):
        try:
            return _converted(source, None, source.size, shape)
        except Exception as error:  # it may not have been read from its file yet
            raise UnreadableImage(_reason(error)) from error
    data = source if isinstance(source, bytes) else _read(source)
    if not data:
        raise UnreadableImage("empty file")
    try:
        try:
            return _decoded(data, None, min_side, max_pixels or MAX_PIXELS, shape)
        except ValueError:
            if isinstance(data, bytes) and data.startswith(png.SIGNATURE):  # which has perhaps too much text
                return _decoded(*png.without_text(data), min_side, max_pixels or MAX_PIXELS, shape)
            raise
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise OutOfReach("not enough memory") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnreadableImage(_reason(error)) from error


def _read(path: storage.Name) -> bytes:
    try:
        if storage.is_remote(path):
            return storage.read_bytes(storage.path(path), MAX_BYTES + 1)
        # Without waiting for somebody to write into a pipe.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage("not a file")
            if status.st_size > MAX_BYTES:
                raise UnreadableImage(f"{status.st_size / 2**30:.1f} GiB; at most {MAX_BYTES / 2**30:.0f} are read")
            return file.read()
    except OSError as error:
        raise OutOfReach((error.strerror or str(error) or type(error).__name__).lower()) from error
    except MemoryError as error:
        raise OutOfReach("not enough memory") from error


def find_images(root: storage.Name) -> list[str]:
    """Files below `root` with the suffix of an image, in any case; hidden ones are passed over, links are followed.

    Each folder is looked into once, by a path without links where there is one: links to a folder above, or to and fro
    between two, would otherwise multiply what they hold.

    Returns:
        Paths relative to `root`, with forward slashes, sorted.

    Raises:
        OSError: if a folder cannot be listed.
    """
    if storage.is_remote(root):
        below = storage.find(storage.path(root))
        return [path for path in below if path.lower().endswith(SUFFIXES) and not any(map(is_hidden, path.split("/")))]
    found: list[str] = []
    seen: set[str] = set()
    folders, links = [""], list[str]()
    while folders or links:
        if not folders:
            links.sort(key=lambda path: (path.count("/"), path))
            folders.append(links.pop(0))
        folder = folders.pop()
        here = os.path.realpath(os.path.join(root, folder))
        if here in seen:
            continue
        seen.add(here)
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    if not Path(here).is_relative_to(os.path.realpath(entry.path)):
                        links.append(path)
                elif entry.name.lower().endswith(SUFFIXES):
                    found.append(path)
    return sorted(found)


# Folders that systems and programs leave beside people's own, in lower case.
_SYSTEM = {
    *("__macosx", "temporary items", "network trash folder"),  # macOS
    *("$recycle.bin", "system volume information", "found.000"),  # Windows
    *("lost+found", "lost.dir"),  # Linux, Android
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),  # network storage
    *("__pycache__", "ipynb_checkpoints"),
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's own: dot files (macOS's ._* among them) and system folders."""
    return name.startswith(".") or name.lower() in _SYSTEM


def _decoded(data: bytes, profile: bytes | None, min_side: int | None, max_pixels: int, shape: Shape | None) -> Photo:
    formats = _formats()
    if data[4:8] == b"ftyp" and "HEIF" not in formats:
        raise OutOfReach("HEIC needs the package pillow-heif: pip install pillow-heif")
    with closing(Image.open(io.BytesIO(data), formats=formats)) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise UnreadableImage(f"far too many pixels; at most {max_pixels // 10**6} million are read")
        if image.format == "TIFF":
            _mend_planes(image)
        if image.format in ("JPEG", "MPO"):
            if _may_have_scans(image, data) and (
                data.count(b"\xff\xda") * width * height > MAX_SCANS // MAX_PIXELS * max_pixels
            ):
                raise UnreadableImage("far too many scans")
            if min_side is not None:
                image.draft(None, (2 * min_side, 2 * min_side))
        return _converted(image, profile, (width, height), shape)


def _may_have_scans(image: Any, data: bytes) -> bool:
    """Whether an opened JPEG may have several: not if the first one has all components, and they are sequential.

    Then nothing behind it is decoded, and need not be searched for more.
    """
    end = image.fp.tell()  # Pillow has read the first scan's header
    start = data.rfind(b"\xff\xda", 0, end)
    whole = start >= 0 and end == start + 2 + int.from_bytes(data[start + 2 : start + 4])
    return bool(image.info.get("progressive")) or not (whole and data[start + 4] == image.layers)


def _mend_planes(image: Any) -> None:
    """Pillow reads planes that are not packed (PlanarConfiguration 2) as of 8 bits, be they of 16: only noise."""
    tags = image.tag_v2
    if tags.get(284) != 2 or set(tags.get(258, ())) != {16}:
        return
    order = "B" if tags.prefix == b"MM" else "L"
    image.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        if tile.codec_name == "raw" and isinstance(tile.args, tuple) and tile.args[0] in ("R", "G", "B", "A")
        else tile
        for tile in image.tile
    ]


def _converted(image: Image.Image, profile: bytes | None, size: tuple[int, int], shape: Shape | None) -> Photo:
    """profile: in place of the image's own; size: width and height that the file says, which may be decoded smaller."""
    width, height = size
    reduced = image.size != size
    image.load()
    orientation = _orientation(image)
    profile = profile or image.info.get("icc_profile")
    if shape is not None and orientation not in _TURNS and pixels.is_plain(image, profile):
        # Scaled before it becomes an array: an array of all of it would be made for nothing.
        height, width = (height, width) if reduced else (image.height, image.width)
        small = _resize(image, shape(image.height, image.width))
        return Photo(np.asarray(small), height, width)
    array = pixels.to_rgb(image, profile)
    if orientation in _TURNS:
        array = np.ascontiguousarray(_TURNS[orientation](array))
        if orientation >= 5:
            width, height = height, width
    if not reduced:
        height, width = array.shape[:2]
    return Photo(_scaled(array, shape), height, width)


def resized(photo: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> [*shape, 3], bilinear and antialiased."""
    return photo if photo.shape[:2] == shape else np.asarray(_resize(Image.fromarray(photo), shape))


def _resize(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    return image if image.size == shape[::-1] else image.resize(shape[::-1], Image.Resampling.BILINEAR)


def _scaled(array: np.ndarray, shape: Shape | None) -> np.ndarray:
    return array if shape is None else resized(array, shape(*array.shape[:2]))


def from_array(array: np.ndarray) -> np.ndarray:
    """A picture in memory -> uint8 [H, W, 3].

    Args:
        array: [H, W] or [H, W, 1] grey, [H, W, 3] RGB, or [H, W, 4] RGBA (what is transparent becomes white); uint8, or
            floats from 0 to 1.

    Raises:
        ValueError: if it is anything else.
    """
    check_array(array)
    if array.dtype != np.uint8:
        array = np.floor(255.0 * array + 0.5).astype(np.uint8)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return pixels.to_rgb(Image.fromarray(np.ascontiguousarray(array)), None)


def check_array(array: np.ndarray) -> None:
    """Raises ValueError unless `from_array` takes it."""
    shape, floats = array.shape, np.issubdtype(array.dtype, np.floating)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ValueError(f"an array of a picture is [H, W], or [H, W, n] with n of 1, 3 or 4; got {list(shape)}")
    if not floats and array.dtype != np.uint8:
        raise ValueError(f"an array of a picture is uint8 from 0 to 255, or floats from 0 to 1; got {array.dtype}")
    if floats and not (np.all(array >= 0.0) and np.all(array <= 1.0)):
        raise ValueError("an array of floats holds levels from 0 to 1; give others as uint8 from 0 to 255")


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that are installed, ready."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """Of a loaded image, 1 to 8. Plugins that turn it themselves (HEIF, AVIF, TIFF) say 1, or nothing."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data say nothing about the pixels
        return 1


class Stored(NamedTuple):
    """How a file has its pixels: EXIF's orientation, 1 to 8, and the size before that is heeded."""

    orientation: int
    width: int
    height: int


def stored(data: bytes) -> Stored:
    """Of a file that `decode` has read."""
    with closing(Image.open(io.BytesIO(data), formats=_formats())) as image:
        turned_by_plugin = image.format in ("HEIF", "AVIF", "TIFF")
        return Stored(1 if turned_by_plugin else _orientation(image), *image.size)


def turned(points: np.ndarray, file: Stored) -> np.ndarray:
    """Places (x, y) [N, 2] on a file's pixels -> on the picture as `decode` turns it upright."""
    x, y = points[:, 0], points[:, 1]
    mirrored_x, mirrored_y = file.width - x, file.height - y
    new = {
        2: (mirrored_x, y),
        3: (mirrored_x, mirrored_y),
        4: (x, mirrored_y),
        5: (y, x),
        6: (mirrored_y, x),
        7: (mirrored_y, mirrored_x),
        8: (y, mirrored_x),
    }
    return np.stack(new.get(file.orientation, (x, y)), axis=1)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"far too many pixels; at most {MAX_PIXELS // 10**6} million are read"
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
