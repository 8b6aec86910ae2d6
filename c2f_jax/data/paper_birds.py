"""Paper birds, the embedded data set: drawn, not stored, and every image's box and parts are known.

A class is four small things on a bird: the colour of its cap, of its beak and of its tail tip, and whether its wing is
plain or barred. Pose, size, body colour, landscape and clutter say nothing about it, and the clutter wears the same
colours and bars. The bars are `STRIPE_PERIOD` pixels wide and have the mean colour of a plain wing: a view of a third
of the raw size blurs them away, so one look can know at most the first three.
"""

import itertools
from typing import Any

import numpy as np

RAW_SIZE = 192
TRAIN_SIZE, TEST_SIZE = 4096, 1024
TEST_OFFSET = 1_000_000  # test images are drawn from indices that training never uses

CAPS = {"red-capped": (198, 54, 50), "blue-capped": (48, 92, 186)}
BEAKS = {"yellow-billed": (240, 180, 46), "slate-billed": (66, 72, 88)}
TAILS = {"white-tailed": (248, 242, 228), "black-tailed": (38, 34, 38)}
WINGS = ("plain", "barred")
CLASS_NAMES = tuple(" ".join(words) for words in itertools.product(CAPS, BEAKS, TAILS, WINGS))
PART_NAMES = ("beak", "cap", "wing", "tail tip")

STRIPE_PERIOD = 2.95  # pixels; an antialiased reduction by 3 has its first zero at a period of 3
STRIPE_AMPLITUDE = 75.0  # grey levels

_BODIES = np.array(
    [(214, 168, 120), (150, 160, 132), (176, 150, 178), (140, 164, 178), (204, 186, 132), (190, 142, 130)], np.float32
)
_SKIES = np.array(
    [
        ((226, 236, 240), (250, 240, 222)),
        ((236, 226, 214), (250, 244, 230)),
        ((208, 226, 216), (240, 242, 222)),
        ((224, 216, 232), (248, 230, 224)),
        ((196, 214, 228), (232, 236, 236)),
    ],
    np.float32,
)
_HILLS = np.array(
    [(158, 182, 148), (124, 156, 140), (186, 178, 138), (176, 160, 172), (140, 166, 176), (204, 170, 140)], np.float32
)
_LEAVES = np.array(
    [(104, 142, 92), (82, 120, 104), (168, 150, 84), *CAPS.values(), *BEAKS.values(), *TAILS.values()], np.float32
)

# The bird, in units of its length: x forward, y down.
_BODY = (0.0, 0.02, 0.28, 0.17, -0.20)  # ellipses: centre x, y, half axes, turn in radians
_WING = (-0.05, 0.01, 0.21, 0.125, 0.20)
_HEAD = (0.22, -0.13, 0.15)  # circles: centre x, y, radius
_EYE = (0.265, -0.105, 0.022)
_CAP_LINE = -0.14  # the head above it is cap
_BEAK = np.array([(0.335, -0.185), (0.50, -0.09), (0.33, -0.03)], np.float32)
_TAIL = np.array([(-0.18, -0.06), (-0.12, 0.12), (-0.43, 0.23), (-0.50, 0.06)], np.float32)
_TAIL_TIP_LINE = -0.33  # the tail behind it is tip
_LEGS = np.array(
    [[(0.02, 0.16), (0.04, 0.16), (0.05, 0.28), (0.03, 0.28)], [(0.10, 0.15), (0.12, 0.15), (0.14, 0.27), (0.12, 0.27)]]
)
_PARTS = np.array([(0.40, -0.10), (0.22, -0.21), (-0.05, 0.01), (-0.40, 0.12)])  # as in PART_NAMES

_Y, _X = np.mgrid[:RAW_SIZE, :RAW_SIZE].astype(np.float32)
_GRAIN = np.random.default_rng(0).normal(0.0, 2.0, (2 * RAW_SIZE, 2 * RAW_SIZE)).astype(np.float32)


