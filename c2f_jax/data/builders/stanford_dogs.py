"""Stanford Dogs: 120 breeds from ImageNet, with boxes.

Khosla, Jayadevaprakash, Yao, Li: Novel Dataset for Fine-Grained Image Categorization, FGVC 2011. Where several dogs are
boxed, the box here is around all of them. Photos of the test part are in ImageNet's training part: figures of weights
from there flatter.
"""

import xml.etree.ElementTree as ElementTree

from c2f_jax.data.builders import layout
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.data.builders.files import Files
from c2f_jax.data.builders.layout import Annotations, Dataset, Photo
from c2f_jax.errors import UserError

LISTS = {"train": "train_list.mat", "test": "test_list.mat"}
FOLDERS = ("Images", "Annotation")


def read(files: Files) -> Annotations:
    """Parses the lists, and the boxes of each photo that they name."""
    listed = {}
    for part, table in LISTS.items():
        names = [str(name) for name in layout.matlab(files, table, "file_list")]
        labels = [int(label) for label in layout.matlab(files, table, "labels")]
        if len(names) != len(labels):
            raise UserError(f"{files.path}: {table} has {len(names)} files and {len(labels)} labels")
        listed[part] = list(zip(names, labels, strict=True))
    folder_of: dict[int, str] = {}
    for part, table in LISTS.items():
        for name, label in listed[part]:
            folder, slash, _ = name.partition("/")
            if not slash or folder_of.setdefault(label, folder) != folder:
                raise UserError(f"{files.path}: {table}: {name} has the label {label} of {folder_of.get(label)}")
    if len(set(folder_of.values())) < len(folder_of):
        raise UserError(f"{files.path}: {LISTS['train']} gives one folder two labels")
    label_of = {label: position for position, label in enumerate(sorted(folder_of))}
    class_names = tuple(folder_of[label] for label in label_of)
    photos = {
        part: [Photo(f"Images/{name}", name, (label_of[label],), _box(files, name)) for name, label in listed[part]]
        for part in listed
    }
    return Annotations({"label": class_names}, photos)


def _box(files: Files, name: str) -> tuple[float, float, float, float]:
    """Around all dogs of a photo."""
    table = f"Annotation/{name.rpartition('.')[0]}"
    try:
        found = [
            [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
            for box in ElementTree.fromstring(files.read(table)).iter("bndbox")
        ]
        x1, y1, x2, y2 = zip(*found, strict=True)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{files.path}: {table} has no box of xmin, ymin, xmax, ymax ({error})") from error
    return min(x1), min(y1), max(x2), max(y2)


_SOURCE = "TFDS 4.9.10, datasets/stanford_dogs/checksums.tsv"
_URL = "http://vision.stanford.edu/aditya86/ImageNetDogs"

DATASET = Dataset(
    name="stanford_dogs",
    title="Stanford Dogs",
    homepage=f"{_URL}/",
    archives=(
        Archive(
            "images.tar",
            f"{_URL}/images.tar",
            size=793_579_520,
            sha256="a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            source=_SOURCE,
            photos=True,
        ),
        Archive(
            "annotation.tar",
            f"{_URL}/annotation.tar",
            size=21_852_160,
            sha256="662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd",
            source=_SOURCE,
        ),
        Archive(
            "lists.tar",
            f"{_URL}/lists.tar",
            size=481_280,
            sha256="34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            source=_SOURCE,
        ),
    ),
    read=read,
    tables=tuple(LISTS.values()),
    members=r"(^|/)(train_list|test_list)\.mat$|(^|/)Annotation/",
    folders=FOLDERS,
    counts={"train": 12_000, "test": 8_580, "classes": 120},
    counts_source="its homepage (20,580 images, 120 breeds, 12,000 for training)",
)
