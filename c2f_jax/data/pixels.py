"""Pictures of every mode that Pillow knows -> uint8 RGB: what people see, on an sRGB screen, before white."""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

STRIP_PIXELS = 1 << 22  # converted at a time: what a conversion holds besides its end is bounded by that
OUTLIERS = 0.1  # per cent of the pixels at either end that may lie beyond the range that is shown
SAMPLE = 1 << 20  # pixels that the range is told from

# TIFF tags
_BITS, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT = 258, 262, 281, 339

_GREY = ("1", "L", "LA", "La")
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}  # colour space of a profile -> mode it is for

Convert = Callable[[Image.Image], np.ndarray]  # a strip -> uint8 [h, w, 3], or [h, w, 1] for grey


def to_rgb(image: Image.Image, profile: bytes | None) -> np.ndarray:
    """A loaded image -> uint8 [H, W, 3].

    - Transparent places show white.
    - Colours are brought to sRGB by `profile` (ICC) where it is for this kind of image and is not sRGB already.
      A damaged one is passed over.
    - 16-bit grey is scaled by its full range: 2^16 - 1, or what a TIFF says its samples' bits or maximum are.
    - 32-bit integers within [0, 65535] are taken as 16-bit; floats within [0, 1] as shares of white. All others have no
      range that is known: each image is stretched over its own, without the `OUTLIERS` at either end. So brightness
      cannot be compared between such images; scale them beforehand where it matters. NaN is black, an infinite level
      the end of the range, and an image without any range grey.
    """
    convert = _levels(image) if image.mode == "F" or image.mode.startswith("I") else _colours(image, profile)
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        whole = convert(image)
        if whole.shape[2] == 3:  # as nearly always: it is not copied once more
            return whole
    result = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        # A whole image is not copied.
        strip = image if bottom - top == image.height else image.crop((0, top, image.width, bottom))
        result[top:bottom] = convert(strip)
    return result


def is_plain(image: Image.Image, profile: bytes | None) -> bool:
    """Whether `to_rgb` would give the image's own levels as they are."""
    plain = image.mode == "RGB" and "transparency" not in image.info
    return plain and (not profile or _to_srgb(profile, "RGB") is None)


def _colours(image: Image.Image, profile: bytes | None) -> Convert:
    transparent = image.mode.upper() in ("LA", "PA", "RGBA") or "transparency" in image.info
    kind = "L" if image.mode in _GREY else image.mode if image.mode in ("CMYK", "LAB") else "RGB"
    transform = _to_srgb(profile, kind) if profile else None
    if kind == "LAB" and transform is None:
        transform = _to_srgb(None, kind)

    def convert(strip: Image.Image) -> np.ndarray:
        if transparent:
            if strip.mode in ("La", "PA"):
                strip = strip.convert("LA" if strip.mode == "La" else "RGBA")
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        if transform is not None:
            return np.asarray(ImageCms.applyTransform(strip if strip.mode == kind else strip.convert(kind), transform))
        return np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))

    return convert


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes | None, kind: str) -> ImageCms.ImageCmsTransform | None:
    """From `profile` (None: that of CIE L*a*b*) to sRGB; None if it is of another kind of image, sRGB, or damaged."""
    try:
        source = ImageCms.ImageCmsProfile(
            ImageCms.createProfile("LAB") if profile is None else BytesIO(profile)  # D50, as in TIFF
        )
        if _MODES.get(source.profile.xcolor_space) != kind:
            return None
        if kind == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), kind, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _levels(image: Image.Image) -> Convert:
    """For grey of more than 8 bits, or floats."""
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == 0
    unsigned = image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)
    key = image.info.get("transparency")

    def numbers(part: Image.Image) -> np.ndarray:
        levels = np.asarray(part)
        return levels.view(np.uint32) if unsigned else levels

    low, high = _range(image, numbers, tags)

    def convert(strip: Image.Image) -> np.ndarray:
        levels = numbers(strip)
        if high > low:
            share = (levels.astype(np.float64) - low) / (high - low)
            share = np.clip(np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
        else:
            share = np.full(levels.shape, 0.5)
        grey = np.floor(255.0 * (1.0 - share if inverted else share) + 0.5).astype(np.uint8)
        if isinstance(key, int):
            grey[levels == key] = 255
        return grey[..., None]

    return convert


def _range(image: Image.Image, numbers: Callable[[Image.Image], np.ndarray], tags: dict) -> tuple[float, float]:
    """The levels that are shown black and white."""
    if image.mode.startswith("I;"):
        (bits, *_), top = tags.get(_BITS, (16,)), tags.get(_MAX_SAMPLE)
        top = top[0] if isinstance(top, tuple) else top
        full = (1 << bits) - 1 if 8 < bits < 16 else 65535
        return 0.0, float(top) if isinstance(top, int) and 255 < top < full else float(full)
    rows = max(1, STRIP_PIXELS // image.width)
    step = max(1, image.width * image.height // SAMPLE)
    low, high, some = np.inf, -np.inf, []
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        levels = numbers(strip).ravel()
        levels = levels[np.isfinite(levels)]
        if levels.size:
            low, high = min(low, float(levels.min())), max(high, float(levels.max()))
            some.append(levels[::step].astype(np.float64))
    known = 1.0 if image.mode == "F" else 65535.0
    if low >= 0.0 and high <= known:
        return 0.0, known
    if not some:
        return 0.0, 0.0
    first, last = (float(value) for value in np.percentile(np.concatenate(some), [OUTLIERS, 100.0 - OUTLIERS]))
    return (first, last) if last > first else (low, high)
