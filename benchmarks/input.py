"""Photos from disk to batches: this package's pipeline, the bare decoder, and PyTorch's DataLoader, side by side.

python -m benchmarks.input [--rounds 5] [--seconds 2]     # the DataLoader needs the extra `bench`
python -m benchmarks.input --many 200000 --folder DIR     # twice: the second line is a second start

JPEG files of 500 x 375 and of 2000 x 1500 pixels become uint8 batches of 32 images of 448 x 448, on one core and on
two. `bare` is the limit: one loop a core that reads a file, decodes it at the scale that the pipeline decodes it at,
resizes it and lays it into a batch, and does nothing else. `dataloader` is what PyTorch's users write: Pillow, full
size, resize, default collation, a worker a core (or, if that is faster on one core, none). The three take turns in one
process; a line holds the median of the rounds in images a second and a core, and the median of the rounds' ratios. On
a machine that others use as well, those "by work" tell more: they count the seconds that cores worked for this process.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((500, 375), (2000, 1500))
SIDE, BATCH, FILES = 448, 32, 96
EPOCH = 64 * FILES  # examples, about as many as CUB-200-2011 has; the files are read again and again


def write_photos(folder: Path, width: int, height: int) -> None:
    """Soft blobs under grain, at a quality as cameras' and of about as many bytes as photos have."""
    random = np.random.default_rng(0)
    for index in range(FILES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0.0, 6.0, (height, width, 1)).astype(np.float32)
        place = folder / ("odd", "even")[index % 2] / f"{index:03d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).save(place, quality=90)


