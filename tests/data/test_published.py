"""The data sets that people publish figures on, in their official layouts, and what befalls such data."""

import contextlib
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from c2f_jax.data import sources
from c2f_jax.data.builders import published, records
from c2f_jax.data.builders.published import DATASETS
from c2f_jax.errors import UserError
from tests.data import layouts
from tests.data.layouts import ARCHIVES, LAYOUTS, pack

AIRCRAFT, BIRDS, PETS = "fgvc-aircraft-2013b/data", "nabirds", "annotations"


def edited(name, old, new):
    def edit(root):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return edit


@pytest.fixture
def load(tmp_path):
    def load(name, path, **options):
        return published.load(name, str(path), cache_dir=str(tmp_path / "cache"), **options)

    return load


def check(name, loaded, wanted, level=None):
    dataset = DATASETS[name]
    level = level or dataset.levels[0]
    for part, examples in wanted.items():
        source = getattr(loaded, part)
        assert len(source) == len(examples)
        assert [loaded.class_names[label] for label in source.labels] == [one.labels[level] for one in examples]
        for index, one in enumerate(examples):
            example = source[index]
            width, height = one.size
            assert example["image"].shape == (height, width, 3) and example["image"].dtype == np.uint8
            assert (example["name"], example["index"]) == (one.name, index)
            assert source.sizes[index].tolist() == [height, width]
            if one.box is None:
                assert "box" not in example
                continue
            x1, y1, x2, y2 = one.box
            sides = np.array([height, width, height, width])
            np.testing.assert_allclose(example["box"] * sides, [y1, x1, y2, x2], atol=1e-4)
            # The object of each photo is a block of another colour, exactly in its box.
            red = example["image"][..., 0].astype(int)
            middle = red[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
            outside = np.ones((height, width), bool)
            outside[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
            if middle.size and outside.any():
                assert middle.min() > red[outside].max()


def test_checksums_are_those_of_the_source_that_is_named():
    """Where that is a file of TFDS: address, size and SHA-256, a line each."""
    told = 0
    for archive in (archive for dataset in DATASETS.values() for archive in dataset.archives):
        package, _, name = archive.source.partition(", ")
        if package.startswith("TFDS"):
            lines = (Path(tfds.__file__).parent / name).read_text().splitlines()
            assert [str(archive.size), archive.sha256, archive.name] in [line.split("\t")[1:] for line in lines]
            told += 1
    assert told == 11


@pytest.mark.parametrize("name", LAYOUTS)
def test_unpacked_and_in_archives(name, load, tmp_path):
    wanted = LAYOUTS[name](tmp_path / "data")
    check(name, load(name, tmp_path / "data"), wanted)
    archives = tmp_path / "archives"
    archives.mkdir()
    for file, only in ARCHIVES[name].items():
        pack(tmp_path / "data", archives / file, only=only)
    if name == "stanford_cars":
        shutil.copy(tmp_path / "data" / "cars_test_annos_withlabels.mat", archives)
    check(name, load(name, archives), wanted)
    # As others hand them on: all in one, in a folder more.
    whole = pack(tmp_path / "data", tmp_path / "archive.zip", under="archive/data/")
    check(name, load(name, whole), wanted)
    for level in wanted["train"][0].labels:
        check(name, load(name, whole, level=level), wanted, level)
    assert len(list((tmp_path / "cache").rglob("index.npz"))) == 3


def test_tfds_itself_opens_what_is_prepared(load, tmp_path):
    wanted = layouts.nabirds(tmp_path / "data")
    load("nabirds", tmp_path / "data")
    (index,) = (tmp_path / "cache").rglob("index.npz")
    builder = tfds.builder_from_directory(index.parent)
    source = builder.as_data_source("train")
    assert len(source) == 3 and source[0]["image"].shape == (30, 40, 3)
    names = builder.info.features["label"].names
    assert [names[row["label"]] for row in source] == [one.labels["label"] for one in wanted["train"]]


def test_both_styles_of_cars(load, tmp_path):
    first, second = layouts.stanford_cars(tmp_path / "one"), layouts.stanford_cars_in_one_folder(tmp_path / "two")
    check("stanford_cars", load("stanford_cars", tmp_path / "one"), first)
    check("stanford_cars", load("stanford_cars", tmp_path / "two"), second)
    # As Kaggle unpacks the first.
    for part in ("train", "test"):
        shutil.move(tmp_path / "one" / f"cars_{part}", tmp_path / "inner")
        (tmp_path / "one" / f"cars_{part}").mkdir()
        shutil.move(tmp_path / "inner", tmp_path / "one" / f"cars_{part}" / f"cars_{part}")
    shutil.rmtree(tmp_path / "cache")
    check("stanford_cars", load("stanford_cars", tmp_path / "one"), first)
    shutil.rmtree(tmp_path / "two" / "car_ims")
    wrong = tmp_path / "two" / "cars_annos.mat"
    scipy.io.savemat(wrong, {"annotations": np.zeros((1, 2)), "class_names": np.array([["a", "b"]], object)})
    with pytest.raises(UserError, match="cars_annos.mat has no relative_im_path"):
        load("stanford_cars", tmp_path / "two")
    wrong.write_bytes(b"no MATLAB file")
    with pytest.raises(UserError, match="cars_annos.mat is not a MATLAB file with class_names"):
        load("stanford_cars", tmp_path / "two")


def test_parts_of_a_turned_photo(load, tmp_path):
    layouts.nabirds(tmp_path / "data")
    train = load("nabirds", tmp_path / "data").train
    plain, turned = train[0], train[1]
    assert plain["parts"].shape == (11, 2) and plain["part_visible"].tolist() == [part % 2 > 0 for part in range(11)]
    xy = np.array([[part + 3, part + 7] for part in range(11)])
    np.testing.assert_allclose(plain["parts"], xy[:, ::-1] / [30, 40], rtol=1e-6)
    np.testing.assert_allclose(turned["parts"], np.stack([xy[:, 0] / 40, (30 - xy[:, 1]) / 30], 1), rtol=1e-6)


def test_masks(load, tmp_path):
    layouts.oxford_iiit_pet(tmp_path / "data")
    mask = load("oxford_iiit_pet", tmp_path / "data").test.segmentation(0)
    assert mask.shape == (30, 40) and np.unique(mask).tolist() == [1, 2, 3]


def test_masks_that_are_turned_of_another_size_or_damaged(load, tmp_path, capsys):
    layouts.oxford_iiit_pet(tmp_path / "data")
    masks = tmp_path / "data" / "annotations" / "trimaps"
    layouts.photo(tmp_path / "data" / "images" / "Abyssinian_100.jpg", (40, 30), (4, 5, 24, 20), "EXIF")
    train = load("oxford_iiit_pet", tmp_path / "data").train
    example, mask = train[0], train.segmentation(0)
    assert example["image"].shape[:2] == mask.shape == (40, 30)
    red = example["image"][..., 0] > 128
    assert np.mean(red == (mask != 2)) > 0.97  # the object is where the mask says
    with Image.open(masks / "Abyssinian_100.png") as small:
        small.resize((80, 60), 0).save(masks / "Abyssinian_100.png")
    capsys.readouterr()
    loaded = load("oxford_iiit_pet", tmp_path / "data")
    assert loaded.train.segmentation(0) is None and loaded.train.segmentation(1).shape == (30, 40)
    assert "1 masks have another size than their photos" in capsys.readouterr().err
    assert "box" not in loaded.train[0] and "box" in loaded.test[0]
    assert "1 of 2 images of the train part have no box" in loaded.notes[-1]
    (masks / "Abyssinian_100.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="trimaps/Abyssinian_100.png cannot be read"):
        load("oxford_iiit_pet", tmp_path / "data")


def test_damaged_masks_of_cub(load, tmp_path):
    from tests.data import test_cub200_2011 as cub

    folder = cub.write(tmp_path / "data")
    for image_id, label, *_ in cub.PHOTOS:
        path = folder / "segmentations" / f"{cub.name_of(image_id, label)[:-4]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nope")
    with pytest.raises(UserError, match=r"segmentations/.*png cannot be read \(not a picture\)"):
        load("cub200_2011", folder)


def test_masks_of_cub_from_the_second_archive(load, tmp_path, capsys):
    from tests.data import test_cub200_2011 as cub

    folder = cub.write(tmp_path / "data")
    archives = tmp_path / "archives"
    archives.mkdir()
    cub.pack(folder.parent, archives / "CUB_200_2011.tgz")
    assert load("cub200_2011", archives).train.segmentation(0) is None
    for image_id, label, _, width, height in cub.PHOTOS:
        path = tmp_path / "masks" / "segmentations" / f"{cub.name_of(image_id, label)[:-4]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height), image_id % 256).save(path)
    pack(tmp_path / "masks", archives / "segmentations.tgz")
    train = load("cub200_2011", archives).train
    assert [int(train.segmentation(index)[0, 0]) for index in range(4)] == [7, 30, 31, 1000 % 256]
    assert train.segmentation(0).shape == train[0]["image"].shape[:2]
    shutil.move(tmp_path / "masks" / "segmentations", folder)
    assert load("cub200_2011", folder).train.segmentation(2)[0, 0] == 31
    # Beside what `path` names, as docs/data.md has it.
    shutil.move(folder / "segmentations", folder.parent)
    assert load("cub200_2011", folder).train.segmentation(2)[0, 0] == 31
    assert load("cub200_2011", archives / "CUB_200_2011.tgz").train.segmentation(2)[0, 0] == 31
    cub.pack(folder.parent, tmp_path / "all.zip")
    assert load("cub200_2011", tmp_path / "all.zip").train.segmentation(2)[0, 0] == 31
    shutil.move(archives / "segmentations.tgz", tmp_path / "segmentations.tar.gz")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "segmentations").mkdir()  # of something else
    shutil.copy(archives / "CUB_200_2011.tgz", tmp_path / "elsewhere")
    assert load("cub200_2011", tmp_path / "elsewhere" / "CUB_200_2011.tgz").train.segmentation(2) is None
    assert "segmentations holds no mask of these photos" in capsys.readouterr().err
    shutil.move(folder.parent / "segmentations", folder)
    (folder / "segmentations" / f"{cub.name_of(31, 200)[:-4]}.png").unlink()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="segmentations/200.Barn Swallow/photo 31.png is missing"):
        load("cub200_2011", folder)


