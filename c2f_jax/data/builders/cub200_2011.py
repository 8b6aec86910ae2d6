"""CUB-200-2011: 200 birds with a box, 15 parts and, from an archive of its own, a mask.

Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001. Any data in the same
layout will do, with any number of classes.
"""

from collections.abc import Iterable

from c2f_jax.console import warn
from c2f_jax.data.builders import layout
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.data.builders.files import Files
from c2f_jax.data.builders.layout import Annotations, Dataset, Photo
from c2f_jax.errors import UserError

NUM_PARTS = 15
IMAGES, CLASSES, LABELS = "images.txt", "classes.txt", "image_class_labels.txt"
SPLIT, BOXES, PARTS = "train_test_split.txt", "bounding_boxes.txt", "parts/part_locs.txt"
MASKS = "segmentations"


def read(files: Files) -> Annotations:
    """Parses the tables and checks that they fit together."""
    names, class_names = layout.unique_rows(files, IMAGES), layout.unique_rows(files, CLASSES)
    label_of = {class_id: label for label, class_id in enumerate(class_names)}
    found = {
        name: layout.by_image(files, name, columns, names, IMAGES, strict=name in (LABELS, SPLIT))
        for name, columns in _COLUMNS.items()
    }
    with_masks = _with_masks(files, names.values())
    photos: dict[str, list[Photo]] = {"train": [], "test": []}
    for image_id, name in names.items():
        (class_id,) = layout.one(files, LABELS, image_id, found[LABELS])
        if class_id not in label_of:
            raise UserError(f"{files.path}: {LABELS} gives image {image_id} the class {class_id}, not in {CLASSES}")
        places, visible = layout.parts(files, PARTS, image_id, found[PARTS], range(1, NUM_PARTS + 1))
        photos[layout.part_of(files, SPLIT, image_id, found[SPLIT])].append(
            Photo(
                f"images/{name}",
                image_id,
                (label_of[class_id],),
                layout.box(files, BOXES, image_id, found[BOXES], sizes=True),
                places,
                visible,
                _mask(name) if with_masks else None,
            )
        )
    return Annotations({"label": tuple(class_names.values())}, photos)


def _mask(name: str) -> str:
    return f"{MASKS}/{name.rpartition('.')[0]}.png"


def _with_masks(files: Files, names: Iterable[str]) -> bool:
    """Whether there are masks of these photos."""
    if not files.holds(MASKS):
        return False
    if any(files.find(_mask(name)) is not None for name in names):
        return True
    warn(f"{files.path}: {MASKS} holds no mask of these photos (such as {_mask(next(iter(names)))}): none are used")
    return False


_COLUMNS = {LABELS: 2, SPLIT: 2, BOXES: 5, PARTS: 5}

DATASET = Dataset(
    name="cub200_2011",
    title="CUB-200-2011",
    homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    archives=(
        Archive(
            "CUB_200_2011.tgz",
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            size=1_150_585_339,
            sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
            source="TFDS 4.9.10, url_checksums/caltech_birds2011.txt",
        ),
        Archive(
            "segmentations.tgz",
            "https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz",
            size=39_272_883,
            sha256="dc77f6cffea0cbe2e41d4201115c8f29a6320ecb04fffd2444f51b8066e4b84f",
            source="TFDS 4.9.10, url_checksums/caltech_birds2011.txt",
            optional=True,
        ),
    ),
    read=read,
    tables=(IMAGES, CLASSES, LABELS, SPLIT, BOXES, PARTS),
    members=rf"(^|/)({'|'.join((IMAGES, CLASSES, LABELS, SPLIT, BOXES, PARTS))})$|(^|/){MASKS}/.*\.png$",
    counts={"train": 5994, "test": 5794, "classes": 200},
    counts_source="CNS-TR-2011-001; TFDS, caltech_birds2011",
    folders=("images", MASKS),
    optional=(MASKS,),
)
