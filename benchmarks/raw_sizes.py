"""What do large raw images cost the crop? A JSON line per size and kind of work, each size in a process of its own.

python -m benchmarks.raw_sizes [--sizes 256 512 1024 2048]

One crop of 128 px from each of 16 raw images, antialiased, boxes of a half to 0.7 of the side: `ms`, the median of five
calls, and `mib`, the memory that the process took at most beyond what it had with the batch in hand.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.kernels import crop_and_resize

COUNT, VIEW, CALLS = 16, 128, 5


def peak_mib() -> float:
    """The most memory that this process has had, MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(size: int) -> None:
    """Prints the lines of one size."""
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.integers(0, 256, (COUNT, size, size, 3), np.uint8))
    low, side = 0.3 * rng.random((COUNT, 2)), rng.uniform(0.5, 0.7, (COUNT, 1))
    boxes = jnp.asarray(np.concatenate([low, low + side], axis=-1), jnp.float32)

    def crop(boxes: jax.Array, images: jax.Array) -> jax.Array:
        return crop_and_resize(images, boxes, VIEW, antialias=True)

    works = {"forward": crop, "box gradient": jax.grad(lambda *args: jnp.sum(jnp.square(crop(*args))))}
    for name, work in works.items():
        before, program, times = peak_mib(), jax.jit(work), []
        for _ in range(CALLS + 1):
            began = time.perf_counter()
            jax.block_until_ready(program(boxes, images))
            times.append(1e3 * (time.perf_counter() - began))
        told = {"ms": round(statistics.median(times[1:]), 1), "mib": round(peak_mib() - before)}
        print(json.dumps({"raw_size": size, "work": name, **told}), flush=True)


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024, 2048])
    options = parser.parse_args(argv)
    if len(options.sizes) == 1:
        measure(options.sizes[0])
        return
    for size in options.sizes:
        subprocess.run([sys.executable, "-m", "benchmarks.raw_sizes", "--sizes", str(size)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