OTHERS = {  # what makes another data set of a copy, and of which files
    "photos": ["fgvc_aircraft", "stanford_cars", "stanford_dogs", "nabirds", "oxford_iiit_pet", "inat2021"],
    "boxes": ["stanford_dogs"],
    "masks": ["oxford_iiit_pet"],
}


@pytest.mark.parametrize(("what", "name"), [(what, name) for what, names in OTHERS.items() for name in names])
def test_other_photos_boxes_or_masks_are_read(what, name, load, tmp_path):
    LAYOUTS[name](tmp_path / "a")
    first = load(name, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    load(name, tmp_path / "b")
    assert len(list((tmp_path / "cache").rglob("index.npz"))) == 1  # a copy is no other data set
    for place in (tmp_path / "b").rglob("*"):
        if what == "photos" and place.suffix == ".jpg":
            Image.new("RGB", (40, 50 if name == "fgvc_aircraft" else 30), (0, 255, 0)).save(place)
        elif what == "boxes" and place.parent.parent.name == "Annotation" and place.is_file():
            place.write_text(place.read_text().replace("<xmin>4", "<xmin>1"))
        elif what == "masks" and place.suffix == ".png" and place.name[0] != ".":
            Image.new("L", (40, 30), 1).save(place)
    again = load(name, tmp_path / "b").train[0]
    if what == "photos":
        assert abs(again["image"].astype(int) - (0, 255, 0)).max() < 4
    elif what == "boxes":
        assert round(float(again["box"][1]) * 40, 3) == 1
    else:
        np.testing.assert_array_equal(again["box"], [0, 0, 1, 1])
    example = load(name, tmp_path / "a").train[0]
    np.testing.assert_array_equal(example["image"], first.train[0]["image"])


def test_photos_that_are_no_more_there_were_prepared(load, tmp_path):
    layouts.nabirds(tmp_path / "data")
    load("nabirds", tmp_path / "data")
    (tmp_path / "data" / "nabirds" / "images" / "Thumbs.db").touch()  # tells nothing
    (tmp_path / "data" / "nabirds" / "images" / ".DS_Store").touch()
    load("nabirds", tmp_path / "data")
    assert len(list((tmp_path / "cache").rglob("index.npz"))) == 1
    shutil.rmtree(tmp_path / "data" / "nabirds" / "images")
    assert len(load("nabirds", tmp_path / "data").train) == 3
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"is missing, one of 4; give the unpacked folder, or .*nabirds.tar.gz"):
        load("nabirds", tmp_path / "data")


