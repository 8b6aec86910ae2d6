"""Times forward passes and whole training steps against PyTorch, side by side in one run; JSON lines.

python -m benchmarks.step                           # all cases; PyTorch too where it is installed: pip install .[bench]
python -m benchmarks.step --case "two looks" --repeats 9

Each case is computed by "ours" (what the trainer runs: models, loss, optimiser of `c2f_jax`), by "native" (the same
with every convolution left to XLA's own) and by "torch" (eager, channels last, the same work). All are timed in turn,
on two cores. `milliseconds` is the median; `speed` the median over rounds of PyTorch's time over this one's: above 1,
PyTorch is slower. `compile_seconds` is from nothing to the first result; `peak_mib` is how far the process's memory
rises above what it holds after its imports, measured in a process of its own.
"""

from benchmarks import timing

timing.prepare()  # before JAX and PyTorch are imported

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.layers import conv, cpu
from c2f_jax.runs import build
from c2f_jax.training import steps
from c2f_jax.training.train_state import create_train_state
from configs import cub50_lite0

try:
    import torch

    from benchmarks import torch_models
except ImportError:
    torch = None


class Case(NamedTuple):
    """One thing to time. `work`: "forward", "train", or "fine" for the fine stage's step of two looks."""

    name: str
    backbone: str
    view_size: int
    work: str
    num_classes: int
    batch: int = 16


CASES = [
    Case("EfficientNet-Lite0, forward", "efficientnet_lite0", 128, "forward", 1000),
    Case("EfficientNet-Lite0, training step", "efficientnet_lite0", 128, "train", 1000),
    Case("ResNet-50, forward", "resnet50", 224, "forward", 1000),
    Case("ResNet-50, training step", "resnet50", 224, "train", 1000),
    Case("two looks, fine-stage step", "efficientnet_lite0", 128, "fine", 50),
]


