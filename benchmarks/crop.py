"""Times `crop_and_resize` against the alternatives, side by side in one run; a JSON line per case and implementation.

python -m benchmarks.crop                           # all cases; PyTorch too where it is installed: pip install .[bench]
python -m benchmarks.crop --case "448 to 448" --batch 8 --repeats 15
python -m benchmarks.crop --plain                   # in a process as one has it who takes the kernel alone
python -m benchmarks.crop --one-core                # the core's time instead of the clock's: for a busy machine

Every implementation of a case gets the same images, boxes and cotangent, is compiled, and is then timed in turn, round
after round, on two cores. `milliseconds` is the median; `speed` the median over rounds of the time of "ours, auto" over
this one's: at 0.25 ours is four times as fast. `temp_mib` is what XLA sets aside beside arguments and results; with
--peak, `peak_mib` is how far a process that does nothing else grows, compilation included.
"""

import sys

from benchmarks import timing

if __name__ == "__main__":
    # Before JAX and PyTorch are imported.
    timing.prepare("--plain" not in sys.argv, 1 if "--one-core" in sys.argv else timing.THREADS)

import argparse
import functools
import itertools
import json
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


KINDS = [
    ("448 to 448", 448, 448, 3, False, False),
    ("448 to 448, uint8", 448, 448, 3, False, True),
    ("256 to 128", 256, 128, 3, False, False),
    ("56 to 14, 256 channels", 56, 14, 256, False, False),
    ("1024 to 448, antialias", 1024, 448, 3, True, False),
    ("1024 to 448, antialias, uint8", 1024, 448, 3, True, True),
    ("256 to 128, antialias", 256, 128, 3, True, False),
]
CASES = [
    Case(name, pixels, outputs, channels, batch, sides, antialias, uint8)
    for (name, pixels, outputs, channels, antialias, uint8), batch, sides in itertools.product(
        KINDS, (8, 1, 32), ("0.45", "U(0.4, 1)")
    )
]
MODES = ("forward", "box gradient", "image and box gradient")


def boxes_of(case: Case) -> np.ndarray:
    """Boxes inside the image, float32 [B, 4]."""
    rng = np.random.default_rng(0)
    low, high = (0.45, 0.45) if case.sides == "0.45" else (0.4, 1.0)
    sides = rng.uniform(low, high, (case.batch, 2))
    corners = rng.uniform(size=(case.batch, 2)) * (1.0 - sides)
    return np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


@functools.lru_cache(maxsize=1)  # for all implementations and modes of a case
def inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images [B, N, N, C], boxes [B, 4], cotangent [B, n, n, C])."""
    rng = np.random.default_rng(1)
    shape = (case.batch, case.pixels, case.pixels, case.channels)
    images = rng.integers(0, 256, shape, np.uint8) if case.uint8 else rng.random(shape, np.float32)
    cotangent = rng.standard_normal((case.batch, case.outputs, case.outputs, case.channels), np.float32)
    return images, boxes_of(case), cotangent


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


WAYS = ("auto", "gather", "matmul")  # of `crop_and_resize`, which `ours` alone hands on


def ours(case: Case, way: str, **settings: Any) -> Callable[..., jax.Array]:
    """`crop_and_resize` by one of `WAYS`: (images, boxes) -> views. settings: what the case leaves open."""
    return partial(crop_and_resize, output_size=case.outputs, antialias=case.antialias, implementation=way, **settings)


def in_jax(crop: Callable[..., jax.Array], case: Case, mode: str) -> timing.Work:
    """Compiled, with its arguments on the default device."""
    images, boxes, cotangent = (jnp.asarray(value) for value in inputs(case))

    def loss(images: jax.Array, boxes: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jnp.sum(crop(images, boxes) * cotangent)

    arguments = (images, boxes) if mode == "forward" else (images, boxes, cotangent)
    functions = {
        "forward": crop,
        "box gradient": jax.grad(loss, argnums=1),
        "image and box gradient": jax.grad(loss, argnums=(0, 1)),
    }
    compiled = jax.jit(functions[mode]).lower(*arguments).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return timing.Work(lambda: compiled(*arguments), jax.block_until_ready, temporaries)


def in_torch(case: Case, mode: str, *, channels_last: bool, device: str = "cpu", compiled: bool = False) -> timing.Work:
    """`affine_grid` and `grid_sample` with border padding, float images; eager, or under `torch.compile`."""
    images, boxes, cotangent = inputs(case)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    image, weight = (
        torch.from_numpy(value.astype(np.float32)).permute(0, 3, 1, 2).contiguous(memory_format=layout).to(device)
        for value in (images, cotangent)
    )
    box = torch.from_numpy(boxes).to(device)
    image.requires_grad_(mode == "image and box gradient")
    box.requires_grad_(mode != "forward")
    shape = (case.batch, case.channels, case.outputs, case.outputs)

    def crop() -> Any:
        ymin, xmin, ymax, xmax = box.unbind(-1)
        zero = torch.zeros_like(ymin)
        rows = [xmax - xmin, zero, xmin + xmax - 1.0, zero, ymax - ymin, ymin + ymax - 1.0]
        grid = torch.nn.functional.affine_grid(torch.stack(rows, -1).reshape(-1, 2, 3), shape, align_corners=False)
        return torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)

    def loss() -> Any:
        return (crop() * weight).sum()

    wanted = [value for value in (image, box) if value.requires_grad]
    forward = crop if mode == "forward" else loss
    if compiled:
        torch.compiler.reset()  # what an earlier case compiled, whose limit on recompilations is its own
        forward = torch.compile(forward)
    start = forward if mode == "forward" else lambda: torch.autograd.grad(forward(), wanted)
    return timing.Work(start, lambda out: torch.cuda.synchronize() if device == "cuda" else out)


Build = Callable[[], timing.Work]


def implementations(case: Case, mode: str) -> Iterator[tuple[str, Build]]:
    """Each by name, not built yet, without PyTorch's."""
    for way in WAYS:
        yield f"ours, {way}", partial(in_jax, ours(case, way), case, mode)
    single = partial(by_scale_and_translate, size=case.outputs, antialias=case.antialias)
    yield "jax.image.scale_and_translate", partial(in_jax, jax.vmap(single), case, mode)
    if not case.antialias:
        single = partial(by_map_coordinates, size=case.outputs)
        yield "jax.scipy.ndimage.map_coordinates", partial(in_jax, jax.vmap(single), case, mode)


