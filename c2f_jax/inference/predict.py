"""A finished run looks at any number of image files, in bounded memory, on all devices of this process."""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from c2f_jax import storage
from c2f_jax.data import images, pipeline
from c2f_jax.errors import UserError
from c2f_jax.evaluation.fusion import Fusion, calibrated
from c2f_jax.inference.gate import HEAT_SIZE, first_look, gated, second_look
from c2f_jax.kernels import ordered
from c2f_jax.models.two_looks import attention_over_image, log_probabilities
from c2f_jax.runs import fusion, none_of_these, parallel
from c2f_jax.runs.build import answering, build_trained
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.workdir import read_class_names, read_config
from c2f_jax.training import steps
from c2f_jax.training.losses import Task

TOP = 5
ANSWERS = ("calibrated", "fused", "coarse")  # of the views that there are, the first is the answer

Picture = np.ndarray | Image.Image
File = str | os.PathLike[str]
Pictures = File | Picture | Sequence[File | Picture]
Step = Callable[[Any, dict[str, Any], dict[str, jax.Array]], Any]


def answer_of(views: Container[str]) -> str:
    """Of the views that there are of an image, the one that is the answer."""
    return next(view for view in ANSWERS if view in views)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image file.

    Attributes:
        file: as it was given, or its path below the folder that was given; of a picture in memory its place, "[0]".
        error: why the file could not be read; then the rest is empty.
        top: by view ("coarse" and, with two looks, "fine" and "fused", their average; "calibrated", where the run has
            fitted weight and temperature): up to five (class name, probability), the most probable first.
        box: where the second look looked, (xmin, ymin, xmax, ymax) in pixels of the image as it is shown (EXIF
            orientation applied); None with one look.
        attention: mean of the coarse view's attention maps, laid over the whole image [HEAT_SIZE, HEAT_SIZE]; its
            maximum is about 1, and it is 0 where that view did not reach; None without attention.
        unknown: whether it is marked as none of the classes; None if that was not asked.
        looks: how many looks the answer is of; 0 of a file that cannot be read.
    """

    file: str
    error: str | None = None
    top: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None
    attention: np.ndarray | None = None
    unknown: bool | None = None
    looks: int = 0

    @property
    def best(self) -> tuple[str, float]:
        """Class name and probability by all that was seen, calibrated where the run has fitted how."""
        return self.top[answer_of(self.top)][0]


class Model:
    """A trained model, ready for images; made by `load_model`."""

    def __init__(self, config: Any, class_names: Sequence[str], workdir: Path):
        """config: of the run in `workdir`; class_names: by label."""
        self.class_names = tuple(class_names)
        self._trained = build_trained(config, num_classes=len(self.class_names))
        self.step, model = read_latest(workdir, self._trained.abstract_model)
        # As arguments of the compiled function, not constants in it.
        model = answering(model)
        self.variables = (model["params"], model["batch_stats"])
        self.workdir, self.config = workdir, config
        self.fusion = fusion.read(workdir, self.step)  # how the looks become the answer; None: their average
        programs = (prediction_step, first_look, second_look)
        self._step, self._first, self._second = (
            jax.jit(partial(one, self._trained.task, self.fusion)) for one in programs
        )

    @property
    def task(self) -> Task:
        """The network and its input."""
        return self._trained.task

    @property
    def views(self) -> tuple[str, ...]:
        """The views that are predicted from; the last is the answer."""
        looks = ("coarse",) if self._trained.task.test_region is None else ("coarse", "fine", "fused")
        return looks if self.fusion is None else (*looks, "calibrated")

    def views_by(self, *, fast: bool) -> tuple[str, ...]:
        """`views`, or those of the first look alone."""
        return tuple(view for view in self.views if view not in ("fine", "fused")) if fast else self.views

    def threshold(self, *, fast: bool = False, gate: float | None = None) -> float:
        """Probability of the best class below which a picture is marked as unknown; of answers as of `predict`.

        Raises:
            UserError: if the run has none.
        """
        return none_of_these.read_threshold(self.workdir, self.step, self.fusion, fast=fast, gate=gate)

    def predict(
        self,
        files: Pictures,
        *,
        mark_unknown: bool = False,
        fast: bool = False,
        gate: float | None = None,
        top: int = TOP,
    ) -> Iterator[Prediction]:
        """Predictions in the order of the files, as they come.

        Args:
            files: a folder, of which all images in any depth are taken in the order of their paths; an image file; a
                picture in memory, Pillow's or an array (uint8 or floats from 0 to 1; [H, W], [H, W, 1], [H, W, 3] or
                [H, W, 4]); or a sequence of files and pictures, also as one array [N, H, W, 3].
            mark_unknown: say of each whether it is none of the classes, as the run's `threshold` has it.
            fast: take the first look alone; half the work.
            gate: take the second look only where the first is less sure than this, a probability.
            top: how many classes of each view, or all of them if there are fewer.

        Raises:
            UserError: if there is no such folder, no image in it, or no threshold. Unreadable files do not raise: see
                `Prediction.error`.
            ValueError: if an array is no picture.
            TypeError: if something is neither file nor picture.
            FloatingPointError: if the model's answers are not finite.
        """
        if isinstance(files, str | os.PathLike):
            root, names = list_images(files)
            return self.predict_below(root, names, mark_unknown=mark_unknown, fast=fast, gate=gate, top=top)
        else:
            files = np.asarray(files) if isinstance(files, jax.Array) else files
            alone = isinstance(files, Image.Image) or (isinstance(files, np.ndarray) and files.ndim < 4)
            many = not alone and isinstance(files, Iterable) and not isinstance(files, bytes)
            given: list[Any] = list(cast(Iterable[Any], files)) if many else [files]
            names = [os.fspath(one) if isinstance(one, str | os.PathLike) else f"[{i}]" for i, one in enumerate(given)]
            sources = [_source(one, name) for one, name in zip(given, names, strict=True)]
        return self._predict(sources, names, mark_unknown=mark_unknown, fast=fast, gate=gate, top=top)

    def predict_below(self, root: Path, names: Sequence[str], **how: Any) -> Iterator[Prediction]:
        """`predict` of files whose paths below `root` are known; `how`: all of its options."""
        return self._predict([storage.join(root, name) for name in names], names, **how)

    def check_gate(self, *, fast: bool, gate: float | None) -> None:
        """Raises UserError unless answers can be made so."""
        if gate is not None and fast:
            raise UserError(
                "--fast and --gate exclude each other: the first look alone, or a second where it is unsure"
            )
        if gate is not None and not 0.0 <= gate <= 1.0:
            raise UserError(f"--gate takes a probability from 0 to 1; got {gate:g}")
        if gate is not None and self.task.test_region is None:
            raise UserError(f"--gate: the model in {self.workdir} looks once; leave it out")

    def said(
        self, sources: Sequence[Path | Picture], *, fast: bool = False, gate: float | None = None
    ) -> Iterator[tuple[pipeline.ImageFile, dict[str, np.ndarray]]]:
        """Each file as it was read, without its pixels, and what is said of it: see `prediction_step`, `first_look`.

        Raises:
            FloatingPointError: if the model's answers are not finite.
        """
        batches, first = self.batches(sources), partial(self.run, self._first)
        if gate is not None:
            rows = gated(batches, first, partial(self.run, self._second), gate, self._trained.batch_size)
        else:
            rows = self._each(batches, first if fast else partial(self.run, self._step))
        for file, said in rows:
            if not all(np.all(np.isfinite(said[view])) for view in self.views if view in said):
                raise FloatingPointError("the model's probabilities are not numbers: its training went wrong")
            yield file._replace(image=None), said

    def _each(
        self, batches: Iterator[tuple[list[pipeline.ImageFile], dict[str, np.ndarray]]], step: Callable[[Any], Any]
    ) -> Iterator[tuple[pipeline.ImageFile, dict[str, np.ndarray]]]:
        for files, batch in batches:
            said = step(batch)
            for i, file in enumerate(files):
                yield file, {name: value[i] for name, value in said.items()}

    def batches(
        self, sources: Sequence[Path | Picture]
    ) -> Iterator[tuple[list[pipeline.ImageFile], dict[str, np.ndarray]]]:
        """As many at a time as the model takes, read: and the raw images as a batch on the host, filled up.

        What cannot be read is black in it.
        """
        trained = self._trained
        rows = pipeline.read_images(sources, raw=trained.raw)
        for start in range(0, len(sources), trained.batch_size):
            batch = list(islice(rows, min(trained.batch_size, len(sources) - start)))
            size = trained.raw.size
            image = np.zeros((trained.batch_size, size, size, 3), np.uint8)
            window = np.tile(np.array([0, 0, 1, 1], np.float32), (trained.batch_size, 1))
            for i, row in enumerate(batch):
                if row.image is not None:
                    image[i], window[i] = row.image, row.window
            yield batch, {"image": image, "window": window}

    def run(self, step: Step, batch: dict[str, np.ndarray]) -> Any:
        """`step` (compiled; parameters, statistics, batch) on all devices; what it returns, on the host."""
        return jax.device_get(step(*self.variables, parallel.shard_batch(batch, self._trained.mesh)))

    def look(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is said of each of a batch of raw images, see `prediction_step`; a program for each size of batch."""
        return self.run(self._step, batch)

    def _predict(
        self,
        sources: Sequence[Path | Picture],
        names: Sequence[str],
        *,
        mark_unknown: bool,
        fast: bool,
        gate: float | None,
        top: int,
    ) -> Iterator[Prediction]:
        self.check_gate(fast=fast, gate=gate)
        threshold = self.threshold(fast=fast, gate=gate) if mark_unknown else None
        said = self.said(sources, fast=fast, gate=gate)
        return (
            self.prediction(name, file, values, threshold, top)
            for name, (file, values) in zip(names, said, strict=True)
        )

    def prediction(
        self, name: str, file: pipeline.ImageFile, said: dict[str, np.ndarray], threshold: float | None, count: int
    ) -> Prediction:
        """What `look` says of an image file, made readable: up to `count` classes a view, unknown below `threshold`."""
        if file.error is not None:
            return Prediction(name, error=file.error)
        top = {}
        for view in self.views:
            if view in said:
                order = np.argsort(-said[view], kind="stable")[:count]
                top[view] = [(self.class_names[label], float(said[view][label])) for label in order]
        box = None
        if "box" in said:
            ymin, xmin, ymax, xmax = (float(value) for value in said["box"])
            box = (xmin * file.width, ymin * file.height, xmax * file.width, ymax * file.height)
        unknown = None if threshold is None else bool(np.max(said[answer_of(said)]) < threshold)
        looks = 2 if "fine" in said else 1
        return Prediction(name, top=top, box=box, attention=said.get("attention"), unknown=unknown, looks=looks)


