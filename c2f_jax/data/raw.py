"""A photo of any shape -> the raw image: R x R pixels that views are cut from, and their place in the photo."""

import math
from typing import NamedTuple

import numpy as np

from c2f_jax.data.images import resized

MIDDLE = np.array([0.5, 0.5], np.float32)
STRIP = 4  # times as long as wide: a longer photo is scaled window by window, since all of it would be too large


class Raw(NamedTuple):
    """One of two ways from a photo to a raw image.

    Squeezed, each side is scaled on its own (WS-DAN): the raw image is all of the photo. With its aspect kept, the
    photo is scaled until its shorter side has R pixels, and the raw image is a square window that slides along the
    longer one: whatever its shape, a photo is seen with the same resolution along both sides, and nothing is padding.

    Attributes:
        size: R.
        keep_aspect: which.
    """

    size: int
    keep_aspect: bool

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """What `scale` makes of a photo: R by R, or with its aspect kept the shorter side R; a strip stays as it is."""
        if not self.keep_aspect:
            return self.size, self.size
        short = min(height, width)
        if max(height, width) > STRIP * short:
            return height, width
        # In whole numbers, so that it is the same everywhere; half a pixel up.
        return (2 * self.size * height + short) // (2 * short), (2 * self.size * width + short) // (2 * short)

    def scale(self, photo: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> all of it, antialiased, in the `shape` that it is to have."""
        return resized(photo, self.shape(*photo.shape[:2]))

    def cut(self, photo: np.ndarray, place: np.ndarray = MIDDLE) -> dict[str, np.ndarray]:
        """The raw image, and where it lies; the same from a photo as from what `scale` makes of it.

        Args:
            photo: uint8 [H, W, 3].
            place: (y, x) from 0 to 1, between the first and the last place that a window can take.

        Returns:
            `image` uint8 [R, R, 3] and `window` float32 [4]: ymin, xmin, ymax, xmax in fractions of the photo's sides.
        """
        photo = self.scale(photo)
        height, width = photo.shape[:2]
        # A squeezed photo is square by now.
        side = min(height, width)
        # Not by arrays, which take longer for two numbers, and that once a photo.
        top = math.floor(float(place[0]) * (height - side) + 0.5)
        left = math.floor(float(place[1]) * (width - side) + 0.5)
        corners = (top / height, left / width, (top + side) / height, (left + side) / width)
        window = np.array(corners, np.float32)
        square = photo[top : top + side, left : left + side]
        return {"image": square if side == self.size else resized(square, (self.size,) * 2), "window": window}