def in_eager_torch(case: Case, mode: str) -> Iterator[tuple[str, Build]]:
    """PyTorch's, where it is installed and has such a crop."""
    if torch is not None and not case.antialias:
        for layout in ("first", "last"):
            yield f"torch grid_sample, channels {layout}", partial(in_torch, case, mode, channels_last=layout == "last")


def everything(case: Case, mode: str) -> Iterator[tuple[str, Build]]:
    """What this program compares."""
    yield from implementations(case, mode)
    yield from in_eager_torch(case, mode)


def main() -> None:
    """Prints one JSON line per case, mode and implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--batch", type=int, help="only cases of this batch size")
    parser.add_argument("--sides", default="", help='only cases whose box sides are "0.45" or "U(0.4, 1)"')
    parser.add_argument("--mode", default="", help=f"only modes that hold this, of: {', '.join(MODES)}")
    parser.add_argument("--peak", action="store_true", help="measure the peak memory as well, each in its own process")
    parser.add_argument("--plain", action="store_true", help="without the huge pages that training has")
    parser.add_argument(
        "--one-core", action="store_true", help="one core, and the time it works instead of the clock's"
    )
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    threads, clock = (1, time.process_time) if options.one_core else (timing.THREADS, time.perf_counter)
    if torch is not None:
        torch.set_num_threads(threads)
    if options.alone:
        number, mode, name = options.alone
        print(timing.peak_mib(lambda: dict(everything(CASES[int(number)], mode))[name]()))
        return
    for number, case in enumerate(CASES):
        if options.case not in case.name or options.batch not in (None, case.batch) or options.sides not in case.sides:
            continue
        for mode in MODES:
            if options.mode not in mode or (case.uint8 and mode.startswith("image")):
                continue
            built = {name: build() for name, build in everything(case, mode)}
            times = timing.in_turn(built, options.repeats, clock)
            for name, figures in timing.summary(times, "ours, auto").items():
                temporaries = built[name].temp_mib
                line = {**case._asdict(), "mode": mode, "implementation": name, **figures}
                line |= {"process": "plain" if options.plain else "huge pages", "time": clock.__name__}
                line["temp_mib"] = None if temporaries is None else round(temporaries, 1)
                if options.peak:
                    peak = timing.in_own_process("benchmarks.crop", str(number), mode, name)
                    line["peak_mib"] = round(peak, 1)
                print(json.dumps({**line, "repeats": options.repeats, **timing.environment(threads)}), flush=True)


if __name__ == "__main__":
    main()
