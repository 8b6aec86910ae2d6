"""Times forward passes and whole training steps against PyTorch, side by side in one run; JSON lines.

python -m benchmarks.step                           # all cases; PyTorch too where it is installed: pip install .[bench]
python -m benchmarks.step --case "two looks" --repeats 9

Each case is computed by "ours" (what the trainer runs: models, loss, optimiser of `c2f_jax`), by "native" (the same
with every convolution left to XLA's own) and by "torch" (eager, channels last, the same work;
ConvNeXt and ViT are timm's). All are timed in turn,
on two cores. `milliseconds` is the median; `speed` the median over rounds of PyTorch's time over this one's: above 1,
PyTorch is slower. `compile_seconds` is from nothing to the first result; `peak_mib` is how far the process's memory
rises above what it holds after its imports, measured in a process of its own.
"""

from benchmarks import timing

if __name__ == "__main__":
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
from c2f_jax.runs import methods
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
    Case("ConvNeXt-T, forward", "convnext_tiny", 224, "forward", 1000),
    Case("ConvNeXt-T, training step", "convnext_tiny", 224, "train", 1000),
    Case("ViT-S/16, forward", "vit_small_patch16", 224, "forward", 1000),
    Case("ViT-S/16, training step", "vit_small_patch16", 224, "train", 1000),
]


def images_and_labels(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [B, R, R, 3] and int32 [B]."""
    rng = np.random.default_rng(0)
    # Raw images of the view's size, but for two looks, which cut their views from larger ones.
    side = 2 * case.view_size if case.work == "fine" else case.view_size
    return rng.integers(0, 256, (case.batch, side, side, 3), np.uint8), rng.integers(
        0, case.num_classes, case.batch, np.int32
    )


def config_of(case: Case) -> Any:
    """All fields of `configs/default.py`."""
    config = cub50_lite0.get_config()
    config.model.backbone = case.backbone
    config.model.view_size = case.view_size
    # The method in full, also where a data set is better off with less of it, or more.
    config.region.box_gradient, config.region.floor, config.loss.drop_view = "all", 0.0, False
    config.region.kappa = 1.75
    config.region.cell_offset = 0.0
    config.stages.coarse_epochs = 1.0
    if case.work != "fine":
        config.method, config.model.output_stride = "baseline", 0
    return config


class Trainer(NamedTuple):
    """The trainer's own step of the config's last stage: `step(state, batch) -> state, metrics`, state donated."""

    task: Any
    step: Any
    state: Any
    batch: dict[str, Any]


def trainer(config: Any, raw: np.ndarray, labels: np.ndarray, *, num_classes: int) -> Trainer:
    """What is trained, with raw images uint8 [B, R, R, 3] and labels [B] for a batch; not compiled yet."""
    task = methods.make_task(config, num_classes=num_classes, axis_name=None)
    stage = methods.make_stages(config, train_size=1000)[-1]
    state = create_train_state(jax.random.key(0), task, stage, num_classes=num_classes)
    step = jax.jit(partial(steps.train_step, task=task, stage=stage, seed=0), donate_argnums=0)
    batch = {
        "image": raw,
        "place": np.random.default_rng(0).random((len(raw), 2), np.float32),
        "label": labels,
        "row": np.arange(len(raw), dtype=np.int32),
    }
    return Trainer(task, step, state, batch)


def compiled(case: Case) -> tuple[Any, tuple[Any, ...]]:
    """The trainer's step, or the network's forward pass; and its arguments."""
    raw, labels = images_and_labels(case)
    task, step, state, batch = trainer(config_of(case), raw, labels, num_classes=case.num_classes)
    if case.work == "forward":
        variables = {"params": state.params, "batch_stats": state.batch_stats["coarse"]}
        view = task.normalise(jnp.asarray(raw, jnp.float32))
        forward = jax.jit(lambda variables, view: task.network.apply(variables, view, train=False)[0])
        return forward.lower(variables, view).compile(), (variables, view)
    return step.lower(state, batch).compile(), (state, batch)


def going_on(program: Any, state: Any, batch: Any) -> timing.Work:
    """Steps of that program; each goes on from the state of the one before."""

    def start() -> Any:
        nonlocal state
        state, metrics = program(state, batch)
        return metrics["loss"]

    return timing.Work(start, jax.block_until_ready)


def in_jax(case: Case) -> timing.Work:
    """A call of `compiled`'s program."""
    program, arguments = compiled(case)
    if case.work == "forward":
        return timing.Work(lambda: program(*arguments), jax.block_until_ready)
    return going_on(program, *arguments)


def torch_model(config: Any, num_classes: int, backbone: Any = None) -> Any:
    """The config's network in PyTorch, channels last; with another backbone of as many channels where one is given."""
    name = config.model.backbone
    channels = {"resnet50": 2048, "efficientnet_lite0": 1280, "convnext_tiny": 768, "vit_small_patch16": 384}[name]
    if backbone is None and name == "resnet50":
        backbone = torch_models.resnet50()
    elif backbone is None and name == "efficientnet_lite0":
        backbone = torch_models.efficientnet_lite0(config.model.output_stride or 32)
    elif backbone is None:
        backbone = torch_models.Timms({"vit_small_patch16": "vit_small_patch16_224"}.get(name, name))
    if config.method == "baseline":
        model = torch_models.Pooled(backbone, channels, num_classes)
    else:
        model = torch_models.Attentive(
            backbone,
            channels,
            num_classes,
            config.model.num_maps,
            feature_scale=config.model.feature_scale,
            kappa=config.region.kappa,
            background=config.region.background,
            detached=config.region.box_gradient == "none",
        )
    return model.to(memory_format=torch.channels_last)


def torch_loss(config: Any, model: Any) -> Any:
    """The loss of the config's last stage."""
    augment = config.augment
    views = torch_models.Views(
        config.model.view_size,
        augment.min_side,
        augment.max_side,
        tuple(augment.mean),
        tuple(augment.std),
        augment.brightness,
        tuple(augment.saturation),
    )
    if config.method == "baseline":
        return torch_models.baseline_loss(model, views)
    scale = config.region.box_gradient_scale
    return torch_models.fine_loss(model, views, box_gradient_scale=scale, drop_view=config.loss.drop_view)


def in_torch(case: Case) -> timing.Work:
    """The same in PyTorch."""
    raw, labels = images_and_labels(case)
    image = torch.from_numpy(raw).permute(0, 3, 1, 2)  # channels last in memory
    label = torch.from_numpy(labels.astype(np.int64))
    config = config_of(case)
    model = torch_model(config, case.num_classes)
    if case.work == "forward":
        view = (image.float() - 127.0) / 128.0
        model.eval()

        def forward() -> Any:
            with torch.inference_mode():
                return model(view)

        return timing.Work(forward, lambda out: out)
    optimizer = torch_models.sgd(model.parameters())
    loss = torch_loss(config, model)
    train = torch_models.training_step(model, optimizer, loss, clip_norm=config.optimizer.clip_norm)
    return timing.Work(lambda: train(image, label), lambda loss: loss.item())


IMPLEMENTATIONS: dict[str, Callable[[Case], timing.Work]] = {"ours": in_jax, "native": in_jax}
if torch is not None:
    IMPLEMENTATIONS["torch"] = in_torch


def first_result(case: Case, name: str) -> tuple[timing.Work, float]:
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