def ours(folder: Path, cores: int) -> Iterator[int]:
    """Images of each batch, without end."""
    from c2f_jax.data.photos import Photos
    from c2f_jax.data.pipeline import training_batches
    from c2f_jax.data.raw import Raw
    from c2f_jax.data.splitting import Item

    del cores  # it takes those that the process may use
    # By grain, the order of an epoch of up to 65,536 examples takes 16 ms, however few they are.
    items = [Item(str(path.relative_to(folder)), 0) for path in sorted(folder.rglob("*.jpg"))] * (EPOCH // FILES)
    raw = Raw(SIDE, keep_aspect=False)
    settings = {"seed": 0, "start": 0, "process": 0, "processes": 1}
    for batch in training_batches(Photos(folder, items, SIDE), batch_size=BATCH, raw=raw, **settings):
        yield len(batch["image"])


def bare(folder: Path, cores: int) -> Iterator[int]:
    """The same from a loop a core."""
    paths = sorted(folder.rglob("*.jpg"))

    def work(start: int) -> np.ndarray:
        batch = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
        for row in range(BATCH):
            with Image.open(paths[(start + row) % len(paths)]) as image:
                image.draft(None, (2 * SIDE, 2 * SIDE))
                batch[row] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return batch

    starts = itertools.count(step=BATCH)
    if cores == 1:
        for start in starts:
            yield len(work(start))
    with ThreadPoolExecutor(cores) as executor:
        waiting = [executor.submit(work, next(starts)) for _ in range(2 * cores)]
        try:
            while True:
                yield len(waiting.pop(0).result())
                waiting.append(executor.submit(work, next(starts)))
        finally:
            executor.shutdown(cancel_futures=True)


class _Files:
    """A Dataset."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.rglob("*.jpg")) * (EPOCH // FILES)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import torch

        with Image.open(self.paths[index]) as image:
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)), 0


def dataloader(folder: Path, workers: int) -> Iterator[int]:
    """The same from PyTorch."""
    import torch

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        _Files(folder), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        for images, _ in loader:
            yield len(images)


def write_many(folder: Path, files: int, classes: int = 1000) -> None:
    """Small photos, all different."""
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"{label:04d}").mkdir(parents=True, exist_ok=True)
        for index in range(files // classes):
            place = folder / f"{label:04d}" / f"{index:04d}.jpg"
            if not place.exists():
                pixels = random.integers(0, 256, (18, 24, 3), np.uint8)
                Image.fromarray(pixels).resize((48, 36), Image.Resampling.BILINEAR).save(place, quality=60)


def many(folder: Path, files: int) -> dict[str, Any]:
    """One line: a run's start on so many files, and the memory of a process that reads them epoch after epoch.

    The run is the command that users give, with a small network: until its first step is in its log, compilation too.
    """
    from c2f_jax.data import pipeline, sources
    from c2f_jax.data.raw import Raw

    write_many(folder / "photos", files)
    line: dict[str, Any] = {"case": "many files", "files": files, "a run to its first step, s": _first_step(folder)}
    options = {"path": str(folder / "photos"), "cache_dir": str(folder / "cache"), "unreadable": "skip"}
    options |= {"validation_fraction": 0.1, "train_size": None, "test_size": None, "min_side": 32}
    began = time.perf_counter()
    splits = sources.load("folder", **options)
    line["load, s"] = round(time.perf_counter() - began, 1)
    raw = Raw(32, keep_aspect=False)
    train = pipeline.InMemory(splits.train, raw, pipeline.Memory(2048))
    settings = {"batch_size": BATCH, "raw": raw, "seed": 0, "start": 0, "process": 0, "processes": 1}
    batches = pipeline.training_batches(train, **settings)
    next(batches)
    line["to the first batch, s"] = round(time.perf_counter() - began, 1)
    line["MiB then"] = _resident_mib()
    for epoch in (1, 2, 3):
        for _ in range(len(splits.train) // BATCH):
            next(batches)
        line[f"MiB after epoch {epoch}"] = _resident_mib()
    line["MiB of kept photos"] = round(len(splits.train) * 3 * raw.size**2 / 2**20)
    return line


def _first_step(folder: Path) -> float:
    """Seconds from the command to the first step that its log tells of; it is stopped then."""
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        fields = {"dataset.name": "folder", "dataset.path": folder / "photos", "dataset.cache_dir": folder / "cache"}
        fields |= {"dataset.raw_size": 64, "model.view_size": 32, "train.log_every_steps": 1}
        words = [f"--config.{name}={value}" for name, value in fields.items()]
        command = [sys.executable, "launch.py", "--config", "configs/paper_birds.py", "--workdir", workdir, *words]
        began, log = time.perf_counter(), Path(workdir) / "metrics.jsonl"
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
            while run.poll() is None and not (log.exists() and log.stat().st_size):
                time.sleep(0.05)
            took = time.perf_counter() - began
            run.terminate()
    if not run.returncode:
        raise SystemExit("the run ended by itself")
    return round(took, 1)


def _resident_mib() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) >> 10


def rate(batches: Iterator[int], seconds: float) -> tuple[float, float]:
    """Images a second, over about so many seconds and whole batches; and images a second of this process's cores."""
    began, worked, count = time.perf_counter(), time.process_time(), 0
    while (took := time.perf_counter() - began) < seconds:
        count += next(batches)
    return count / took, count / (time.process_time() - worked)


def measure(folder: Path, size: tuple[int, int], cores: int, rounds: int, seconds: float) -> dict[str, Any]:
    """One line."""
    makers: dict[str, Callable[[], Iterator[int]]] = {
        "ours": lambda: ours(folder, cores),
        "bare": lambda: bare(folder, cores),
    }
    try:
        import torch  # noqa: F401

        makers["dataloader"] = lambda: dataloader(folder, cores)
        if cores == 1:
            makers["dataloader, no worker"] = lambda: dataloader(folder, 0)
    except ImportError:
        pass
    rates: dict[str, list[float]] = {name: [] for name in makers}
    worked: dict[str, list[float]] = {"ours": [], "bare": [], "dataloader, no worker": []}
    for _ in range(rounds):
        for name, make in makers.items():
            # Anew each time: one that reads ahead would work while another one is timed.
            batches = make()
            rate(batches, seconds / 4)
            in_all, of_work = rate(batches, seconds)
            rates[name].append(in_all)
            if name in worked:
                worked[name].append(of_work)
            if isinstance(batches, Iterator) and hasattr(batches, "close"):
                batches.close()
    torch_rates = [max(pair) for pair in zip(*(rates[name] for name in rates if "loader" in name), strict=True)]
    line: dict[str, Any] = {"case": "input", "width": size[0], "height": size[1], "cores": cores, "rounds": rounds}
    line |= {f"{name}, images/s/core": round(statistics.median(found) / cores, 1) for name, found in rates.items()}
    line["ours/bare"] = _ratio(rates["ours"], rates["bare"])
    line["ours/dataloader"] = _ratio(rates["ours"], torch_rates) if torch_rates else None
    line |= {f"{name}, images/s of work": round(statistics.median(of), 1) for name, of in worked.items() if of}
    line["ours/bare by work"] = _ratio(worked["ours"], worked["bare"])
    return line


def _ratio(ones: list[float], others: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(ones, others, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--cores", type=int, help="measure here, on so many cores of this process")
    parser.add_argument("--many", type=int, help="instead: the start on so many files, in the folder --folder")
    parser.add_argument("--folder", type=Path, help="kept, so that a second call measures a second start")
    options = parser.parse_args()
    if options.many is not None:
        print(json.dumps(many(options.folder, options.many)))
        return
    if options.cores is None:
        # A process for each number of cores: libraries count them once.
        for cores in (1, 2):
            words = ["--rounds", str(options.rounds), "--seconds", str(options.seconds), "--cores", str(cores)]
            subprocess.run([sys.executable, "-m", "benchmarks.input", *words], check=True)
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    with tempfile.TemporaryDirectory() as root:
        for size in SIZES:
            folder = Path(root) / f"{size[0]}"
            write_photos(folder, *size)
            print(json.dumps(measure(folder, size, options.cores, options.rounds, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
