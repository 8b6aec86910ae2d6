"""Whole training steps beside PyTorch's, each case in a process of its own, so that peaks of memory are its own.

Ours is what the trainer runs. PyTorch's is the same work (`benchmarks/torch_models.py`): loss and views under
`torch.compile`, channels last, and for bfloat16 under autocast; in float32 both may use TF32. Operations are XLA's
count of our program as it is written, before it is optimised; both sides' shares of the peak are of the measured
bfloat16 product, in float32 too.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import step as steps
from benchmarks import timing
from benchmarks.accelerator.common import Line, Setting, Unit, in_turn, number, one_line
from benchmarks.accelerator.rehearsal import shorten_backbones
from c2f_jax.data import pipeline
from c2f_jax.data.raw import Raw
from configs import cub50_lite0, cub_one_stage

torch = steps.torch


class Case(NamedTuple):
    """One step. method: "baseline", or empty for the config's own."""

    config: Callable[[], Any]
    backbone: str
    method: str
    view_size: int
    raw_size: int
    num_classes: int
    batch: int
    dtype: str


_RESNET50 = Case(cub_one_stage.get_config, "resnet50", "baseline", 448, 448, 1000, 64, "bfloat16")
_CUB = Case(cub_one_stage.get_config, "resnet50", "", 448, 512, 200, 12, "bfloat16")
_LITE0 = Case(cub50_lite0.get_config, "efficientnet_lite0", "baseline", 224, 224, 1000, 256, "bfloat16")
CASES = {
    "resnet50_448_bfloat16": _RESNET50,
    "cub_bfloat16": _CUB,
    "lite0_224_bfloat16": _LITE0,
    "resnet50_448_float32": _RESNET50._replace(dtype="float32"),
    "cub_float32": _CUB._replace(dtype="float32"),  # as shipped
    "cub_bfloat16_batch48": _CUB._replace(batch=48),
    "lite0_224_float32": _LITE0._replace(dtype="float32"),
}


