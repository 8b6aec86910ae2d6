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

FORM = "REL_YXYX"  # of TFDS's boxes, unless a data set says otherwise
SEEN = 64  # records of each split, spread over it, that are looked at before any training

FIELDS = {"image": "image", "label": "label", "box": "", "train": "train", "validation": "", "test": "test"}


class Part:
    """The examples of one split."""

    def __init__(self, builder: Any, split: str, fields: Mapping[str, str], classes: int, min_side: int | None):
        self._where, self._classes = f"dataset.fields: the split {split} of tfds:{builder.info.name}", classes
        skipped = {fields["image"]: tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=_nested(skipped))
        self._fields, self._min_side = fields, min_side

    def __len__(self) -> int:
        return len(self._records)

    @property
    def labels(self) -> np.ndarray:
        """int [N]; every record is read for it, and no photo decoded."""
        return np.array([self._label(index, self._records[index]) for index in range(len(self))], int)

    def check(self) -> None:
        """Raises UserError if there is no example, or one of some that are looked at lacks its label or box."""
        if not len(self):
            raise UserError(f"{self._where} is empty; name another")
        for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), SEEN)).astype(int)):
            record = self._records[int(index)]
            self._label(index, record)
            self._box(index, record)

    def _label(self, index: int, record: Any) -> int:
        label = int(_at(record, self._fields["label"]))
        if not 0 <= label < self._classes:
            raise UserError(
                f"{self._where} has the label {label} in record {index}, of {self._classes} classes: it is published "
                "without labels, or not for all; name another split"
            )
        return label

    def _box(self, index: int, record: Any) -> np.ndarray | None:
        """Around all objects, float32 [4]; None if the fields name none."""
        if not self._fields["box"]:
            return None
        boxes = np.reshape(_at(record, self._fields["box"]), (-1, 4))
        if not len(boxes):
            raise UserError(f"{self._where} has no box in record {index}; leave box=... out")
        return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]).astype(np.float32)

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
        example = {"image": image, "label": self._label(index, record), "index": index}
        box = self._box(index, record)
        return example if box is None else example | {"box": box}


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
        UserError: if it is not prepared, or has no such feature or split, or no labels there.
    """
    place = storage.as_path("dataset.path", path, remote=False) if path else None
    called = {**FIELDS, **fields}
    with _quiet():
        builder = _builder(name, place)
        features = builder.info.features
        for what, kind in KINDS.items():
            if called[what]:
                _check(name, features, what, called[what], kind)
        classes = tuple(_feature(features, called["label"], tfds.features.ClassLabel).names)
        splits = list(builder.info.splits)
        if len(splits) < 2:
            raise UserError(
                f"tfds:{name} has but the split {''.join(splits)}, and nothing else to test on; write its photos into "
                "folders, one a class, and give them with --config.dataset.name=folder, which divides them"
            )
        for part in ("train", "validation", "test"):
            others = [other for other in ("train", "validation", "test") if other != part]
            same = next((other for other in others if called[part] and called[part] == called[other]), None)
            if same:
                raise UserError(
                    f"dataset.fields: {part} and {same} are both the split {called[part]} of tfds:{name}; give each "
                    f"another of {', '.join(splits)}"
                )
            if called[part] and called[part] not in splits:
                there = ", ".join(splits)
                raise UserError(
                    f"dataset.fields: tfds:{name} has no split {called[part]}; give one of {there}: {part}=..."
                )
        parts = [
            Part(builder, called[part], called, len(classes), min_side) if called[part] else None
            for part in ("train", "validation", "test")
        ]
        for one in filter(None, parts):
            one.check()
    train, validation, test = parts
    assert train is not None and test is not None
    return Loaded(train, validation, test, classes)


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


KINDS = {"image": tfds.features.Image, "label": tfds.features.ClassLabel, "box": tfds.features.BBoxFeature}


def _check(name: str, features: Any, what: str, called: str, kind: Any) -> None:
    feature = _feature(features, called, kind)
    if feature is None:
        there = ", ".join(_names(features, kind))
        of = " or list of them" if what == "box" else ""
        raise UserError(
            f"dataset.fields: tfds:{name} has no feature of type {kind.__name__}{of} {called}; give {what}=... of: "
            f"{there or 'none'}"
        )
    if _form(feature) != FORM:
        form = _form(feature)
        raise UserError(f"dataset.fields: the boxes {called} of tfds:{name} are {form}, not {FORM}; leave box=... out")


def _form(feature: Any) -> str:
    """Of a box; of what is none, or does not say, the usual."""
    return str(getattr(getattr(feature, "bbox_format", None), "value", FORM))


def _names(features: Any, kind: Any, before: str = "", lists: int | None = None) -> list[str]:
    """Of all features that `_feature` finds, nested ones with slashes."""
    found = []
    for name in features:
        feature = _feature(features, name, kind, lists)
        if feature is not None and _form(feature) == FORM:
            found.append(before + name)
        inner, left = _inner(features[name], _lists(kind) if lists is None else lists)
        if isinstance(inner, tfds.features.FeaturesDict):
            found += _names(inner, kind, f"{before}{name}/", left)
    return found


def _feature(features: Any, called: str, kind: Any, lists: int | None = None) -> Any:
    """A feature of a kind by its name; a name with slashes of its own (`image/filename`) goes before a nested one.

    lists: how many it may lie in.
    """
    lists = _lists(kind) if lists is None else lists
    if called in features:
        found, _ = _inner(features[called], lists)
        return found if isinstance(found, kind) else None
    first, slash, rest = called.partition("/")
    inner, left = _inner(features[first], lists) if slash and first in features else (None, 0)
    return _feature(inner, rest, kind, left) if isinstance(inner, tfds.features.FeaturesDict) else None


def _lists(kind: Any) -> int:
    """There may be several boxes; of others there is one for each example."""
    return int(kind is tfds.features.BBoxFeature)


def _inner(feature: Any, lists: int) -> tuple[Any, int]:
    """A feature, or what it is a list of; and in how many lists more one may look. None if in none."""
    if not isinstance(feature, tfds.features.Sequence):
        return feature, lists
    # Its subclasses, data sets and videos, are read as something else.
    return (feature.feature, lists - 1) if lists and type(feature) is tfds.features.Sequence else (None, 0)


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
