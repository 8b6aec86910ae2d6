"""Oxford-IIIT Pet: 37 breeds of cats and dogs, with a mask of the animal.

Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012. The masks (`trimaps`: 1 the animal, 2 background, 3
neither) are there for both parts, the published boxes for training photos and of heads only: the box here is that of
the mask.
"""

from c2f_jax.data.builders import layout
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.data.builders.files import Files
from c2f_jax.data.builders.layout import Annotations, Dataset, Photo
from c2f_jax.errors import UserError

LISTS = {"train": "trainval.txt", "test": "test.txt"}
SPECIES = ("Cat", "Dog")


def read(files: Files) -> Annotations:
    """Parses the lists and checks that they fit together."""
    name_of: dict[int, str] = {}
    listed: dict[str, list[tuple[str, int, int]]] = {}
    for part, table in LISTS.items():
        listed[part] = []
        for words in layout.rows(files, table, 4, comment="#"):
            try:
                breed, species = int(words[1]), int(words[2])
            except ValueError:
                breed, species = 0, 0
            name = words[0].rpartition("_")[0]
            if breed < 1 or species not in (1, 2) or not name:
                raise UserError(f"{files.path}: {table} has {' '.join(words)!r}, not a photo, its breed and species")
            if name_of.setdefault(breed, name) != name:
                raise UserError(f"{files.path}: {table} gives {words[0]} the breed {breed}, which {name_of[breed]} has")
            listed[part].append((words[0], breed, species))
    label_of = {breed: label for label, breed in enumerate(sorted(name_of))}
    class_names = layout.told_apart([name_of[breed] for breed in label_of], [str(breed) for breed in label_of])
    photos = {
        part: [
            Photo(f"images/{name}.jpg", name, (label_of[breed], species - 1), segmentation=f"trimaps/{name}.png")
            for name, breed, species in listed[part]
        ]
        for part in listed
    }
    return Annotations({"label": class_names, "species": SPECIES}, photos)


_SOURCE = "TFDS 4.9.10, datasets/oxford_iiit_pet/checksums.tsv"
_URL = "https://thor.robots.ox.ac.uk/~vgg/data/pets"

DATASET = Dataset(
    name="oxford_iiit_pet",
    title="Oxford-IIIT Pet",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    archives=(
        Archive(
            "images.tar.gz",
            f"{_URL}/images.tar.gz",
            size=791_918_971,
            sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            source=_SOURCE,
            photos=True,
        ),
        Archive(
            "annotations.tar.gz",
            f"{_URL}/annotations.tar.gz",
            size=19_173_078,
            sha256="52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            source=_SOURCE,
        ),
    ),
    read=read,
    tables=tuple(LISTS.values()),
    members=r"(^|/)(trainval|test)\.txt$|(^|/)trimaps/[^.][^/]*\.png$",
    counts={"train": 3680, "test": 3669, "classes": 37},
    counts_source="TFDS's catalog, oxford_iiit_pet 4.0.0",
    folders=("images", "trimaps"),
    levels=("label", "species"),
    box_of_mask=True,
)