def units(setting: Setting) -> dict[str, Unit]:
    """The cases, and after the first three how fast the host hands on photos."""
    cases = CASES
    if setting.rehearse:
        shorten_backbones()
        cases = {
            name: case._replace(view_size=case.view_size // 7, raw_size=case.raw_size // 7, batch=2 + case.batch // 48)
            for name, case in cases.items()
        }
        del cases["cub_bfloat16_batch48"], cases["lite0_224_float32"]
    found: dict[str, Unit] = {name: partial(measure, setting, name, case) for name, case in cases.items()}
    first, rest = list(found.items())[:3], list(found.items())[3:]
    return dict([*first, ("host_input", partial(host_input, setting)), *rest])


def config_of(case: Case) -> Any:
    """The shipped config, or its baseline."""
    config = case.config()
    config.model.backbone, config.model.view_size, config.model.dtype = case.backbone, case.view_size, case.dtype
    config.train.batch_size = case.batch
    if case.method:
        config.method, config.model.output_stride, config.stages.coarse_epochs = case.method, 0, 1.0
    return config


def images_and_labels(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [B, R, R, 3] and int32 [B]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (case.batch, case.raw_size, case.raw_size, 3), np.uint8)
    return images, rng.integers(0, case.num_classes, case.batch, np.int32)


def in_jax(case: Case) -> tuple[timing.Work, Line]:
    """A step to time, and what is known before it is: seconds to compile, operations and bytes set aside."""
    raw, labels = images_and_labels(case)
    of = steps.trainer(config_of(case), raw, labels, num_classes=case.num_classes)
    batch = jax.device_put(of.batch)
    began = time.perf_counter()
    lowered = of.step.lower(of.state, batch)
    program = lowered.compile()
    work = steps.going_on(program, of.state, batch)
    work()
    told: Line = {"compile_seconds": round(time.perf_counter() - began, 1)}
    counted = lowered.cost_analysis() or {}
    told["operations"] = number(counted["flops"]) if counted.get("flops", 0) > 0 else None
    told["program_mib"] = round(program.memory_analysis().temp_size_in_bytes / 2**20)
    return work, told


def in_torch(case: Case) -> tuple[timing.Work, Line]:
    """The same in PyTorch; nothing of it is waited for until the loss is asked for."""
    raw, labels = images_and_labels(case)
    config = config_of(case)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # as XLA's own default has it
    torch.backends.cudnn.benchmark = True
    image = torch.from_numpy(raw).to(device).permute(0, 3, 1, 2)
    label = torch.from_numpy(labels.astype(np.int64)).to(device)
    model = steps.torch_model(config, case.num_classes).to(device)
    optimizer = steps.torch_models.sgd(model.parameters(), fused=True)
    loss = torch.compile(steps.torch_loss(config, model))

    def under_autocast(*arguments: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=case.dtype == "bfloat16"):
            return loss(*arguments)

    train = steps.torch_models.training_step(
        model, optimizer, under_autocast, clip_norm=config.optimizer.clip_norm or float("inf")
    )
    work = timing.Work(lambda: train(image, label), lambda value: value.item())
    began = time.perf_counter()
    work()
    return work, {"compile_seconds": round(time.perf_counter() - began, 1)}


def measure(setting: Setting, name: str, case: Case) -> Iterator[Line]:
    """Ours and PyTorch's, timed in turn; if one fails its line says how, and the other is timed alone."""
    told = {"case": name, **{key: value for key, value in case._asdict().items() if key != "config"}}
    builds: dict[str, Callable[[Case], tuple[timing.Work, Line]]] = {"ours": in_jax}
    if torch is None:
        yield {**told, "implementation": "torch.compile", "error": "PyTorch is not installed"}
    elif jax.default_backend() != "cpu" and not torch.cuda.is_available():
        yield {**told, "implementation": "torch.compile", "error": "PyTorch sees no accelerator"}
    else:
        builds["torch.compile"] = in_torch
    works, known = {}, {}
    for implementation, build in builds.items():
        try:
            works[implementation], known[implementation] = build(case)
        except Exception as error:
            yield {**told, "implementation": implementation, "error": one_line(error)}
    if not works:
        raise RuntimeError("neither side could be timed")
    operations = known.get("ours", {}).pop("operations", None)
    times = in_turn(works, 2 if setting.rehearse else 9)
    for implementation, figures in timing.summary(
        times, "torch.compile" if "torch.compile" in works else "ours"
    ).items():
        seconds = figures["milliseconds"] / 1000.0
        share = operations and setting.product_rate and operations / seconds / setting.product_rate
        yield {
            **told,
            "implementation": implementation,
            **{key: number(value) for key, value in figures.items()},
            "images_per_second": number(case.batch / seconds),
            "operations": operations,
            "operations_counted_by": "lowered.cost_analysis",
            "share_of_peak": share and number(share, 3),
            "peak_mib": peak_mib(implementation),
            **known[implementation],
        }


def peak_mib(implementation: str) -> int | None:
    """Of device memory, since this process began; None where the device does not say."""
    if implementation != "ours":
        return round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else round(peak / 2**20)


# --- What the host can hand on. ---


def host_input(setting: Setting) -> Iterator[Line]:
    """Photos decoded and resized by the trainer's own pipeline, images a second; then the same from memory."""
    absent = setting.missing(weights=False)
    if absent is not None:
        yield {"case": "host input", "error": absent}
        return
    config = cub_one_stage.get_config()
    config.dataset.path = setting.data
    raw = Raw(64 if setting.rehearse else config.dataset.raw_size, config.augment.keep_aspect)
    from c2f_jax.data.builders import published

    source = published.load("cub200_2011", setting.data, cache_dir=config.dataset.cache_dir).train
    batch_size = config.train.batch_size
    in_memory = pipeline.InMemory(source, raw, pipeline.Memory(mib=1 << 20))
    for name, kept in (("decoded", source), ("from memory", in_memory)):
        settings = {"batch_size": batch_size, "raw": raw, "seed": 0, "start": 0}
        batches = pipeline.training_batches(kept, **settings, process=0, processes=1)
        count = 4 if setting.rehearse else 24
        # From memory: an epoch before, which fills it. Threads read ahead, so those batches count as well.
        warm = len(source) // batch_size + 8 if kept is not source else 8
        for _ in itertools.islice(batches, warm):
            pass
        began = time.perf_counter()
        for _ in itertools.islice(batches, count):
            pass
        seconds = time.perf_counter() - began
        yield {
            "case": f"host input, {name}",
            "raw_size": raw.size,
            "batch": batch_size,
            "images_per_second": number(count * batch_size / seconds),
            "host_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        }