def _source(given: Any, name: str) -> Path | Picture:
    """Raises TypeError or ValueError if it is neither a path nor a picture; what it is called is `name`."""
    if isinstance(given, str | os.PathLike):
        storage.check_scheme("predict", os.fspath(given), ("gs",))
        return storage.path(given) if storage.is_remote(given) else Path(given)
    if isinstance(given, jax.Array):
        given = np.asarray(given)
    if isinstance(given, np.ndarray):
        images.check_array(given)
    elif not isinstance(given, Image.Image):
        raise TypeError(f"a picture is a path, an array or a Pillow image; {name} is {type(given).__name__}")
    return given


def load_model(workdir: File) -> Model:
    """The model of the last checkpoint in `workdir`.

    Raises:
        UserError: if there is no run or no checkpoint.

    Example:
        from c2f_jax.inference import load_model
        for prediction in load_model("runs/cub").predict("photos"):
            print(prediction.file, prediction.best, prediction.box)
        (one,) = load_model("runs/cub").predict(array)  # or Image.open(...), "photo.jpg", [array, "photo.jpg"]
    """
    workdir = storage.as_path("workdir", os.fspath(workdir))
    return model_of_run(workdir, read_config(workdir))


def model_of_run(workdir: Path, config: Any) -> Model:
    """`load_model` with a config that may differ from the stored one where weights do not (e.g. the batch size)."""
    return Model(config, read_class_names(workdir), workdir)


