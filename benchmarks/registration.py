"""How far a gradient in the box sees: a box finds a place in an image again, by descent on the difference of views.

python -m benchmarks.registration                            # on generated paper birds
python -m benchmarks.registration --photos FOLDER            # on JPEG or PNG files under a folder

A start is the true box moved by 0.05 to 0.5 of its side, in a random direction, with a side of 0.8 to 1.25 of its own.
All three ways take the same steps with the same settings: `exact` follows the crop's own gradient; `widened` that of
`crop_with_wide_gradient`, whose blur goes from a quarter of the box to 1 pixel; `pyramid` the exact gradient on images
reduced by so much. One JSON line per way: the share of starts that end with an IoU above 0.98.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.kernels import crop_and_resize, crop_with_wide_gradient, iou

SIZE, VIEW = 128, 48  # pixels of the images and of the views
BLURS = (16.0, 8.0, 4.0, 2.0, 1.0)  # pixels, one after the other
STEPS, RATE = 60, 0.02  # per blur; the rate, in sides of the image, falls to a fifth within each


def photos(folder: Path | None, count: int) -> np.ndarray:
    """[count, SIZE, SIZE, 3] in [0, 1]: squares out of files, or paper birds."""
    if folder is None:
        from c2f_jax.data.paper_birds import PaperBirds

        source = PaperBirds("test", size=count)
        images = [source[i]["image"] for i in range(count)]
    else:
        from PIL import Image

        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not paths:
            raise SystemExit(f"{folder}: no .jpg or .png below it")
        images = [np.asarray(Image.open(path).convert("RGB")) for path in paths[:: max(len(paths) // count, 1)][:count]]
    square = [image[: min(image.shape[:2]), : min(image.shape[:2])] for image in images]
    whole = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
    resize = partial(crop_and_resize, boxes=whole, output_size=SIZE, antialias=True)
    return np.stack([resize(image.astype(np.float32) / 255.0) for image in square])


def starts(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(true boxes [count, 4], where the search begins [count, 4])."""
    rng = np.random.default_rng(0)
    side = rng.uniform(0.3, 0.5, (count, 1))
    centre = rng.uniform(size=(count, 2)) * (1.0 - 2.0 * side) + side
    angle, offset = rng.uniform(0, 2 * np.pi, (count, 1)), rng.uniform(0.05, 0.5, (count, 1)) * side
    moved = centre + offset * np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    other = side * np.exp(rng.uniform(np.log(0.8), np.log(1.25), (count, 1)))
    boxes = [np.concatenate([c - s / 2, c + s / 2], axis=1) for c, s in ((centre, side), (moved, other))]
    return boxes[0].astype(np.float32), boxes[1].astype(np.float32)


def reduced(image: jax.Array, blur: float) -> jax.Array:
    """[SIZE, SIZE, 3] -> so many times smaller."""
    return crop_and_resize(image, [0, 0, 1, 1], max(round(SIZE / blur), 1), antialias=True)


Crop = Callable[[jax.Array, jax.Array], jax.Array]


def crops(way: str, blur: float, image: jax.Array) -> tuple[Crop, jax.Array]:
    """(how a view is cut at this blur, what it is cut out of)."""
    if way == "widened":
        return partial(crop_with_wide_gradient, output_size=VIEW, blur=blur), image
    return partial(crop_and_resize, output_size=VIEW), reduced(image, blur) if way == "pyramid" else image


def search(way: str, image: jax.Array, true: jax.Array, start: jax.Array) -> jax.Array:
    """The box that Adam ends at, of the views' mean squared difference."""
    box = start
    for blur in BLURS:
        crop, seen = crops(way, blur, image)
        target = crop_and_resize(seen, true, VIEW)

        def loss(box: jax.Array, crop: Crop = crop, seen: jax.Array = seen, target: jax.Array = target) -> jax.Array:
            return jnp.mean(jnp.square(crop(seen, box) - target))

        def step(i: jax.Array, state: tuple, loss: Callable = loss, blur: float = blur) -> tuple:
            box, mean, square = state
            gradient = jax.grad(loss)(box)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
            unbiased = mean / (1 - 0.9 ** (i + 1)), square / (1 - 0.95 ** (i + 1))
            rate = RATE * (blur / BLURS[0]) ** 0.75 * 0.2 ** (i / STEPS)
            return box - rate * unbiased[0] / (jnp.sqrt(unbiased[1]) + 1e-8), mean, square

        box, *_ = jax.lax.fori_loop(0, STEPS, step, (box, jnp.zeros_like(box), jnp.zeros_like(box)))
    return box


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder with JPEG or PNG files")
    parser.add_argument("--starts", type=int, default=500)
    options = parser.parse_args()
    images = photos(options.photos, min(options.starts, 50))
    true, start = starts(options.starts)
    far = np.abs((start - true).reshape(-1, 2, 2).mean(1)).max(-1) > 0.25 * (true[:, 2] - true[:, 0])
    for way in ("exact", "widened", "pyramid"):
        find = jax.jit(lambda *of, way=way: jax.lax.map(lambda one: search(way, *one), of))
        ends = find(images[np.arange(len(true)) % len(images)], true, start)
        found = np.asarray(iou(ends, true)) > 0.98
        line = {"way": way, "found": round(float(found.mean()), 3), "found_far": round(float(found[far].mean()), 3)}
        line |= {"starts": len(true), "photos": "paper_birds" if options.photos is None else options.photos.name}
        print(json.dumps({**line, "steps": STEPS * len(BLURS), "rate": RATE, "blurs": BLURS}), flush=True)


if __name__ == "__main__":
    main()
