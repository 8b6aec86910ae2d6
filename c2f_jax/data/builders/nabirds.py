"""NABirds: 555 kinds of North American birds, told apart by plumage, too, in a hierarchy; with a box and 11 parts.

Van Horn et al.: Building a Bird Recognition App and Large Scale Dataset with Citizen Scientists, CVPR 2015. Ids of
images are no integers, and `classes.txt` names inner nodes of the hierarchy as well: what no image is labelled with is
no class. Names that come twice have their id behind.
"""

from c2f_jax.data.builders import layout
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.data.builders.files import Files
from c2f_jax.data.builders.layout import Annotations, Dataset, Photo
from c2f_jax.errors import UserError

NUM_PARTS = 11
IMAGES, CLASSES, LABELS = "images.txt", "classes.txt", "image_class_labels.txt"
SPLIT, BOXES, PARTS, HIERARCHY = "train_test_split.txt", "bounding_boxes.txt", "parts/part_locs.txt", "hierarchy.txt"


def read(files: Files) -> Annotations:
    """Parses the tables and checks that they fit together."""
    names, nodes = layout.unique_rows(files, IMAGES), layout.unique_rows(files, CLASSES, names=False)
    found = {
        name: layout.by_image(files, name, columns, names, IMAGES, strict=name in (LABELS, SPLIT))
        for name, columns in _COLUMNS.items()
    }
    class_of = {image_id: layout.one(files, LABELS, image_id, found[LABELS])[0] for image_id in names}
    unknown = sorted(set(class_of.values()) - set(nodes))
    if unknown:
        raise UserError(f"{files.path}: {LABELS} gives images the class {unknown[0]}, not in {CLASSES}")
    used = set(class_of.values())
    leaves = [class_id for class_id in nodes if class_id in used]
    orders = _orders(files, leaves, nodes)
    tops = [node for node in nodes if node in set(orders.values())]
    label_of, top_of = ({node: label for label, node in enumerate(ids)} for ids in (leaves, tops))
    first = min((int(words[0]) for words in found[PARTS].get(next(iter(names)), []) if words[0].isdecimal()), default=0)
    photos: dict[str, list[Photo]] = {"train": [], "test": []}
    for image_id, name in names.items():
        places, visible = layout.parts(files, PARTS, image_id, found[PARTS], range(first, first + NUM_PARTS))
        leaf = class_of[image_id]
        photos[layout.part_of(files, SPLIT, image_id, found[SPLIT])].append(
            Photo(
                f"images/{name}",
                image_id,
                (label_of[leaf], top_of[orders[leaf]]),
                layout.box(files, BOXES, image_id, found[BOXES], sizes=True),
                places,
                visible,
            )
        )
    class_names = {
        level: layout.told_apart([nodes[node] for node in ids], ids)
        for level, ids in zip(DATASET.levels, (leaves, tops), strict=True)
    }
    return Annotations(class_names, photos)


def _orders(files: Files, leaves: list[str], nodes: dict[str, str]) -> dict[str, str]:
    """Class -> its ancestor just below the root."""
    parent: dict[str, str] = {}
    for child, above in layout.rows(files, HIERARCHY, 2):
        if parent.setdefault(child, above) != above:
            raise UserError(f"{files.path}: {HIERARCHY} gives {child} two parents, {parent[child]} and {above}")
    found = {}
    for leaf in leaves:
        path = [leaf]
        while path[-1] in parent:
            path.append(parent[path[-1]])
            if len(path) > len(parent) + 1:
                raise UserError(f"{files.path}: {HIERARCHY} leads from {leaf} back to itself")
        if len(path) < 2:
            raise UserError(f"{files.path}: {HIERARCHY} has no parent for the class {leaf}")
        top = path[-2]
        if top not in nodes:
            raise UserError(f"{files.path}: {HIERARCHY} names {top}, which {CLASSES} does not list")
        found[leaf] = top
    return found


_COLUMNS = {LABELS: 2, SPLIT: 2, BOXES: 5, PARTS: 5}

DATASET = Dataset(
    name="nabirds",
    title="NABirds",
    homepage="https://dl.allaboutbirds.org/nabirds",
    archives=(
        Archive(
            "nabirds.tar.gz",
            "",  # given to those who accept the terms on its page
            md5="df21a9e4db349a14e2b08adfd45873bd",
            source="several public loaders, such as github.com/lvyilin/pytorch-fgvc-dataset; not the publisher's word",
        ),
    ),
    read=read,
    tables=(IMAGES, CLASSES, LABELS, SPLIT, BOXES, PARTS, HIERARCHY),
    members=rf"(^|/)({'|'.join((IMAGES, CLASSES, LABELS, SPLIT, BOXES, PARTS, HIERARCHY))})$",
    counts={"train": 23_929, "test": 24_633, "classes": 555},
    counts_source="CVPR 2015 (48,562 images, 555 categories); the division as public loaders and papers give it",
    folders=("images",),
    levels=("label", "order"),
)
