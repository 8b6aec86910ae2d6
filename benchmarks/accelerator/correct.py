"""Kernels and training steps on this device against the same on this machine's CPU in float64.

An error is |here - there| / |there| over all numbers of a result (the norm's). "highest" is float32 throughout; "as
shipped" is what the platform makes of float32 products by itself (TF32 on NVIDIA, bfloat16 passes on TPU), whose errors
a network's depth multiplies.
"""

import contextlib
import importlib
import json
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import crop as crop_cases
from benchmarks.accelerator.common import ROOT, Line, Setting, Unit, number, one_line
from benchmarks.accelerator.rehearsal import shorten_backbones
from c2f_jax.data import pipeline
from c2f_jax.data.paper_birds import PaperBirds
from c2f_jax.kernels import bilinear_attention_pooling, center_loss
from c2f_jax.kernels.crop import PADDINGS
from c2f_jax.runs import build, methods, parallel
from c2f_jax.training.stages import Stage
from c2f_jax.training.steps import train_step
from c2f_jax.training.train_state import create_train_state
from configs import cub_one_stage, paper_birds

KERNEL_TOLERANCE = 1e-4  # of float32 arithmetic without products in less; measured on CPU: up to 1e-5
POOLING_TOLERANCE = 1e-5
# Of a training step, by what is compared. A gradient in float32 comes 1e-6 to 1e-4 close on CPU; TF32's operands have
# 10 bits in place of 23, bfloat16's 7.
STEP_TOLERANCES = {
    "highest": {"loss": 1e-4, "gradient": 5e-3, "batch_stats": 1e-3, "centers": 1e-3},
    "as shipped": {"loss": 2e-2, "gradient": 0.3, "batch_stats": 2e-2, "centers": 2e-2},
}
MARGIN = 1e-3  # pixels between a sample and the next place where the derivative jumps
STEP = 3  # of the fine stage's step whose keys are drawn


def units(setting: Setting) -> dict[str, Unit]:
    """What the rest rests on first."""
    if setting.rehearse:
        shorten_backbones()
    sizes = (32, 16, 8) if setting.rehearse else (192, 64, 32)
    taught, small = (paper_birds.get_config(), *sizes), (soft_box(), *sizes)
    large = (cub_one_stage.get_config(), 72, 64, 4) if setting.rehearse else (cub_one_stage.get_config(), 160, 128, 16)
    return {
        "imports": imports,
        "crop": partial(crop, setting.rehearse),
        "pooling": partial(pooling, setting.rehearse),
        "paper_birds_taught": partial(training, *taught, "fine"),
        "paper_birds_fine": partial(training, *small, "fine"),
        "paper_birds_coarse": partial(training, *small, "coarse"),
        "resnet50_fine": partial(training, *large, "fine"),
        "resnet50_coarse": partial(training, *large, "coarse"),
    }


# --- What this jax takes amiss. ---


