"""Image files of every usual kind -> uint8 [H, W, 3], or one kind of error with a short reason."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# Also kinds that Pillow may not know: better named as unreadable than passed over in silence.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".tga"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".avif", ".heic", ".heif"),
)

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """Bytes that are not a whole image in a known format. Its message is a short reason without the file's name."""


def decode(source: bytes | str | os.PathLike[str]) -> np.ndarray:
    """The picture as people see it.

    Turned upright as EXIF says; the first frame of an animation; grey repeated; palette and CMYK converted (colour
    profiles are not applied); transparent places show white; 16-bit grey levels scaled to 8 bits.

    Args:
        source: an image file's bytes, or its path.

    Returns:
        uint8 [H, W, 3].

    Raises:
        UnreadableImage: if the file is missing, empty, cut short, damaged, not an image, or unreasonably large.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not data:
            raise UnreadableImage("empty file")
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.array(_to_rgb(_upright(image)))
    except UnreadableImage:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnreadableImage(_reason(error)) from error


def find_images(root: str | os.PathLike[str]) -> list[str]:
    """Files below `root` with the suffix of an image, in any case; hidden ones are passed over, links are followed.

    Each folder is looked into once, by a path without links where there is one: links to a folder above, or to and fro
    between two, would otherwise multiply what they hold.

    Returns:
        Paths relative to `root`, with forward slashes, sorted.

    Raises:
        OSError: if a folder cannot be listed.
    """
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data say nothing about the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, which have no known range")
    if image.mode.startswith("I"):  # Pillow would clip at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise UnreadableImage("32-bit pixels, which have no known range")
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode.endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return "far too many pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