class PaperBirds:
    """A random-access source of paper birds, drawn when they are asked for."""

    def __init__(self, split: str, *, size: int | None = None, seed: int = 0):
        """`split` "train" or "test"; `size` how many (4096 and 1024 by default); `seed` of all that is drawn."""
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        self._size = size or (TRAIN_SIZE if split == "train" else TEST_SIZE)
        self._offset = TEST_OFFSET if split == "test" else 0
        self._seed = seed

    def __len__(self) -> int:
        return self._size

    @property
    def labels(self) -> np.ndarray:
        """int [N]."""
        return (self._offset + np.arange(self._size)) % len(CLASS_NAMES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._size:
            raise IndexError(index)
        return {**render(self._seed, self._offset + index), "index": index}


def render(seed: int, index: int, *, label: int | None = None) -> dict[str, Any]:
    """Draws one bird, a pure function of its arguments.

    Args:
        seed, index: of everything random; classes take turns by index.
        label: draw this class instead; all else stays the same.

    Returns:
        `image` uint8 [192, 192, 3], `label`, `box` float32 [4] (ymin, xmin, ymax, xmax) and `parts` float32 [4, 2]
        (y, x) in fractions of the image, `part_visible` bool [4], in the order of `PART_NAMES`.
    """
    rng = np.random.default_rng((seed, index))
    label = index % len(CLASS_NAMES) if label is None else label
    canvas = _landscape(rng)
    for _ in range(rng.integers(4, 8)):
        _draw_leaf(canvas, rng)
    box, parts = _draw_bird(canvas, rng, label)
    y, x = rng.integers(0, RAW_SIZE, 2)
    canvas += _GRAIN[y : y + RAW_SIZE, x : x + RAW_SIZE]
    pixels = np.clip(canvas, 0.0, 255.0, out=canvas).astype(np.uint8)
    return {
        "image": np.ascontiguousarray(np.moveaxis(pixels, 0, -1)),
        "label": label,
        "box": box,
        "parts": parts,
        "part_visible": np.ones(len(PART_NAMES), bool),
    }


def _landscape(rng: np.random.Generator) -> np.ndarray:
    """A sky and two or three paper hills, [3, 192, 192] float32: planes are faster to paint than pixels."""
    top, bottom = _SKIES[rng.integers(len(_SKIES))][..., None, None]
    fade = np.linspace(0.0, 1.0, RAW_SIZE, dtype=np.float32)[:, None]
    canvas = np.broadcast_to(top + (bottom - top) * fade, (3, RAW_SIZE, RAW_SIZE)).copy()
    columns = _X[0] / RAW_SIZE
    for height in np.sort(rng.uniform(0.35, 0.95, rng.integers(2, 4))):
        wave = 0.06 * np.sin(2 * np.pi * (rng.uniform(0.5, 1.6) * columns + rng.uniform()))
        ridge = ((height + wave) * RAW_SIZE).astype(np.float32)
        colour = _HILLS[rng.integers(len(_HILLS))] * rng.uniform(0.9, 1.1)
        start = max(0, int(ridge.min()) - 6)
        depth = _Y[start:] - ridge
        # A hill's upper edge throws a little shadow on what lies behind it.
        canvas[:, start:] *= 1.0 - 0.12 * np.clip(1.0 + depth / 5.0, 0.0, 1.0)
        _blend(canvas[:, start:], np.clip(depth + 0.5, 0.0, 1.0), colour)
    return canvas


def _draw_leaf(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Clutter: an ellipse of paper in one of the birds' colours, striped or not."""
    half = np.array([rng.uniform(6.0, 15.0), 0.0])
    half[1] = half[0] * rng.uniform(0.35, 0.75)
    centre, turn = rng.uniform(0.0, RAW_SIZE, 2), rng.uniform(0.0, np.pi)
    rows, columns = _window(centre, half[0] + 4.0)
    u, v = _turned(_X[rows, columns] - centre[1], _Y[rows, columns] - centre[0], turn)
    distance = _ellipse(u, v, *half)
    colour = _LEAVES[rng.integers(len(_LEAVES))]
    striped, across, phase = rng.random() < 0.5, rng.random() < 0.5, rng.uniform(0.0, 2 * np.pi)
    if striped:
        colour = _BODIES[rng.integers(len(_BODIES))] * 0.8
    patch = canvas[:, rows, columns]
    patch *= 1.0 - 0.25 * np.clip(0.5 - distance / 4.0, 0.0, 1.0)
    _blend(patch, _coverage(distance), colour)
    if striped:
        _stripe(patch, u if across else v, distance / half[1], phase)


def _draw_bird(canvas: np.ndarray, rng: np.random.Generator, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the bird; returns its box [4] and its parts [4, 2] as fractions of the image."""
    cap, beak, tail, wing = np.unravel_index(label, (len(CAPS), len(BEAKS), len(TAILS), len(WINGS)))
    length = rng.uniform(0.30, 0.40) * RAW_SIZE
    centre = rng.uniform(0.55 * length, RAW_SIZE - 0.55 * length, 2)
    turn, facing = rng.uniform(-0.3, 0.3), rng.choice((-1.0, 1.0))
    flap, phase = rng.uniform(-0.2, 0.2), rng.uniform(0.0, 2 * np.pi)
    colour = _BODIES[rng.integers(len(_BODIES))] * rng.uniform(0.85, 1.1)
    wing_colour = np.clip(_BODIES[rng.integers(len(_BODIES))] * 0.85, 80.0, 175.0)

    rows, columns = _window(centre, 0.58 * length)
    x, y = _turned(_X[rows, columns] - centre[1], _Y[rows, columns] - centre[0], turn)
    x, y = facing * x / np.float32(length), y / np.float32(length)

    def ellipse(cx: float, cy: float, a: float, b: float, angle: float) -> np.ndarray:
        return _ellipse(*_turned(x - cx, y - cy, angle), a, b)

    def circle(cx: float, cy: float, radius: float) -> np.ndarray:
        return np.hypot(x - cx, y - cy) - radius

    body, head, tail_shape, beak_shape = ellipse(*_BODY), circle(*_HEAD), _convex(x, y, _TAIL), _convex(x, y, _BEAK)
    legs = np.minimum(_convex(x, y, _LEGS[0]), _convex(x, y, _LEGS[1]))
    wing_u, wing_v = _turned(x - _WING[0], y - _WING[1], _WING[4] + flap)
    wing_shape = _ellipse(wing_u, wing_v, *_WING[2:4])
    outline = np.minimum.reduce([body, head, tail_shape, beak_shape, legs, wing_shape])

    patch = canvas[:, rows, columns]
    # Shadow first, a little wider than the bird; then paper upon paper, each sheet with a thin shade at its edge.
    patch *= 1.0 - 0.3 * np.clip(0.6 - outline * (length / 5.0), 0.0, 1.0)
    sheets = [
        (legs, (92, 74, 66)),
        (tail_shape, colour * 0.9),
        (np.maximum(tail_shape, x - _TAIL_TIP_LINE), list(TAILS.values())[tail]),
        (beak_shape, list(BEAKS.values())[beak]),
        (body, colour),
        (head, colour * 1.04),
        (np.maximum(head, y - _CAP_LINE), list(CAPS.values())[cap]),
        (circle(*_EYE), (30, 26, 30)),
    ]
    for distance, paint in sheets:
        _blend(patch, _coverage(distance * length), paint)
    patch *= 1.0 - 0.15 * np.clip(1.0 - wing_shape * (length / 2.0), 0.0, 1.0)
    _blend(patch, _coverage(wing_shape * length), wing_colour)
    if WINGS[wing] == "barred":
        _stripe(patch, wing_u * length, wing_shape / _WING[3], phase)

    seen = outline * length < 0.0
    ys, xs = np.flatnonzero(seen.any(axis=1)) + rows.start, np.flatnonzero(seen.any(axis=0)) + columns.start
    box = np.array([ys[0], xs[0], ys[-1] + 1, xs[-1] + 1], np.float32) / RAW_SIZE
    # The inverse of the turn above: from the bird's coordinates to the image's.
    px, py = _turned(facing * _PARTS[:, 0] * length, _PARTS[:, 1] * length, -turn)
    parts = (np.stack([centre[0] + py, centre[1] + px], axis=-1) + 0.5) / RAW_SIZE
    return box, parts.astype(np.float32)


def _stripe(patch: np.ndarray, along: np.ndarray, depth: np.ndarray, phase: float) -> None:
    """Adds stripes that vary with `along` (pixels) and fade out towards the edge, where `depth` goes from -1 to 0."""
    # The smooth fade keeps their spectrum narrow: stripes cut off at an edge would shift the mean colour there.
    envelope = np.clip(-depth * (2.0 + depth), 0.0, 1.0)
    wave = np.sin((2 * np.pi / STRIPE_PERIOD) * along + phase)
    patch += STRIPE_AMPLITUDE * wave * np.square(envelope)


def _window(centre: np.ndarray, radius: float) -> tuple[slice, slice]:
    """The rows and columns within `radius` of a place (y, x)."""
    low = np.clip(np.floor(centre - radius), 0, RAW_SIZE - 1).astype(int)
    high = np.clip(np.ceil(centre + radius) + 1, 1, RAW_SIZE).astype(int)
    return slice(low[0], high[0]), slice(low[1], high[1])


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along axes that are turned by `angle`."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _ellipse(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """About the signed distance from an ellipse: negative inside, -b in the centre."""
    return (np.hypot(u * np.float32(1 / a), v * np.float32(1 / b)) - 1.0) * np.float32(b)


def _convex(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance (inside and beside the edges) from a convex polygon [P, 2] (x, y)."""
    edges = np.roll(corners, -1, axis=0) - corners
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=-1) / np.linalg.norm(edges, axis=-1, keepdims=True)
    outward = normals * np.sign(np.sum(normals * (corners - corners.mean(axis=0)), axis=-1, keepdims=True))
    offsets = np.sum(outward * corners, axis=-1)
    planes = [
        np.float32(n[0]) * x + np.float32(n[1]) * y - np.float32(o) for n, o in zip(outward, offsets, strict=True)
    ]
    return np.maximum.reduce(planes)


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Share of each pixel inside a shape, from the signed distance in pixels."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def _blend(patch: np.ndarray, coverage: np.ndarray, colour: Any) -> None:
    """Paints `colour` [3] over the patch [3, h, w] where coverage is 1, in place."""
    patch += coverage * (np.asarray(colour, np.float32)[:, None, None] - patch)