def imports() -> Iterator[Line]:
    """Every module of `c2f_jax` imported in a fresh process; what failed, and which of jax's warnings it met."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import tell_imports; tell_imports()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    yield {"case": "imports", **told, "passed": not told["failed"]}


def tell_imports() -> None:
    """Prints what `imports` says; for a process that has `c2f_jax` still to import, but for what this file needs."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "c2f_jax"]:
        del sys.modules[name]
    failed, warned, count = {}, set(), 0
    names = ["c2f_jax"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in names:
            count += 1
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                missing = (error.name or "").partition(".")[0]
                if missing in ("c2f_jax", "jax", "flax"):
                    failed[name] = one_line(error)
                else:
                    warned.add(f"{name}: the package {missing} is not installed")
                continue
            except Exception as error:
                failed[name] = one_line(error)
                continue
            if hasattr(module, "__path__"):
                names += [found.name for found in pkgutil.iter_modules(module.__path__, f"{name}.")]
    for warning in caught:
        if issubclass(warning.category, DeprecationWarning) and "jax" in f"{warning.message}{warning.filename}":
            warned.add(f"{warning.filename.split('site-packages/')[-1]}:{warning.lineno}: {warning.message}"[:300])
    print(json.dumps({"modules": count, "failed": failed, "warned": sorted(warned)}))


# --- Both sides. ---


@contextlib.contextmanager
def on_cpu_in_float64() -> Iterator[None]:
    """Arrays made here are float64 and on the CPU, and so are programs; draws are those of float32, made wider.

    Otherwise the same keys would give other random numbers, and with them other crops and other thresholds.
    """
    uniform, bernoulli, categorical = jax.random.uniform, jax.random.bernoulli, jax.random.categorical

    def narrow_uniform(key: jax.Array, shape: Any = (), **limits: Any) -> jax.Array:
        return uniform(key, shape, jnp.float32, **limits).astype(jnp.float64)

    with (
        jax.enable_x64(True),
        jax.default_device(jax.local_devices(backend="cpu")[0]),
        jax.default_matmul_precision("highest"),
        mock.patch.object(jax.random, "uniform", narrow_uniform),
        mock.patch.object(jax.random, "bernoulli", lambda key: bernoulli(key, jnp.float32(0.5))),
        mock.patch.object(jax.random, "categorical", lambda key, logits: categorical(key, logits.astype(jnp.float32))),
    ):
        yield


def widened(tree: Any) -> Any:
    """Its floating numbers as float64 on the host, the others as they are."""

    def wide(value: Any) -> np.ndarray:
        array = np.asarray(value)
        return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(wide, jax.device_get(tree))


def relative_error(here: Any, there: Any) -> float:
    """|here - there| / |there| over all floating numbers of two trees."""
    pairs = zip(jax.tree.leaves(widened(here)), jax.tree.leaves(widened(there)), strict=True)
    pairs = [(a, b) for a, b in pairs if b.dtype == np.float64]
    difference = sum(float(np.sum(np.square(a - b))) for a, b in pairs)
    return (difference / max(sum(float(np.sum(np.square(b))) for _, b in pairs), 1e-300)) ** 0.5


def compare(here: dict[str, Any], there: dict[str, Any], tolerances: dict[str, float]) -> Line:
    """Errors by name, with what is tolerated; passed if none is larger (what is not finite is)."""
    errors = {name: relative_error(here[name], there[name]) for name in tolerances}
    return {
        "errors": {name: number(error) for name, error in errors.items()},
        "tolerances": tolerances,
        "passed": all(error <= tolerances[name] for name, error in errors.items()),
    }


# --- Kernels. ---


def value_and_gradients(function: Callable[..., jax.Array], *arguments: Any) -> dict[str, Any]:
    """Compiled, on the default device: the value, and the gradients by all arguments of its product with noise."""
    out = jax.eval_shape(function, *arguments)
    cotangent = np.random.default_rng(1).standard_normal(out.shape)
    noise = jnp.asarray(cotangent, out.dtype)
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(function(*a) * noise), tuple(range(len(arguments)))))
    return {"value": jax.jit(function)(*arguments), **dict(enumerate(gradients(*arguments)))}


def boxes_between_kinks(count: int, pixels: int, outputs: int, *, antialias: bool, rng: Any) -> np.ndarray:
    """Boxes float32 [count, 4]: inside, mirrored, and reaching beyond; no sample within `MARGIN` of a kink.

    Where a sample lies on a pixel's centre the derivative jumps, and rounding chooses the side.
    """
    found: list[np.ndarray] = []
    while len(found) < count:
        corner, side = rng.uniform(-0.2, 0.7, 2), rng.uniform(0.3, 0.9, 2)
        box = np.float32([*corner, *(corner + side)])
        if rng.random() < 0.5:
            box = box[[0, 3, 2, 1]]
        step = np.abs(box[2:] - box[:2]).astype(np.float64) * pixels / outputs
        start = np.minimum(box[:2], box[2:]).astype(np.float64) * pixels - 0.5
        samples = start + step * (np.arange(outputs)[:, None] + 0.5)
        radius = np.clip(step, 1.0, max(pixels / outputs, 1.0)) if antialias else 1.0
        kinks = np.concatenate([samples - radius, samples, samples + radius, samples + 0.5])
        if np.min(np.abs(kinks - np.round(kinks))) > MARGIN and np.min(np.abs(step - 1.0)) > MARGIN:
            found.append(box)
    return np.stack(found)


