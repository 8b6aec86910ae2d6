"""A finished run to take away: StableHLO for JAX alone, ONNX for its runtimes, the weights, and what to know of them.

Both programs take raw images and give the probabilities of every view and the box of the second look; `model.json` says
what the classes are called and how a photo becomes a raw image.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp

from c2f_jax import storage
from c2f_jax.console import tell
from c2f_jax.errors import UserError, as_text
from c2f_jax.evaluation.fusion import Fusion, calibrated
from c2f_jax.inference.model_card import model_card
from c2f_jax.inference.predict import Model, model_of_run
from c2f_jax.kernels import ordered
from c2f_jax.models.pretrained import save_weights
from c2f_jax.models.two_looks import log_probabilities
from c2f_jax.program import EXTRAS, needing
from c2f_jax.runs.workdir import write_json
from c2f_jax.storage import check_name, check_writable
from c2f_jax.training import steps
from c2f_jax.training.losses import Task

STABLEHLO, ONNX, WEIGHTS, DESCRIPTION, CARD = (
    "model.stablehlo",
    "model.onnx",
    "model.safetensors",
    "model.json",
    "README.md",
)
PLATFORMS = ("cpu", "cuda", "tpu")


def export_run(workdir: Path, config: Any, output: Path) -> None:
    """Writes the run's model into the new folder `output`; all of it or, where something fails, nothing.

    Computed in float32, whatever the run was trained in.

    Args:
        workdir: the run's.
        config: the run's.
        output: a folder that is not there, or empty.

    Raises:
        UserError: if there is no run, a package is missing, or the folder cannot be used.
    """
    with needing("export"):  # who predicts or serves need not have them
        for package in EXTRAS["export"]:
            import_module(package)
    if storage.is_remote(output):
        raise UserError(f"--output: an export is a folder on this machine; got {output}: give one, and copy it there")
    output = output.resolve()  # "." has no name, and is a folder all the same
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output: {output} exists and is not an empty folder; choose another")
    check_name("--output", output)
    check_writable("--output", output.parent)
    config = config.copy_and_resolve_references()
    config.model.dtype = "float32"
    model = model_of_run(workdir, config)
    params, batch_stats = jax.device_get(model.variables)
    function = partial(answer, model.task, model.fusion, params, batch_stats)
    size = config.dataset.raw_size
    raw = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as parent:
        folder = Path(parent) / "model"
        folder.mkdir()
        storage.write_bytes(folder / STABLEHLO, stablehlo(function, raw))
        storage.write_bytes(folder / ONNX, onnx(function, raw))
        save_weights(folder / WEIGHTS, params, batch_stats)
        write_json(folder / DESCRIPTION, description(model))
        card = model_card(workdir, config, model.class_names, model.step)
        storage.write_text(folder / CARD, as_text(card))
        if output.exists():  # perhaps where somebody stands: it stays the same folder
            for path in folder.iterdir():
                path.replace(output / path.name)
        else:
            folder.replace(output)
    for name in (STABLEHLO, ONNX, WEIGHTS, DESCRIPTION, CARD):
        tell(f"{output / name}: {(output / name).stat().st_size / 1e6:.2f} MB")


def answer(
    task: Task, fusion: Fusion | None, params: Any, batch_stats: dict[str, Any], image: jax.Array
) -> dict[str, jax.Array]:
    """Pure: raw images, uint8 [B, R, R, 3] -> probabilities [B, C] by view, and after two looks `box` [B, 4]:
    (ymin, xmin, ymax, xmax) in fractions of the raw image."""

    def one(image: jax.Array) -> dict[str, jax.Array]:
        window = jnp.array([[0.0, 0.0, 1.0, 1.0]])
        looks = steps.predict(task, params, batch_stats, {"image": image[None], "window": window})
        scores = log_probabilities(looks)
        if fusion is not None:
            scores["calibrated"] = calibrated(scores, fusion)
        said = {view: jnp.exp(values[0]) for view, values in scores.items()}
        if "fine" in looks:
            said["box"] = jnp.clip(ordered(looks["fine"].box[0]), 0.0, 1.0)
        return said

    # Image by image, so that the program can be made without knowing how many there will be.
    return jax.vmap(one)(image)


Function = Callable[[jax.Array], dict[str, jax.Array]]


def stablehlo(function: Function, raw: jax.ShapeDtypeStruct) -> bytes:
    """`function` for batches of any size on all of `PLATFORMS`, weights included; `jax.export.deserialize` reads it."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *raw.shape[1:]), raw.dtype)
    return bytes(jax.export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())


def onnx(function: Function, raw: jax.ShapeDtypeStruct) -> bytes:
    """`function` for batches of any size, weights included, as an ONNX model with the input `image`."""
    from c2f_jax.inference.onnx_graph import convert  # who exports nothing need not have the package

    return convert(function, raw, input_name="image").SerializeToString()


def description(model: Model) -> dict[str, Any]:
    """What is in `model.json`: all that a program needs to know to use the model."""
    config, views = model.config, model.views
    size, keep_aspect = config.dataset.raw_size, config.augment.keep_aspect
    first = f"scale the photo until its shorter side has {size} pixels, and take the middle square"
    return {
        "class_names": list(model.class_names),
        "input": {"name": "image", "shape": ["batch", size, size, 3], "dtype": "uint8", "channels": "RGB"},
        "preprocessing": {
            "size": size,
            "keep_aspect": keep_aspect,
            "filter": "bilinear, antialiased (Pillow's BILINEAR)",
            "steps": [
                "turn the photo upright as its EXIF tag says, in sRGB, transparent places white",
                first if keep_aspect else f"scale it to {size} x {size} pixels, each side on its own",
                "give the bytes as they are: the model normalises them",
            ],
        },
        "outputs": {
            "probabilities": list(views),
            "answer": views[-1],
            **({"box": "ymin, xmin, ymax, xmax in fractions of the image"} if len(views) > 2 else {}),
        },
        "fusion": None if model.fusion is None else model.fusion._asdict(),
        "method": config.method,
        "step": model.step,
    }
