"""Times `crop_and_resize` against the alternatives, side by side in one run; a JSON line per case and implementation.

python -m benchmarks.crop                           # all cases; PyTorch too where it is installed: pip install .[bench]
python -m benchmarks.crop --case 448 --repeats 15

Every implementation of a case gets the same images, boxes and cotangent, is compiled and run once, and is then timed
in turn, round after round, so that a busy moment of the machine falls on all of them. `milliseconds` is the median;
`relative` is that of the first implementation of the case ("ours, auto") over this one's: above 1, ours is slower.
`temp_mib` is what XLA sets aside beside arguments and results.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.kernels import crop_and_resize

try:
    import torch
except ImportError:
    torch = None

THREADS = 2


class Case(NamedTuple):
    """One thing to time."""

    name: str
    pixels: int
    outputs: int
    channels: int
    batch: int
    sides: str  # "0.45" or "U(0.4, 1)"
    antialias: bool = False
    uint8: bool = False


CASES = [
    *(Case("448 to 448", 448, 448, 3, batch, "0.45") for batch in (8, 1, 32)),
    Case("448 to 448", 448, 448, 3, 8, "U(0.4, 1)"),
    Case("448 to 448, uint8", 448, 448, 3, 8, "0.45", uint8=True),
    Case("256 to 128", 256, 128, 3, 32, "0.45"),
    Case("56 to 14, 256 channels", 56, 14, 256, 8, "0.45"),
    Case("56 to 14, 256 channels", 56, 14, 256, 32, "U(0.4, 1)"),
    Case("1024 to 448, antialias", 1024, 448, 3, 8, "U(0.4, 1)", antialias=True),
    Case("1024 to 448, antialias, uint8", 1024, 448, 3, 8, "U(0.4, 1)", antialias=True, uint8=True),
    Case("256 to 128, antialias", 256, 128, 3, 32, "U(0.4, 1)", antialias=True),
]
MODES = ("forward", "box gradient", "image and box gradient")


def inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images [B, N, N, C], boxes [B, 4], cotangent [B, n, n, C])."""
    rng = np.random.default_rng(0)
    shape = (case.batch, case.pixels, case.pixels, case.channels)
    images = rng.integers(0, 256, shape, np.uint8) if case.uint8 else rng.random(shape, np.float32)
    low, high = (0.45, 0.45) if case.sides == "0.45" else (0.4, 1.0)
    sides = rng.uniform(low, high, (case.batch, 2))
    corners = rng.uniform(size=(case.batch, 2)) * (1.0 - sides)
    boxes = np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)
    return images, boxes, rng.standard_normal((case.batch, case.outputs, case.outputs, case.channels), np.float32)


def by_scale_and_translate(image: jax.Array, box: jax.Array, *, size: int, antialias: bool) -> jax.Array:
    """`jax.image`'s crop of one image."""
    pixels = jnp.asarray(image.shape[:2], jnp.float32)
    scale = size / ((box[2:] - box[:2]) * pixels)
    translation = -box[:2] * pixels * scale
    shape = (size, size, image.shape[-1])
    return jax.image.scale_and_translate(
        image.astype(jnp.float32), shape, (0, 1), scale, translation, "bilinear", antialias=antialias
    )


def by_map_coordinates(image: jax.Array, box: jax.Array, *, size: int) -> jax.Array:
    """`jax.scipy.ndimage`'s sampling of one image, channel by channel."""
    pixels = jnp.asarray(image.shape[:2], jnp.float32)
    steps = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    y, x = (box[i] * pixels[i] + steps * (box[i + 2] - box[i]) * pixels[i] - 0.5 for i in (0, 1))
    places = jnp.meshgrid(y, x, indexing="ij")
    sample = partial(jax.scipy.ndimage.map_coordinates, coordinates=places, order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image.astype(jnp.float32))