def prediction_step(
    task: Task, fusion: Fusion | None, params: Any, batch_stats: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Pure: `image` uint8 [B, R, R, 3] and `window` [B, 4] -> what is said of each image.

    Probabilities [B, C] by view; where they exist `box` [B, 4], (ymin, xmin, ymax, xmax) in fractions of the photo, and
    `attention` [B, HEAT_SIZE, HEAT_SIZE] as in `Prediction`.
    """
    looks = steps.predict(task, params, batch_stats, batch)
    scores = log_probabilities(looks)
    if fusion is not None:
        scores["calibrated"] = calibrated(scores, fusion)
    said = {view: jnp.exp(values) for view, values in scores.items()}
    if "fine" in looks:
        said["box"] = jnp.clip(ordered(looks["fine"].box), 0.0, 1.0)
    if "attention_maps" in looks["coarse"].out:
        said["attention"] = attention_over_image(looks["coarse"], HEAT_SIZE)
    return said


def list_images(place: File) -> tuple[Path, list[str]]:
    """(folder, paths below it) of all images in a folder, or of an image file.

    Raises:
        UserError: if there is nothing, or no image in it.
    """
    place = storage.as_path("--images", os.fspath(place))
    if storage.is_file(place):
        return place.parent, [place.name]
    if not storage.is_dir(place):
        raise UserError(f"{place} does not exist: give a folder of images, or an image")
    names = [str(name) for name in images.find_images(place)]
    if not names:
        raise UserError(f"{place} holds no images (.jpg, .png, .webp, ...), in any depth")
    return place, names