def test_the_lists_of_inat_may_number_species_each_by_itself(load, tmp_path):
    wanted = layouts.inat2021(tmp_path / "data")
    place = tmp_path / "data" / "val.json"
    table = json.loads(place.read_text())
    new = {row["id"]: 70 - row["id"] for row in table["categories"]}
    for row in table["categories"]:
        row["id"] = new[row["id"]]
    for row in table["annotations"]:
        row["category_id"] = new[row["category_id"]]
    place.write_text(json.dumps(table))
    check("inat2021", load("inat2021", tmp_path / "data"), wanted)


def test_boxes_that_are_none_leave_their_photos(load, tmp_path, capsys):
    layouts.fgvc_aircraft(tmp_path / "data")
    place = tmp_path / "data" / AIRCRAFT / "images_box.txt"
    # Within the banner; and one of a photo that is not listed.
    place.write_text(place.read_text().replace("0056978 5 5 10 10", "0056978 5 40 10 45") + "0000001 1 1 5 5\n")
    loaded = load("fgvc_aircraft", tmp_path / "data")
    assert len(loaded.train) == 3 and "box" not in loaded.train[0] and "box" in loaded.test[0]
    assert loaded.notes[-1].startswith("1 of 3 images of the train part have no box, or none within the photo")
    assert "1 lines of images_box.txt name images that images_variant_*.txt does not list" in capsys.readouterr().err
    layouts.nabirds(tmp_path / "birds")
    edited("bounding_boxes.txt", "4 5 20 15", "4 5 0 15")(tmp_path / "birds" / BIRDS)
    loaded = load("nabirds", tmp_path / "birds")
    assert len(loaded.train) == 3 and loaded.notes[-1].startswith("1 of 3 images of the train part have no box")