def images_and_labels(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [B, R, R, 3] and int32 [B]."""
    rng = np.random.default_rng(0)
    # Raw images of the view's size, but for two looks, which cut their views from larger ones.
    side = 2 * case.view_size if case.work == "fine" else case.view_size
    return rng.integers(0, 256, (case.batch, side, side, 3), np.uint8), rng.integers(
        0, case.num_classes, case.batch, np.int32
    )


def compiled(case: Case) -> tuple[Any, tuple[Any, ...]]:
    """The trainer's own step, state donated, or the network's forward pass; and its arguments."""
    config = cub50_lite0.get_config()
    config.model.backbone = case.backbone
    config.model.view_size = case.view_size
    # The method in full, also where a data set is better off with less of it, or more.
    config.region.box_gradient, config.region.floor, config.loss.drop_view = "all", 0.0, False
    config.stages.coarse_epochs = 1.0
    if case.work != "fine":
        config.method, config.model.output_stride = "baseline", 0
    task = build.make_task(config, num_classes=case.num_classes, axis_name=None)
    stage = build.make_stages(config, train_size=1000)[-1]
    raw, labels = images_and_labels(case)
    state = create_train_state(jax.random.key(0), task, stage, num_classes=case.num_classes)
    if case.work == "forward":
        variables = {"params": state.params, "batch_stats": state.batch_stats["coarse"]}
        view = task.normalise(jnp.asarray(raw, jnp.float32))
        forward = jax.jit(lambda variables, view: task.network.apply(variables, view, train=False)[0])
        return forward.lower(variables, view).compile(), (variables, view)
    step = jax.jit(partial(steps.train_step, task=task, stage=stage, seed=0), donate_argnums=0)
    batch = {
        "image": raw,
        "square": np.ones((case.batch, 2), np.float32),
        "label": labels,
        "index": np.arange(case.batch, dtype=np.int32),
    }

    return step.lower(state, batch).compile(), (state, batch)


def in_jax(case: Case) -> Callable[[], Any]:
    """A call of that program; a step goes on from the state of the one before."""
    program, arguments = compiled(case)
    if case.work == "forward":
        return lambda: jax.block_until_ready(program(*arguments))
    state, batch = arguments

    def call() -> Any:
        nonlocal state
        state, metrics = program(state, batch)
        return jax.block_until_ready(metrics["loss"])

    return call


def in_torch(case: Case) -> Callable[[], Any]:
    """The same in PyTorch."""
    raw, labels = images_and_labels(case)
    image = torch.from_numpy(raw).permute(0, 3, 1, 2)  # channels last in memory
    label = torch.from_numpy(labels.astype(np.int64))
    backbone, channels = (
        (torch_models.resnet50(), 2048)
        if case.backbone == "resnet50"
        else (torch_models.efficientnet_lite0(16 if case.work == "fine" else 32), 1280)
    )
    config = cub50_lite0.get_config()
    settings = {
        "view_size": case.view_size,
        "min_side": config.augment.min_side,
        "max_side": config.augment.max_side,
        "clip_norm": config.optimizer.clip_norm,
    }
    if case.work == "fine":
        attentive = torch_models.Attentive(backbone, channels, case.num_classes, config.model.num_maps)
        attentive.to(memory_format=torch.channels_last)
        optimizer = torch_models.sgd(attentive.parameters())
        scale = config.region.box_gradient_scale
        fine = torch_models.fine_step(attentive, optimizer, box_gradient_scale=scale, **settings)
        return lambda: fine(image, label)
    model = torch_models.Pooled(backbone, channels, case.num_classes).to(memory_format=torch.channels_last)
    view = (image.float() - 127.0) / 128.0
    if case.work == "forward":
        model.eval()

        def forward() -> Any:
            with torch.inference_mode():
                return model(view)

        return forward
    train = torch_models.baseline_step(model, torch_models.sgd(model.parameters()), **settings)
    return lambda: train(image, label)


IMPLEMENTATIONS: dict[str, Callable[[Case], Callable[[], Any]]] = {"ours": in_jax, "native": in_jax}
if torch is not None:
    IMPLEMENTATIONS["torch"] = in_torch


def first_result(case: Case, name: str) -> tuple[Callable[[], Any], float]:
    """(a call that is compiled, seconds until then)."""
    start = time.perf_counter()
    chosen = conv.conv2d
    if name == "native":
        conv.conv2d = lambda x, kernel, *, strides, padding, groups=1: cpu.native_conv2d(
            x, kernel, strides, padding, groups
        )
    try:
        call = IMPLEMENTATIONS[name](case)
        call()
    finally:
        conv.conv2d = chosen
    return call, time.perf_counter() - start


def main() -> None:
    """Prints one JSON line per case and implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--skip", action="append", default=[], choices=IMPLEMENTATIONS, help="leave one out")
    parser.add_argument("--alone", nargs=2, metavar=("CASE", "IMPLEMENTATION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if torch is not None:
        torch.set_num_threads(timing.THREADS)
    if options.alone:
        (case,) = (case for case in CASES if case.name == options.alone[0])
        print(timing.peak_mib(lambda: first_result(case, options.alone[1])[0]))
        return
    for case in CASES:
        if options.case not in case.name:
            continue
        names = [name for name in IMPLEMENTATIONS if name not in options.skip]
        calls, compile_seconds = {}, {}
        for name in names:
            calls[name], compile_seconds[name] = first_result(case, name)
        times = timing.in_turn(calls, options.repeats)
        del calls
        for name, figures in timing.summary(times, "torch" if "torch" in names else names[0]).items():
            line = {
                **case._asdict(),
                "implementation": name,
                **figures,
                "images_per_second": round(1000.0 * case.batch / figures["milliseconds"], 1),
                "compile_seconds": round(compile_seconds[name], 1),
                "peak_mib": round(timing.in_own_process("benchmarks.step", case.name, name)),
                "repeats": options.repeats,
                **timing.environment(),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
