"""A finished run looks at any number of image files, in bounded memory, on all devices of this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.data import images, pipeline
from c2f_jax.errors import UserError
from c2f_jax.kernels import ordered
from c2f_jax.models.two_looks import attention_over_image, log_probabilities
from c2f_jax.runs import parallel
from c2f_jax.runs.build import build_trained
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.workdir import read_class_names, read_config
from c2f_jax.training import steps
from c2f_jax.training.losses import Task

TOP = 5
HEAT_SIZE = 64


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image file.

    Attributes:
        file: as it was given, or its path below the folder that was given.
        error: why the file could not be read; then the rest is empty.
        top: by view ("coarse" and, with two looks, "fine" and "fused"): up to five (class name, probability), the most
            probable first.
        box: where the second look looked, (xmin, ymin, xmax, ymax) in pixels of the image as it is shown (EXIF
            orientation applied); None with one look.
        attention: mean of the coarse view's attention maps, laid over the whole image [HEAT_SIZE, HEAT_SIZE]; its
            maximum is about 1, and it is 0 where that view did not reach; None without attention.
    """

    file: str
    error: str | None = None
    top: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None
    attention: np.ndarray | None = None

    @property
    def best(self) -> tuple[str, float]:
        """Class name and probability by both looks together, or by the only one."""
        return self.top["fused" if "fused" in self.top else "coarse"][0]


class Model:
    """A trained model, ready for images; made by `load_model`."""

    def __init__(self, config: Any, class_names: Sequence[str], workdir: Path):
        """config: of the run in `workdir`; class_names: by label."""
        self.class_names = tuple(class_names)
        self._trained = build_trained(config, num_classes=len(self.class_names))
        _, model = read_latest(workdir, self._trained.abstract_model)
        # As arguments of the compiled function, not constants in it.
        self._variables = (model["params"], model["batch_stats"])
        self._step = jax.jit(partial(prediction_step, self._trained.task))

    @property
    def views(self) -> tuple[str, ...]:
        """The views that are predicted from."""
        return ("coarse",) if self._trained.task.test_region is None else ("coarse", "fine", "fused")

    def predict(self, files: str | Path | Sequence[str | Path]) -> Iterator[Prediction]:
        """Predictions in the order of the files, as they come.

        Args:
            files: a folder, of which all images in any depth are taken in the order of their paths; or image files.

        Raises:
            UserError: if there is no such folder, or no image in it. Unreadable files do not raise: see
                `Prediction.error`.
            FloatingPointError: if the model's answers are not finite.
        """
        root, names = list_images(files) if isinstance(files, str | Path) else (Path(), [str(file) for file in files])
        return self._predict(root, names)

    def _predict(self, root: Path, names: Sequence[str]) -> Iterator[Prediction]:
        trained = self._trained
        rows = pipeline.read_images([root / name for name in names], raw=trained.raw)
        for start in range(0, len(names), trained.batch_size):
            chunk = names[start : start + trained.batch_size]
            batch = [next(rows) for _ in chunk]
            size = trained.raw.size
            image = np.zeros((trained.batch_size, size, size, 3), np.uint8)
            window = np.tile(np.array([0, 0, 1, 1], np.float32), (trained.batch_size, 1))
            for i, row in enumerate(batch):
                if row.image is not None:
                    image[i], window[i] = row.image, row.window
            arrays = parallel.shard_batch({"image": image, "window": window}, trained.mesh)
            said = jax.device_get(self._step(*self._variables, arrays))
            if not all(np.all(np.isfinite(said[view])) for view in self.views):
                raise FloatingPointError("the model's probabilities are not numbers: its training went wrong")
            for i, (name, row) in enumerate(zip(chunk, batch, strict=True)):
                yield self._prediction(name, row, {key: value[i] for key, value in said.items()})

    def _prediction(self, name: str, row: pipeline.ImageFile, said: dict[str, np.ndarray]) -> Prediction:
        if row.error is not None:
            return Prediction(name, error=row.error)
        top = {}
        for view in self.views:
            order = np.argsort(-said[view], kind="stable")[:TOP]
            top[view] = [(self.class_names[label], float(said[view][label])) for label in order]
        box = None
        if "box" in said:
            ymin, xmin, ymax, xmax = (float(value) for value in said["box"])
            box = (xmin * row.width, ymin * row.height, xmax * row.width, ymax * row.height)
        return Prediction(name, top=top, box=box, attention=said.get("attention"))


def load_model(workdir: str | Path) -> Model:
    """The model of the last checkpoint in `workdir`.

    Raises:
        UserError: if there is no run or no checkpoint.

    Example:
        from c2f_jax.inference import load_model
        for prediction in load_model("runs/cub").predict("photos"):
            print(prediction.file, prediction.best, prediction.box)
    """
    workdir = Path(workdir)
    return model_of_run(workdir, read_config(workdir))


def model_of_run(workdir: Path, config: Any) -> Model:
    """`load_model` with a config that may differ from the stored one where weights do not (e.g. the batch size)."""
    return Model(config, read_class_names(workdir), workdir)


def prediction_step(
    task: Task, params: Any, batch_stats: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Pure: `image` uint8 [B, R, R, 3] and `window` [B, 4] -> what is said of each image.

    Probabilities [B, C] by view; where they exist `box` [B, 4], (ymin, xmin, ymax, xmax) in fractions of the photo, and
    `attention` [B, HEAT_SIZE, HEAT_SIZE] as in `Prediction`.
    """
    looks = steps.predict(task, params, batch_stats, batch)
    said = {view: jnp.exp(values) for view, values in log_probabilities(looks).items()}
    if "fine" in looks:
        said["box"] = jnp.clip(ordered(looks["fine"].box), 0.0, 1.0)
    if "attention_maps" in looks["coarse"].out:
        said["attention"] = attention_over_image(looks["coarse"], HEAT_SIZE)
    return said


def list_images(folder: str | Path) -> tuple[Path, list[str]]:
    """(the folder, paths below it of all images in it).

    Raises:
        UserError: if there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}: give a folder of images")
    names = [str(name) for name in images.find_images(folder)]
    if not names:
        raise UserError(f"{folder} holds no images (.jpg, .png, .webp, ...), in any depth")
    return folder, names