def test_lists_of_pets_with_a_header(load, tmp_path):
    wanted = layouts.oxford_iiit_pet(tmp_path / "data")
    place = tmp_path / "data" / PETS / "test.txt"
    place.write_text("#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n#x\n" + place.read_text())
    check("oxford_iiit_pet", load("oxford_iiit_pet", tmp_path / "data"), wanted)


@pytest.mark.parametrize("name", LAYOUTS)
def test_however_deep_it_is_wrapped(name, load, tmp_path):
    wanted = LAYOUTS[name](tmp_path / "top" / "x" / "y" / "z")
    check(name, load(name, tmp_path / "top"), wanted)
    pack(tmp_path / "top", tmp_path / "one" / "as it came.zip")
    check(name, load(name, tmp_path / "one"), wanted)
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", next(path for path in (tmp_path / "top").rglob("*.jpg")).parent):
        with pytest.raises(UserError, match=r"is missing there and in the folders|holds neither") as caught:
            load(name, wrong)
        assert "give the unpacked folder, or" in str(caught.value) or name == "stanford_cars"


def test_official_archives_in_a_folder_below_and_one_alone(load, tmp_path):
    wanted = layouts.stanford_dogs(tmp_path / "data")
    for file, only in ARCHIVES["stanford_dogs"].items():
        pack(tmp_path / "data", tmp_path / "top" / "dogs" / file, only=only)
    check("stanford_dogs", load("stanford_dogs", tmp_path / "top"), wanted)
    with pytest.raises(
        UserError, match=r"train_list.mat is missing there; give .* holds images.tar, annotation.tar, l"
    ):
        load("stanford_dogs", tmp_path / "top" / "dogs" / "images.tar")


