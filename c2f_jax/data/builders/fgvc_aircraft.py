"""FGVC-Aircraft (2013b): aircraft by variant, family or manufacturer, with a box.

Maji, Kannala, Rahtu, Blaschko, Vedaldi: Fine-Grained Visual Classification of Aircraft, arXiv:1306.5151. Its README has
the layout: boxes count pixels from 1, both ends included, and the 20 lowest rows of each photo name the photographer
and have to be taken away before use. Training and validation part are trained on together, as published figures are.
"""

from c2f_jax.data.builders import layout
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.data.builders.files import Files
from c2f_jax.data.builders.layout import Annotations, Dataset, Photo
from c2f_jax.errors import UserError

LISTS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
PARTS = {"train": ("train", "val"), "test": ("test",)}
BOXES = "images_box.txt"


def read(files: Files) -> Annotations:
    """Parses the lists and checks that they fit together."""
    class_names: dict[str, tuple[str, ...]] = {}
    labels: dict[str, dict[str, int]] = {}  # level -> image -> label
    of_part: dict[str, list[str]] = {"train": [], "test": []}
    for level, table in LISTS.items():
        names = layout.lines(files, table)
        index = {name: label for label, name in enumerate(names)}
        if len(index) < len(names):
            twice = next(name for position, name in enumerate(names) if index[name] != position)
            raise UserError(f"{files.path}: {table} lists {twice} twice")
        class_names[level] = tuple(names)
        labels[level] = {}
        for part, lists in PARTS.items():
            for name in (f"images_{level}_{of}.txt" for of in lists):
                for image, label in layout.rows(files, name, 2):
                    if label not in index:
                        raise UserError(f"{files.path}: {name} gives {image} the {level} {label}, not in {table}")
                    if image in labels[level]:
                        raise UserError(f"{files.path}: {name} lists {image}, which has been listed before")
                    labels[level][image] = index[label]
                    if level == "variant":
                        of_part[part].append(image)
                    elif image not in labels["variant"]:
                        raise UserError(f"{files.path}: {name} lists {image}, which has no variant")
    boxes = layout.by_image(files, BOXES, 5, labels["variant"], "images_variant_*.txt", strict=False)
    photos: dict[str, list[Photo]] = {}
    for part, images in of_part.items():
        photos[part] = []
        for image in images:
            lacking = next((level for level in LISTS if image not in labels[level]), None)
            if lacking:
                raise UserError(f"{files.path}: images_{lacking}_*.txt do not list {image}")
            box = layout.box(files, BOXES, image, boxes, sizes=False)
            of_levels = tuple(labels[level][image] for level in LISTS)
            edges = None if box is None else (box[0] - 1, box[1] - 1, box[2], box[3])
            photos[part].append(Photo(f"images/{image}.jpg", image, of_levels, edges))
    return Annotations(class_names, photos)


DATASET = Dataset(
    name="fgvc_aircraft",
    title="FGVC-Aircraft",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    archives=(
        Archive(
            "fgvc-aircraft-2013b.tar.gz",
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            md5="d4acdd33327262359767eeaa97a4f732",
            source="several public programs, such as R's torchvision; its size in bytes could not be read",
        ),
    ),
    read=read,
    tables=(
        *LISTS.values(),
        *(f"images_{level}_{of}.txt" for level in LISTS for of in ("train", "val", "test")),
        BOXES,
    ),
    members=r"(^|/)(variants|families|manufacturers|images_(box|(variant|family|manufacturer)_(train|val|test)))\.txt$",
    counts={"train": 6667, "test": 3333, "classes": 100},
    counts_source="torchvision's docs: 10,000 images, 100 variants, 70 families, 30 manufacturers (README: 10,200); "
    "the division as public loaders and papers give it",
    folders=("images",),
    levels=tuple(LISTS),
    banner=20,
)