def in_jax(crop: Callable[..., jax.Array], case: Case, mode: str) -> tuple[Callable[[], Any], float]:
    """(a call to time, MiB of temporaries)."""
    images, boxes, cotangent = (jnp.asarray(value) for value in inputs(case))

    def loss(images: jax.Array, boxes: jax.Array) -> jax.Array:
        return jnp.sum(crop(images, boxes) * cotangent)

    functions = {
        "forward": crop,
        "box gradient": jax.grad(loss, argnums=1),
        "image and box gradient": jax.grad(loss, argnums=(0, 1)),
    }
    compiled = jax.jit(functions[mode]).lower(images, boxes).compile()
    return lambda: jax.block_until_ready(compiled(images, boxes)), compiled.memory_analysis().temp_size_in_bytes / 2**20


def in_torch(case: Case, mode: str, channels_last: bool) -> Callable[[], Any]:
    """`affine_grid` and `grid_sample` with border padding, float images."""
    images, boxes, cotangent = inputs(case)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    image, weight = (
        torch.from_numpy(value.astype(np.float32)).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        for value in (images, cotangent)
    )
    box = torch.from_numpy(boxes)
    image.requires_grad_(mode == "image and box gradient")
    box.requires_grad_(mode != "forward")
    shape = (case.batch, case.channels, case.outputs, case.outputs)

    def crop() -> Any:
        ymin, xmin, ymax, xmax = box.unbind(-1)
        zero = torch.zeros_like(ymin)
        rows = [xmax - xmin, zero, xmin + xmax - 1.0, zero, ymax - ymin, ymin + ymax - 1.0]
        grid = torch.nn.functional.affine_grid(torch.stack(rows, -1).reshape(-1, 2, 3), shape, align_corners=False)
        return torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)

    def gradients() -> Any:
        wanted = [value for value in (image, box) if value.requires_grad]
        return torch.autograd.grad((crop() * weight).sum(), wanted)

    return crop if mode == "forward" else gradients


def implementations(case: Case, mode: str) -> Iterator[tuple[str, Callable[[], Any], float | None]]:
    """(name, a call to time, MiB of temporaries)."""
    for method in ("auto", "gather", "matmul"):
        ours = partial(crop_and_resize, output_size=case.outputs, antialias=case.antialias, method=method)
        yield f"ours, {method}", *in_jax(ours, case, mode)
    single = partial(by_scale_and_translate, size=case.outputs, antialias=case.antialias)
    yield "jax.image.scale_and_translate", *in_jax(jax.vmap(single), case, mode)
    if not case.antialias:
        single = partial(by_map_coordinates, size=case.outputs)
        yield "jax.scipy.ndimage.map_coordinates", *in_jax(jax.vmap(single), case, mode)
    if torch is not None and not case.antialias:
        yield "torch grid_sample, channels first", in_torch(case, mode, channels_last=False), None
        yield "torch grid_sample, channels last", in_torch(case, mode, channels_last=True), None


def main() -> None:
    """Prints one JSON line per case, mode and implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--batch", type=int, help="only cases of this batch size")
    parser.add_argument("--mode", default="", help=f"only modes that hold this, of: {', '.join(MODES)}")
    options = parser.parse_args()
    if torch is not None:
        torch.set_num_threads(THREADS)
    for case in CASES:
        if options.case not in case.name or options.batch not in (None, case.batch):
            continue
        for mode in MODES:
            if options.mode not in mode or (case.uint8 and mode.startswith("image")):
                continue
            contestants = list(implementations(case, mode))
            times: dict[str, list[float]] = {name: [] for name, _, _ in contestants}
            for _, call, _ in contestants:
                call()
            for _ in range(options.repeats):
                for name, call, _ in contestants:
                    start = time.perf_counter()
                    call()
                    times[name].append(1000.0 * (time.perf_counter() - start))
            medians = {name: statistics.median(values) for name, values in times.items()}
            for name, _, temporaries in contestants:
                line = {
                    **case._asdict(),
                    "mode": mode,
                    "implementation": name,
                    "milliseconds": round(medians[name], 2),
                    "fastest": round(min(times[name]), 2),
                    "relative": round(medians["ours, auto"] / medians[name], 3),
                    "temp_mib": None if temporaries is None else round(temporaries, 1),
                    "repeats": options.repeats,
                    "device": jax.devices()[0].device_kind,
                    "cores": os.cpu_count(),
                    "versions": {"jax": jax.__version__, "torch": None if torch is None else torch.__version__},
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
