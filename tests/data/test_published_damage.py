"""Published data sets with a file that is missing, or tables that do not fit together: a line each."""

import shutil

import pytest
import scipy.io

from c2f_jax.data.builders import published
from c2f_jax.errors import UserError
from tests.data.layouts import LAYOUTS
from tests.data.test_published import AIRCRAFT, BIRDS, PETS, edited


@pytest.fixture
def load(tmp_path):
    def load(name, path, **options):
        return published.load(name, str(path), cache_dir=str(tmp_path / "cache"), **options)

    return load


def gone(name):
    return lambda root: (root / name).unlink()


def without_labels(root):
    """As the publisher's own table of the test part, by the name of the one with labels."""
    place = root / "cars_test_annos_withlabels.mat"
    table = scipy.io.loadmat(place)["annotations"]
    names = [name for name in table.dtype.names if name != "class"]
    scipy.io.savemat(place, {"annotations": table[names].astype([(name, object) for name in names])})


DAMAGE = [
    ("fgvc_aircraft", gone(f"{AIRCRAFT}/families.txt"), "families.txt is missing"),
    ("fgvc_aircraft", gone(f"{AIRCRAFT}/images/0034309.jpg"), "images/0034309.jpg is missing, one of 1"),
    ("fgvc_aircraft", edited(f"{AIRCRAFT}/variants.txt", "737-700", "707-320"), "variants.txt lists 707-320 twice"),
    ("fgvc_aircraft", edited(f"{AIRCRAFT}/variants.txt", "737-700", "737-800"), "gives 1025794 the variant 737-700"),
    ("fgvc_aircraft", edited(f"{AIRCRAFT}/images_box.txt", "0034309 1", "0034309 x"), "other than numbers for image 0"),
    ("fgvc_aircraft", edited(f"{AIRCRAFT}/images_family_val.txt", "1025794", "999"), "lists 999, which has no variant"),
    ("fgvc_aircraft", edited(f"{AIRCRAFT}/images_variant_test.txt", "0481847", "0034309"), "0034309, which has been"),
    ("fgvc_aircraft", edited(f"{AIRCRAFT}/images_family_val.txt", "1025794 Boeing 737", ""), "do not list 1025794"),
    ("nabirds", edited(f"{BIRDS}/hierarchy.txt", "295 2\n", ""), "hierarchy.txt has no parent for the class 295"),
    ("nabirds", edited(f"{BIRDS}/hierarchy.txt", "2 0\n", "2 295\n"), "hierarchy.txt leads from 295 back to itself"),
    ("nabirds", edited(f"{BIRDS}/hierarchy.txt", "2 0\n", "2 0\n2 1\n"), "gives 2 two parents, 0 and 1"),
    ("nabirds", edited(f"{BIRDS}/classes.txt", "817 ", "816 "), "gives images the class 817, not in classes.txt"),
    (
        "nabirds",
        edited(f"{BIRDS}/parts/part_locs.txt", "c829 10 ", "c829 9 "),
        "must list parts 0 to 10 of image 0000139e",
    ),
    ("nabirds", edited(f"{BIRDS}/images.txt", "0295/", "../../"), "a table names images/../.., which leads out"),
    ("nabirds", edited(f"{BIRDS}/images.txt", " 0295/", " /etc/"), "images//etc/.*is missing"),
    (
        "oxford_iiit_pet",
        edited(f"{PETS}/test.txt", "Abyssinian_5 1 1 1", "Abyssinian_5 2 1 1"),
        "which american_bulldo",
    ),
    ("oxford_iiit_pet", edited(f"{PETS}/test.txt", " 1 1 1", " 1 3 1"), "not a photo, its breed and species"),
    ("oxford_iiit_pet", gone(f"{PETS}/trimaps/Abyssinian_5.png"), "trimaps/Abyssinian_5.png is missing"),
    (
        "oxford_iiit_pet",
        lambda root: (root / PETS / "trimaps" / "Abyssinian_5.png").write_bytes(b"no mask"),
        "trimaps/Abyssinian_5.png cannot be read",
    ),
    ("inat2021", edited("train.json", '"category_id": 2', '"category_id": 9'), "has the category 9, not among"),
    ("inat2021", edited("train.json", '"image_id": 103', '"image_id": 999'), "has no annotation of image 103"),
    ("inat2021", edited("train.json", '"image_id": 103', '"image_id": 102'), "gives image 102 two categories"),
    ("inat2021", edited("val.json", '"images"', '"pictures"'), "val.json has no list of images"),
    ("inat2021", edited("val.json", '"file_name"', '"file"'), "val.json has one of images without file_name"),
    ("inat2021", edited("train.json", '"id": 1, "name"', '"id": 0, "name"'), "gives a category's id twice"),
    ("inat2021", edited("train.json", '"genus"', '"Genus"'), "train.json has one of categories without genus"),
    ("inat2021", lambda root: (root / "val.json").write_bytes(b"[1"), "val.json is no JSON"),
    ("inat2021", edited("train.json", "train2.jpg", "train0.jpg"), "train0.jpg is missing"),
    ("stanford_dogs", gone("Annotation/n02085620-Chihuahua/n02085620_7"), "Annotation/n0.*n02085620_7 is missing"),
    ("stanford_dogs", edited("Annotation/n02085620-Chihuahua/n02085620_7", "<xmin>4", "<xmin>x"), "has no box of xmin"),
    ("stanford_dogs", edited("Annotation/n02085620-Chihuahua/n02085620_7", "</annotation>", ""), "has no box of xmin"),
    ("stanford_dogs", gone("test_list.mat"), "test_list.mat is missing"),
    ("stanford_cars", gone("devkit/cars_meta.mat"), "cars_meta.mat is missing"),
    ("stanford_cars", gone("cars_test_annos_withlabels.mat"), "cars_test_annos_withlabels.mat is missing"),
    (
        "stanford_cars",
        lambda root: [shutil.rmtree(root / "devkit"), gone("cars_test_annos_withlabels.mat")(root)],
        "cars_train_annos.mat and cars_test.* and cars_meta.mat are missing, for the photos of cars_train",
    ),
    (
        "stanford_cars",
        without_labels,
        "has no class; the publisher gives cars_test_annos.mat without: get the one with",
    ),
    (
        "stanford_cars",
        lambda root: [shutil.rmtree(root), root.mkdir(), (root / "cars.txt").touch()],
        "holds neither cars_train_annos.mat, .* nor cars_annos.mat",
    ),
    ("inat2021", edited("train.json", '"category_id": 2', '"category_id": [2]'), r"category_id is \[2\], neither"),
    (
        "inat2021",
        edited("val.json", '"image_id": 100', '"image_id": {}'),
        "one of annotations whose image_id is {}, nei",
    ),
    ("inat2021", edited("train.json", '"id": 1, "name"', '"id": "x", "name"'), "both words and numbers as ids"),
    ("inat2021", edited("train.json", '"category_id": 2', '"category_id": "2"'), "has the category '2', not among"),
    ("inat2021", edited("val.json", "Bellis perennis", "Bellis annua"), "val.json has the category 2, not among"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_damage_is_told_in_one_line(name, damage, message, load, tmp_path):
    LAYOUTS[name](tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(UserError, match=message) as caught:
        load(name, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("index.npz"))
