"""iNaturalist 2021: 10,000 species, as lists in COCO's form; no boxes.

Van Horn et al.: Benchmarking Representation Learning for Natural World Image Collections, CVPR 2021; layout and counts:
github.com/visipedia/inat_comp/tree/master/2021. Nobody gives the labels of its test part: its validation part, ten
photos of each species, is the test part here, as it is in published figures. `inat2021_mini` trains on the 50 photos
of each species that its publishers chose.
"""

import json
from functools import partial
from typing import Any

from c2f_jax.data.builders import layout
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.data.builders.files import Files
from c2f_jax.data.builders.layout import Annotations, Dataset, Photo
from c2f_jax.errors import UserError

LEVELS = ("species", "genus", "family", "order", "class", "phylum", "kingdom", "supercategory")


def read(files: Files, *, train: str) -> Annotations:
    """Parses the lists and checks that they fit together. train: the list to train on."""
    tables = {part: _json(files, table) for part, table in (("train", train), ("test", "val.json"))}
    categories = _categories(files, train, tables["train"])
    ids = [row["id"] for row in categories]
    class_names, labels = {}, []
    for level in LEVELS:
        field = _field(level)
        if level == "species":
            names = list(layout.told_apart([str(row[field]) for row in categories], [str(key) for key in ids]))
            known = names
        else:
            names = [str(row[field]) for row in categories]
            known = sorted(set(names))
        index = {name: label for label, name in enumerate(known)}
        class_names[level] = tuple(known)
        labels.append([index[name] for name in names])
    of_category = list(zip(*labels, strict=True))
    photos: dict[str, list[Photo]] = {}
    for part, table in (("train", train), ("test", "val.json")):
        position = _positions(files, train, categories, table, tables[part])
        category_of: dict[Any, Any] = {}
        for row in _of(files, table, tables[part], "annotations", ("image_id", "category_id")):
            if row["category_id"] not in position:
                raise UserError(f"{files.path}: {table} has the category {row['category_id']!r}, not among {train}'s")
            if category_of.setdefault(row["image_id"], row["category_id"]) != row["category_id"]:
                raise UserError(f"{files.path}: {table} gives image {row['image_id']} two categories")
        photos[part] = []
        for row in _of(files, table, tables[part], "images", ("id", "file_name")):
            if row["id"] not in category_of:
                raise UserError(f"{files.path}: {table} has no annotation of image {row['id']}")
            of = of_category[position[category_of[row["id"]]]]
            photos[part].append(Photo(str(row["file_name"]), str(row["id"]), of))
    return Annotations(class_names, photos)


def _field(level: str) -> str:
    return "name" if level == "species" else level


def _categories(files: Files, table: str, content: Any) -> list[dict[str, Any]]:
    """Those of a list, by their ids."""
    rows = _of(files, table, content, "categories", ("id", *map(_field, LEVELS)))
    kinds = {type(row["id"]) for row in rows}
    if len(kinds) > 1:
        raise UserError(f"{files.path}: {table} has both words and numbers as ids of categories; fetch it again")
    if len({row["id"] for row in rows}) < len(rows):
        raise UserError(f"{files.path}: {table} gives a category's id twice")
    return sorted(rows, key=lambda row: row["id"])


def _positions(files: Files, train: str, categories: list[dict[str, Any]], table: str, content: Any) -> dict[Any, int]:
    """A list's own ids of categories -> where the same taxon is among `train`'s; those that are not there are left out.

    Names alone do not tell taxa apart, nor do ids of other lists: the whole path does, and the id where it comes twice.
    """
    if table == train:
        return {row["id"]: place for place, row in enumerate(categories)}
    places: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(categories):
        places.setdefault(_path(row), []).append(place)
    found = {}
    for row in _categories(files, table, content):
        same = places.get(_path(row), [])
        same = same if len(same) < 2 else [place for place in same if categories[place]["id"] == row["id"]]
        if same:
            found[row["id"]] = same[0]
    return found


def _path(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[_field(level)]) for level in LEVELS)


def _json(files: Files, table: str) -> Any:
    try:
        return json.loads(files.read(table))
    except ValueError as error:
        raise UserError(f"{files.path}: {table} is no JSON ({error}); fetch it again") from error


def _of(files: Files, table: str, content: Any, name: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{files.path}: {table} has no list of {name}; fetch it again")
    for row in rows:
        lacking = next((field for field in fields if not isinstance(row, dict) or field not in row), None)
        if lacking:
            raise UserError(f"{files.path}: {table} has one of {name} without {lacking}; fetch it again")
        for field in fields:
            if field in ("id", "image_id", "category_id") and type(row[field]) not in (int, str):
                raise UserError(
                    f"{files.path}: {table} has one of {name} whose {field} is {str(row[field])[:40]}, neither a "
                    "number nor a word; fetch it again"
                )
    return rows


_URL = "https://ml-inat-competition-datasets.s3.amazonaws.com/2021"
_SOURCE = "torchvision's INaturalist"
_LISTS = "several public programs that repeat the publisher's table"


def _dataset(name: str, title: str, folder: str, md5: str, lists_md5: str, images: int) -> Dataset:
    return Dataset(
        name=name,
        title=title,
        homepage="https://github.com/visipedia/inat_comp/tree/master/2021",
        archives=(
            Archive(f"{folder}.tar.gz", f"{_URL}/{folder}.tar.gz", md5=md5, source=_SOURCE, photos=True),
            Archive(
                "val.tar.gz",
                f"{_URL}/val.tar.gz",
                md5="f6f6e0e242e3d4c9569ba56400938afc",
                source=_SOURCE,
                photos=True,
            ),
            Archive(f"{folder}.json.tar.gz", f"{_URL}/{folder}.json.tar.gz", md5=lists_md5, source=_LISTS),
            Archive(
                "val.json.tar.gz",
                f"{_URL}/val.json.tar.gz",
                md5="4d761e0f6a86cc63e8f7afc91f6a8f0b",
                source=_LISTS,
            ),
        ),
        read=partial(read, train=f"{folder}.json"),
        tables=(f"{folder}.json", "val.json"),
        members=rf"(^|/)({folder}|val)\.json$",
        counts={"train": images, "test": 100_000, "classes": 10_000},
        counts_source="github.com/visipedia/inat_comp, 2021/README.md",
        folders=(folder, "val"),
        levels=LEVELS,
    )


FULL = _dataset(
    "inat2021",
    "iNaturalist 2021",
    "train",
    "e0526d53c7f7b2e3167b2b43bb2690ed",
    "38a7bb733f7a09214d44293460ec0021",
    2_686_843,
)
MINI = _dataset(
    "inat2021_mini",
    "iNaturalist 2021 mini",
    "train_mini",
    "db6ed8330e634445efc8fec83ae81442",
    "395a35be3651d86dc3b0d365b8ea5f92",
    500_000,
)
