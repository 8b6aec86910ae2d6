"""What does an exported model weigh, and how fast is it? A JSON line per file, and per batch size and way to run it.

python -m benchmarks.export --workdir runs/paper_birds [--batches 1 32] [--repeats 15]

Ways: `python`, a finished run as `load_model` runs it, with the heat that pictures need; `first look`, the same with
`--fast`; `stablehlo` and `onnx`, the files of `--mode=export`, as their examples in docs/export.md run them. All on two
CPU threads, images in memory as uint8, each way warmed up, in turn; `speed` is against `python`.
"""

import sys

from benchmarks.timing import THREADS, in_turn, prepare, summary

if __name__ == "__main__":
    prepare()

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

from c2f_jax.inference.export import ONNX, STABLEHLO, export_run
from c2f_jax.inference.predict import load_model
from c2f_jax.runs.workdir import read_config


def ways(workdir: Path, folder: Path, batch: int) -> dict[str, Callable[[], Any]]:
    """By name, a call that looks at `batch` images once and waits."""
    model = load_model(workdir)
    size = model.config.dataset.raw_size
    image = np.random.default_rng(0).integers(256, size=(batch, size, size, 3), dtype=np.uint8)
    whole = {"image": image, "window": np.tile(np.float32([0, 0, 1, 1]), (batch, 1))}
    exported = jax.jit(jax.export.deserialize(bytearray((folder / STABLEHLO).read_bytes())).call)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(folder / ONNX, options, providers=["CPUExecutionProvider"])
    return {
        "python": lambda: model.run(model._step, whole),
        "first look": lambda: model.run(model._first, whole),
        "stablehlo": lambda: jax.device_get(exported(image)),
        "onnx": lambda: session.run(None, {"image": image}),
    }


def main(argv: Sequence[str]) -> int:
    """Prints; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(argv)
    config = read_config(options.workdir)
    about = {"run": options.workdir.name, "backbone": config.model.backbone, "view": config.model.view_size}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        with contextlib.redirect_stdout(sys.stderr):
            export_run(options.workdir, config, folder)
        for path in sorted(folder.iterdir()):
            print(json.dumps({**about, "file": path.name, "bytes": path.stat().st_size}))
        for batch in options.batches:
            times = in_turn(ways(options.workdir, folder, batch), options.repeats)
            for name, figures in summary(times, "python").items():
                print(json.dumps({**about, "batch": batch, "way": name, "threads": THREADS, **figures}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