def test_cars_as_their_publisher_gave_them(load, tmp_path):
    """The second layout with the devkit beside it, in which the tables of the first are."""
    second = layouts.stanford_cars_in_one_folder(tmp_path / "two")
    first = layouts.stanford_cars(tmp_path / "one")
    shutil.copytree(tmp_path / "one" / "devkit", tmp_path / "two" / "devkit")
    check("stanford_cars", load("stanford_cars", tmp_path / "two"), second)
    shutil.copy(tmp_path / "one" / "cars_test_annos_withlabels.mat", tmp_path / "two")
    check("stanford_cars", load("stanford_cars", tmp_path / "two"), second)
    check("stanford_cars", load("stanford_cars", pack(tmp_path / "two", tmp_path / "two.zip")), second)
    shutil.copy(tmp_path / "two" / "cars_annos.mat", tmp_path / "one")
    check("stanford_cars", load("stanford_cars", tmp_path / "one"), first)
    (tmp_path / "one" / "cars_test_annos_withlabels.mat").unlink()
    message = "cars_test_annos_withlabels.mat is missing, for the photos of cars_train.*cars_annos.mat is for car_ims"
    with pytest.raises(UserError, match=message):
        load("stanford_cars", tmp_path / "one")
    (tmp_path / "two" / "cars_annos.mat").unlink()
    with pytest.raises(UserError, match="cars_annos.mat is missing, for the photos of car_ims"):
        load("stanford_cars", tmp_path / "two")


def test_classes_that_no_image_has_are_none(load, tmp_path):
    layouts.nabirds(tmp_path / "data")
    loaded = load("nabirds", tmp_path / "data")
    assert loaded.class_names == ("Common Loon (295)", "Common Loon (817)", "Mallard (Breeding male)")
    assert load("nabirds", tmp_path / "data", level="order").class_names == ("Ducks, Geese, and Swans", "Loons")
    with pytest.raises(UserError, match="the labels of nabirds are label, order; got label=genus"):
        load("nabirds", tmp_path / "data", level="genus")