def crop(rehearse: bool) -> Iterator[Line]:
    """All paddings, antialiased or not, by both ways to compute; forward and both gradients."""
    count, pixels = (2, 20) if rehearse else (64, 96)
    for antialias in (False, True):
        outputs = pixels // 2 if antialias else pixels - 4
        rng = np.random.default_rng(0)
        images = rng.random((count, pixels, pixels, 3), np.float32)
        boxes = boxes_between_kinks(count, pixels, outputs, antialias=antialias, rng=rng)
        case = crop_cases.Case("", pixels, outputs, 3, count, "", antialias)
        for padding in PADDINGS:
            settings = {"padding": padding, "fill_value": 0.3}
            with on_cpu_in_float64():
                there = value_and_gradients(crop_cases.ours(case, "gather", **settings), *widened((images, boxes)))
            for way in ("gather", "matmul"):
                here = value_and_gradients(crop_cases.ours(case, way, **settings), images, boxes)
                told = {"case": f"crop, {way}, {padding}{', antialias' if antialias else ''}"}
                names = {"value": "value", 0: "image gradient", 1: "box gradient"}
                here_named, there_named = ({names[k]: v for k, v in side.items()} for side in (here, there))
                yield told | compare(here_named, there_named, dict.fromkeys(names.values(), KERNEL_TOLERANCE))


def pooling(rehearse: bool) -> Iterator[Line]:
    """Bilinear attention pooling with its gradients, and the centre loss; their products are float32's, as shipped."""
    count, cells, channels, maps = (2, 4, 24, 4) if rehearse else (64, 14, 2048, 32)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((count, cells, cells, channels)).astype(np.float32)
    attention = rng.random((count, cells, cells, maps), np.float32)
    centers = rng.standard_normal((7, channels * maps)).astype(np.float32)
    labels = rng.integers(0, 7, count, np.int32)

    def distance(pooled: jax.Array) -> jax.Array:
        return center_loss(pooled, jnp.asarray(centers, pooled.dtype), labels)

    for name, function, arguments in (
        ("attention pooling", bilinear_attention_pooling, (features, attention)),
        ("centre loss", distance, (centers[labels] + features.reshape(count, -1)[:, :1],)),
    ):
        with on_cpu_in_float64():
            there = value_and_gradients(function, *widened(arguments))
        here = value_and_gradients(function, *arguments)
        yield {"case": name} | compare(
            {str(k): v for k, v in here.items()},
            {str(k): v for k, v in there.items()},
            {str(k): POOLING_TOLERANCE for k in there},
        )


# --- Training steps. ---


