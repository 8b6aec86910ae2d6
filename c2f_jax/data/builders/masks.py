"""Masks of published data sets: files of one value for each pixel of their photos, as these are stored."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from c2f_jax.data.builders.layout import Photo
from c2f_jax.errors import UserError


def decode(content: bytes) -> np.ndarray:
    """Its values as the file has them, uint8 [H, W]."""
    with Image.open(BytesIO(content)) as image:
        return np.asarray(image.convert("L") if image.mode not in ("L", "P", "1") else image).astype(np.uint8)


def upright(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Turned as a photo of that EXIF orientation is."""
    image = Image.fromarray(mask)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def readable(path: Path, photo: Photo, mask: bytes) -> np.ndarray:
    """`decode` of a photo's mask; raises UserError if it is damaged. path: of the data set, for the message."""
    try:
        return decode(mask)
    except Exception as error:  # damaged files make Pillow raise nearly anything
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise UserError(f"{path}: {photo.segmentation} cannot be read ({reason}); unpack the archive again") from error


def around(trimap: np.ndarray) -> tuple[float, float, float, float] | None:
    """The object of a trimap, whose background is 2; None if there is none."""
    rows, columns = (np.flatnonzero((trimap != 2).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