@pytest.mark.parametrize("name", ["nabirds", "oxford_iiit_pet", "stanford_dogs"])
def test_archives_cut_short_or_left_out(name, load, tmp_path):
    LAYOUTS[name](tmp_path / "data")
    archives = tmp_path / "archives"
    archives.mkdir()
    for file, only in ARCHIVES[name].items():
        pack(tmp_path / "data", archives / file, only=only)
    for file in ARCHIVES[name]:
        whole = (archives / file).read_bytes()
        (archives / file).write_bytes(whole[: len(whole) * 2 // 5])
        with pytest.raises(UserError, match="not a whole tar or zip|is missing"):
            load(name, archives)
        (archives / file).unlink()
        with pytest.raises(UserError, match=f"is missing.*{'one of' if 'image' in file else ''}"):
            load(name, archives)
        (archives / file).write_bytes(whole)
    load(name, archives)


def test_archives_that_lead_elsewhere_or_hold_a_photo_twice(load, tmp_path):
    layouts.nabirds(tmp_path / "data")
    archive = pack(tmp_path / "data", tmp_path / "nabirds.zip")
    outside = tmp_path / "outside.jpg"
    layouts.photo(outside, (8, 8), (0, 0, 4, 4))
    with zipfile.ZipFile(archive, "a") as zipped:
        zipped.write(outside, "../../evil.jpg")
        zipped.writestr("__MACOSX/nabirds/._images.txt", "junk")
    load("nabirds", archive)
    assert not list(tmp_path.rglob("evil.jpg"))
    with zipfile.ZipFile(archive, "a") as zipped:
        name = next(name for name in zipped.namelist() if "/images/0295/" in name)
        zipped.write(outside, f"copy/{name}")
    with pytest.raises(UserError, match=r"holds images/0295/\w+.jpg twice"):
        load("nabirds", archive)
    with tarfile.open(tmp_path / "nabirds.tar", "w") as tarred:
        link = tarfile.TarInfo("nabirds/images.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tarred.addfile(link)
    with pytest.raises(UserError, match="nabirds.tar"):
        load("nabirds", tmp_path / "nabirds.tar")


def test_what_is_not_given_to_everybody(load):
    with pytest.raises(UserError, match="NABirds is not to be fetched.*allaboutbirds.*dataset.path=nabirds.tar.gz"):
        load("nabirds", "")
    with pytest.raises(UserError, match="a folder that holds cars_train.tgz, cars_test.tgz, car_devkit.tgz"):
        load("stanford_cars", "")


def test_counts_are_compared_with_those_published(load, tmp_path):
    layouts.oxford_iiit_pet(tmp_path / "data")
    (note,) = load("oxford_iiit_pet", tmp_path / "data").notes
    assert note.endswith("2 train of 3680, 1 test of 3669, 2 classes of 37")


def test_each_has_its_facts():
    for name, dataset in DATASETS.items():
        assert name == dataset.name in sources.PUBLISHED and set(dataset.counts) == {"train", "test", "classes"}
        assert dataset.counts_source and dataset.homepage.startswith("http")
        for archive in dataset.archives:
            assert archive.source or not (archive.size or archive.sha256 or archive.md5)
            assert len(archive.sha256) in (0, 64) and len(archive.md5) in (0, 32)
    assert set(sources.PUBLISHED) == set(DATASETS) == {*LAYOUTS, "cub200_2011"}


def test_fields_choose_the_labels(tmp_path):
    wanted = layouts.fgvc_aircraft(tmp_path / "data")
    options = {"path": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache"), "unreadable": "skip"}
    options |= {"validation_fraction": 0.0, "train_size": None, "test_size": None}
    splits = sources.load("fgvc_aircraft", fields="label=manufacturer", **options)
    assert splits.class_names == ("Boeing", "Lockheed Martin") and splits.train.labels.tolist() == [0, 1, 0]
    assert splits.published == {"train": 6667, "test": 3333}  # the published classes are the variants
    assert sources.load("fgvc_aircraft", fields="", **options).published["classes"] == 100
    assert splits.train.sizes.tolist() == [[30, 40]] * 3 and len(wanted["train"]) == 3
    for text, message in (
        ("label=maker", "the labels of fgvc_aircraft are variant, family, manufacturer; got label=maker"),
        ("box=bbox", "dataset.fields: 'box=bbox' is not one of label=..."),
        ("label", "dataset.fields: 'label' is not"),
        ("label=family,label=variant", "dataset.fields: 'label=variant' is not"),
    ):
        with pytest.raises(UserError, match=message):
            sources.load("fgvc_aircraft", fields=text, **options)
    with pytest.raises(UserError, match="leave it out for deep_pcb"):
        sources.load("deep_pcb", fields="label=kind", **options)


def test_photos_are_decoded_at_a_reduced_size_where_that_is_asked(load, tmp_path):
    layouts.fgvc_aircraft(tmp_path / "data")
    place = tmp_path / "data" / layouts_folder() / "images" / "0034309.jpg"
    layouts.photo(place, (1600, 1220), (0, 0, 30, 20))
    whole, half = (load("fgvc_aircraft", tmp_path / "data", min_side=side).train[0] for side in (None, 300))
    assert whole["image"].shape == (1200, 1600, 3) and half["image"].shape == (600, 800, 3)
    np.testing.assert_array_equal(whole["box"], half["box"])


def layouts_folder():
    return "fgvc-aircraft-2013b/data"


def test_a_progress_bar_counts_photos(load, tmp_path):
    layouts.nabirds(tmp_path / "data")
    told = []

    def track(items, *, total, what):
        told.append((total, what))
        yield from items

    load("nabirds", tmp_path / "data", track=track)
    assert told == [(4, "preparing nabirds")]
    with contextlib.suppress(StopIteration):
        next((tmp_path / "cache").rglob("*test.array_record*")).unlink()
    load("nabirds", tmp_path / "data", track=track)
    assert len(told) == 2 and records.VERSION in str(next((tmp_path / "cache").rglob("index.npz")))