def with_sizes(config: Any, raw_size: int, view_size: int, batch_size: int) -> Any:
    """The shipped config with both stages and in one go."""
    config = config.copy_and_resolve_references()
    devices = jax.device_count()
    config.dataset.raw_size, config.model.view_size, config.region.view_size = raw_size, view_size, 0
    config.train.batch_size = -(-batch_size // devices) * devices
    config.stages.coarse_epochs = config.stages.fine_epochs = 5.0
    # So that the optimiser's state after the step is the gradient itself.
    config.optimizer.name, config.optimizer.weight_decay, config.optimizer.clip_norm = "sgd", 0.0, 0.0
    config.optimizer.warmup_epochs = 0.0
    return config


def soft_box() -> Any:
    """Paper birds, second looks at a box that their loss moves through the crop, in place of the shipped square."""
    config = paper_birds.get_config()
    config.region.side = config.region.teach = 0.0
    return config


def stage_of(config: Any, name: str) -> Stage:
    """The stage called so, of an epoch of 10 steps."""
    (stage,) = (s for s in methods.make_stages(config, train_size=10 * config.train.batch_size) if s.name == name)
    return stage


def results(state: Any, metrics: dict[str, jax.Array]) -> dict[str, Any]:
    """What is compared of a step: the loss, the gradient as the optimiser keeps it, statistics and centres."""
    return {
        "loss": metrics["loss"],
        "gradient": state.opt_state,
        "batch_stats": state.batch_stats,
        "centers": state.centers,
    }


def training(config: Any, raw_size: int, view_size: int, batch_size: int, stage_name: str) -> Iterator[Line]:
    """One step of a stage from the first parameters: jit and pmap, in full precision and as shipped; bfloat16."""
    config = with_sizes(config, raw_size, view_size, batch_size)
    source = PaperBirds("train", size=8 * config.train.batch_size)
    settings = {"batch_size": config.train.batch_size, "raw": build.raw_images(config), "seed": 0, "start": STEP}
    batch = next(pipeline.training_batches(source, **settings, process=0, processes=1))
    batch = {name: batch[name] for name in ("image", "place", "label", "row")}
    # Drawn birds are flat, and so is white that colour changes clip: in flat places all numbers of a max-pool's window
    # are equal, and rounding chooses which of them gets the gradient. Photos are grainy.
    grain = np.random.default_rng(0).integers(0, 64, batch["image"].shape, np.uint8)
    batch["image"] = 32 + batch["image"] // 2 + grain
    classes = 16
    told = {
        "backbone": config.model.backbone,
        "stage": stage_name,
        "view_size": view_size,
        "batch": config.train.batch_size,
    }

    def first_state(of: Any) -> Any:
        stage = stage_of(of, stage_name)
        task = methods.make_task(of, num_classes=classes, axis_name=None)
        state = create_train_state(jax.random.key(of.seed), task, stage, num_classes=classes)
        return state.replace(step=jnp.asarray(stage.start + STEP, jnp.int32))

    state = jax.device_get(first_state(config))

    def step(dtype: str, axis_name: str | None) -> Any:
        of = config.copy_and_resolve_references()
        of.model.dtype = dtype
        task = methods.make_task(of, num_classes=classes, axis_name=axis_name)
        return partial(train_step, task=task, stage=stage_of(of, stage_name), seed=0, axis_name=axis_name)

    def taken(dtype: str, backend_name: str, precision: str | None) -> tuple[Any, dict[str, jax.Array]]:
        backend = parallel.make_backend(backend_name, parallel.make_mesh())
        with contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision):
            compiled = backend.compile(step(dtype, backend.axis_name))
            after, metrics = compiled(backend.put_state(state), backend.put_batch(batch))
        return backend.get_state(after), metrics

    with on_cpu_in_float64():
        there = widened(results(*jax.jit(step("float64", None))(widened(state), batch)))
    for backend_name in ("jit", "pmap"):
        for name, precision in (("highest", "highest"), ("as shipped", None)):
            here = results(*taken("float32", backend_name, precision))
            case = f"{config.model.backbone}, {stage_name} step, {backend_name}, {name}"
            yield {"case": case, **told} | compare(here, there, STEP_TOLERANCES[name])
    after, metrics = taken("bfloat16", "jit", None)
    values = [np.asarray(value) for value in jax.tree.leaves(jax.device_get((after, metrics)))]
    finite = all(np.all(np.isfinite(v)) for v in values if jnp.issubdtype(v.dtype, jnp.floating))
    errors = {"loss": number(relative_error(metrics["loss"], there["loss"]))}
    yield {"case": f"{config.model.backbone}, {stage_name} step, bfloat16, finite", **told, "errors": errors} | {
        "passed": bool(finite)
    }
