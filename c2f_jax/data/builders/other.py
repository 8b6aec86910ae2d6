"""Any other data set that TFDS has prepared, by its TFDS name; which feature is what, `dataset.fields` says."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from c2f_jax import storage
from c2f_jax.data import images
from c2f_jax.data.raw import Raw
from c2f_jax.errors import UserError

FIELDS = {"image": "image", "label": "label", "box": "", "train": "train", "validation": "", "test": "test"}


class Part:
    """The examples of one split."""

    def __init__(self, builder: Any, split: str, fields: Mapping[str, str], min_side: int | None):
        skipped = {fields["image"]: tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=_nested(skipped))
        self._fields, self._min_side = fields, min_side

    def __len__(self) -> int:
        return len(self._records)

    @property
    def labels(self) -> np.ndarray:
        """int [N]; every record is read for it, and no photo decoded."""
        return np.array([int(_at(self._records[index], self._fields["label"])) for index in range(len(self))], int)

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each photo in pixels, int [N, 2]; every record is read for it, and no photo decoded."""
        photos = (_at(self._records[index], self._fields["image"]) for index in range(len(self)))
        found = [images.stored(photo) for photo in photos]
        turned = [(one.width, one.height) if one.orientation >= 5 else (one.height, one.width) for one in found]
        return np.array(turned, int).reshape(-1, 2)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(index, None)

    def scaled(self, index: int, raw: Raw) -> dict[str, Any]:
        """As of `sources.scaled`."""
        return self._example(index, raw.shape)

    def _example(self, index: int, shape: images.Shape | None) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._records[index]
        try:
            photo = _at(record, self._fields["image"])
            image = images.decode_photo(photo, min_side=self._min_side, shape=shape).image
        except images.UnreadableImage as error:
            raise UserError(f"record {index} of the data set cannot be read ({error}); prepare it again") from error
        example = {"image": image, "label": int(_at(record, self._fields["label"])), "index": index}
        boxes = np.reshape(_at(record, self._fields["box"]), (-1, 4)) if self._fields["box"] else np.zeros((0, 4))
        if len(boxes):  # around all objects
            example["box"] = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]).astype(np.float32)
        return example


class Loaded(NamedTuple):
    """The parts, and the classes; validation: None if the fields name none."""

    train: Part
    validation: Part | None
    test: Part
    class_names: tuple[str, ...]


def load(name: str, path: str, *, fields: Mapping[str, str], min_side: int | None = None) -> Loaded:
    """What TFDS has prepared under `name`.

    Args:
        name: of the data set, perhaps with its config and version.
        path: TFDS's data_dir; empty: its own default.
        fields: those of `FIELDS` that are called otherwise there.
        min_side: pixels that the shorter side of a photo will be reduced to; None if it will not.

    Raises:
        UserError: if it is not prepared, or has no such feature or split.
    """
    place = storage.as_path("dataset.path", path, remote=False) if path else None
    called = {**FIELDS, **fields}
    with _quiet():
        builder = _builder(name, place)
        features = builder.info.features
        for what, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel), ("box", None)):
            if called[what]:
                _check(name, features, what, called[what], kind)
        for part in ("train", "validation", "test"):
            if called[part] and called[part] not in builder.info.splits:
                there = ", ".join(builder.info.splits)
                raise UserError(
                    f"dataset.fields: tfds:{name} has no split {called[part]}; give one of {there}: {part}=..."
                )
        parts = [
            Part(builder, called[part], called, min_side) if called[part] else None
            for part in ("train", "validation", "test")
        ]
    train, validation, test = parts
    assert train is not None and test is not None
    return Loaded(train, validation, test, tuple(_feature(features, called["label"]).names))


def _builder(name: str, place: Path | None) -> Any:
    how = (
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare(), for which many data sets need "
        "TensorFlow"
    )
    try:
        builder = tfds.builder(name, data_dir=place)
    except Exception as error:  # DatasetNotFoundError, or whatever a builder's import raises
        told = " ".join(str(error).split())[:160]
        raise UserError(
            f"dataset.name: TFDS cannot open {name} ({type(error).__name__}: {told}); dataset.path is its data_dir"
        ) from error
    if not builder.is_prepared():
        raise UserError(f"tfds:{name} is not prepared in {builder.data_dir}: prepare it in Python by {how}")
    if not builder.info.file_format or builder.info.file_format.value != "array_record":
        raise UserError(f"tfds:{name} in {builder.data_dir} cannot be read in any order: prepare it in Python by {how}")
    return builder


def _check(name: str, features: Any, what: str, called: str, kind: Any) -> None:
    feature = _feature(features, called)
    if feature is None or (kind is not None and not isinstance(feature, kind)):
        there = ", ".join(_names(features, kind))
        wanted = f"feature of type {kind.__name__}" if kind is not None else "feature"
        raise UserError(f"dataset.fields: tfds:{name} has no {wanted} {called}; give {what}=... of: {there or 'none'}")


def _names(features: Any, kind: Any, before: str = "") -> list[str]:
    """Of all features of a kind, nested ones with slashes."""
    found = []
    for name, feature in features.items():
        if isinstance(feature, kind or tfds.features.BBoxFeature):
            found.append(before + name)
        if hasattr(feature, "items") and not isinstance(feature, tfds.features.ClassLabel):
            found += _names(feature, kind, f"{before}{name}/")
        elif isinstance(feature, tfds.features.Sequence) and hasattr(feature.feature, "items"):
            found += _names(feature.feature, kind, f"{before}{name}/")
    return found


def _feature(features: Any, called: str) -> Any:
    """A feature by its name; a name with slashes of its own (`image/filename`) goes before a nested one."""
    if called in features:
        return features[called]
    first, slash, rest = called.partition("/")
    if not slash or first not in features:
        return None
    inner = features[first]
    inner = inner.feature if isinstance(inner, tfds.features.Sequence) else inner
    return _feature(inner, rest) if hasattr(inner, "keys") else None


def _at(record: Any, called: str) -> Any:
    if called in record:
        return record[called]
    first, _, rest = called.partition("/")
    return _at(record[first], rest)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split("/")
        holder = found
        for part in above:
            holder = holder.setdefault(part, {})
        holder[last] = value
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
