"""Class-per-folder trees: found, checked before training, split the same way every time; mistakes told in one line."""

import os

import numpy as np
import pytest
from PIL import Image

from c2f_jax.data import checking
from c2f_jax.data.pipeline import evaluation_batches, training_batches
from c2f_jax.data.raw import Raw
from c2f_jax.data.sources import load
from c2f_jax.errors import UserError
from configs import folder as config_of_folder


def paint(path, level, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def tree(root, counts, level=0):
    """Folders with so many photos each; photo i is grey of level + i."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            paint(root / name / f"{i:02}.png", level + i)
    return root


@pytest.fixture
def read(tmp_path):
    def read(root, *, unreadable="skip", validation_fraction=0.0, **options):
        return load(
            "folder",
            path="" if root is None else str(root),
            cache_dir=str(tmp_path / "cache"),
            unreadable=unreadable,
            validation_fraction=validation_fraction,
            **{"train_size": None, "test_size": None} | options,
        )

    return read


def names(source):
    return [source[i]["name"] for i in range(len(source))]


def test_one_folder_per_class(tmp_path, read):
    root = tree(tmp_path / "photos", {"wren": 10, "owl": 20, "nested/deep": 5})
    splits = read(root, validation_fraction=0.25)
    assert splits.class_names == ("nested", "owl", "wren")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [21, 7, 7]
    parts = [names(part) for part in (splits.train, splits.validation, splits.test)]
    assert sorted(sum(parts, [])) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    for part in (splits.train, splits.validation, splits.test):
        for i in range(len(part)):
            example = part[i]
            folder, *_, file = example["name"].split("/")
            assert example["index"] == i and splits.class_names[example["label"]] == folder
            assert example["image"].shape == (8, 12, 3) and example["image"][0, 0, 0] == int(file.split(".")[0])
    counts = np.bincount([splits.test[i]["label"] for i in range(7)])
    assert counts.tolist() == [1, 4, 2]  # a fifth of each class
    assert splits.notes == (
        "3 classes; 21 train, 7 validation, 7 test images; in train of each class fewest 3 (nested), most 12 (owl)",
        "no test part: 20% of each class, 7 images, are set aside as test part",
    )
    with pytest.raises(IndexError):
        splits.test[7]


def test_the_split_stays_and_a_new_photo_hardly_changes_it(tmp_path, read):
    root = tree(tmp_path / "photos", {"owl": 30, "wren": 30})
    before = names(read(root).test)
    assert names(read(root).test) == before
    moved = root.rename(tmp_path / "elsewhere")
    assert names(read(moved).test) == before
    paint(moved / "owl" / "0 new.png", 200)
    assert len(set(before) - set(names(read(moved).test))) <= 1


@pytest.mark.parametrize("val", ["val", "Validation", "valid"])
def test_folders_of_parts(tmp_path, read, val):
    root = tmp_path / "photos"
    tree(root / "train", {"owl": 4, "wren": 3})
    tree(root / val, {"owl": 2, "wren": 0})
    tree(root / "test", {"wren": 2})
    (root / "notes").mkdir()  # holds no image: in nobody's way
    splits = read(root, validation_fraction=0.5)
    assert splits.class_names == ("owl", "wren")
    assert splits.notes[1:] == ("1 of 2 classes are not in the test part: owl",)
    assert names(splits.validation) == [f"{val}/owl/00.png", f"{val}/owl/01.png"]
    assert names(splits.test) == ["test/wren/00.png", "test/wren/01.png"] and splits.test[0]["label"] == 1
    assert len(splits.train) == 7


def test_train_and_test_without_val(tmp_path, read):
    root = tmp_path / "photos"
    tree(root / "train", {"owl": 8, "wren": 8})
    tree(root / "test", {"owl": 1, "wren": 1})
    splits = read(root, validation_fraction=0.25)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12, 4, 2]
    assert np.bincount([splits.validation[i]["label"] for i in range(4)]).tolist() == [2, 2]


def test_small_classes_are_tested_too(tmp_path, read):
    splits = read(tree(tmp_path / "photos", {"crow": 1, "owl": 2, "wren": 2}))
    assert len(splits.train) == 3 and [splits.test[i]["label"] for i in range(len(splits.test))] == [1, 2]


def test_a_class_may_be_called_train(tmp_path, read):
    root = tree(tmp_path / "vehicles", {"bus": 5, "train": 5})
    assert read(root).class_names == ("bus", "train")


def test_stray_and_hidden_files(tmp_path, read):
    root = tree(tmp_path / "photos", {"owl": 5, "wren": 5})
    paint(root / "cover.jpg", 0)
    (root / "owl" / "._00.png").write_bytes(b"")
    (root / "__MACOSX").mkdir()
    (root / ".thumbnails").mkdir()
    splits = read(root)
    assert splits.class_names == ("owl", "wren") and len(splits.train) + len(splits.test) == 10
    assert splits.notes[1] == "images in no class folder, not used: 1"


def break_some(root, count):
    for i in range(count):
        (root / "owl" / f"broken {i:02}.jpg").write_bytes(b"" if i % 2 else b"no image")


def test_unreadable_files_are_named_and_left_out(tmp_path, read, capsys):
    root = tree(tmp_path / "photos", {"owl": 5, "wren": 5})
    break_some(root, 2)
    splits = read(root)
    assert len(splits.train) + len(splits.test) == 10
    assert splits.notes[1:4] == (
        "2 of 12 images cannot be read and are left out:",
        "  owl/broken 00.jpg: not an image of a known format",
        "  owl/broken 01.jpg: empty file",
    )
    with pytest.raises(UserError, match=r"2 of 12 images cannot be read; the first is owl/broken 00.jpg \(not an im"):
        read(root, unreadable="fail")
    (root / "wren" / "gone.jpg").symlink_to("nowhere")
    break_some(root, 32)
    notes = read(root).notes
    assert notes[1:3] == ("1 of 43 images are not there and are left out:", "  wren/gone.jpg")
    assert notes[3].startswith("32 of 43") and notes[24] == "  and 12 more" and len(notes) == 26
    assert "checking 32 images" in capsys.readouterr().err


def test_the_check_is_remembered_until_a_file_changes(tmp_path, read, monkeypatch):
    root = tree(tmp_path / "photos", {"owl": 5, "wren": 5})
    break_some(root, 1)
    decoded = []
    monkeypatch.setattr(
        checking.images, "decode", lambda path, real=checking.images.decode: decoded.append(1) or real(path)
    )
    first = read(root)
    assert len(decoded) == 11
    assert read(root).notes == first.notes and len(decoded) == 11
    os.utime(root / "owl" / "00.png", (1, 1))
    read(root)
    assert len(decoded) == 12
    for file in (tmp_path / "cache" / "folder").iterdir():
        file.write_text("half a fi")
    assert read(root).notes == first.notes and len(decoded) == 23


def test_a_file_that_goes_bad_later_is_named(tmp_path, read):
    root = tree(tmp_path / "photos", {"owl": 5, "wren": 5})
    train = read(root).train
    path = root / train[3]["name"]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=f"{path} could be read at the start and now cannot"):
        train[3]
    options = {"raw": Raw(4, keep_aspect=False), "process": 0, "processes": 1}
    for batches in (
        training_batches(train, batch_size=len(train), seed=0, start=0, **options),
        evaluation_batches(train, batch_size=4, **options),
    ):
        with pytest.raises(UserError, match="now cannot"):
            list(zip(range(4), batches, strict=False))


def test_batches_hold_numbers_only(tmp_path, read):
    train = read(tree(tmp_path / "photos", {"owl": 5, "wren": 5})).train
    options = {"batch_size": 4, "raw": Raw(16, keep_aspect=True), "process": 0, "processes": 1}
    batch = next(training_batches(train, seed=0, start=0, **options))
    assert set(batch) == {"image", "window", "place", "label", "index", "row"}
    assert batch["image"].shape == (4, 16, 16, 3)
    batches = list(evaluation_batches(train, **{**options, "batch_size": 3}))
    assert {*batches[0], "place", "row"} == {*batch, "mask"} and batches[0]["mask"].dtype == np.float32
    assert [batch["mask"].tolist() for batch in batches] == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]


def mistake_path(root):
    paint(root, 0)


def mistake_root_holds_images(root):
    tree(root, {".": 3})


def mistake_class_not_in_train(root):
    tree(root / "train", {"owl": 3, "wren": 3})
    tree(root / "test", {"crow": 1})


def mistake_both_kinds(root):
    tree(root / "train", {"owl": 3, "wren": 3})
    tree(root, {"crow": 3})


def mistake_all_broken(root):
    tree(root, {"owl": 0, "wren": 0})
    for name in ("owl", "wren"):
        (root / name / "a.jpg").write_bytes(b"")


def mistake_one_class_broken(root):
    tree(root, {"owl": 3, "wren": 0})
    (root / "wren" / "a.jpg").write_bytes(b"")


def mistake_empty_test(root):
    tree(root / "train", {"owl": 3, "wren": 3})
    (root / "test").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "photos.png does not exist"),
        (mistake_path, "photos.png is neither a folder nor a table"),
        (lambda root: root.mkdir(), "photos.png: has no class folders; make one folder per class.*--mode predict"),
        (mistake_root_holds_images, "photos.png: has no class folders; make one folder per class.*--mode predict"),
        (lambda root: tree(root, {"owl": 3}), "photos.png: has only one class folder, owl"),
        (lambda root: tree(root, {"owl": 3, "wren": 0}), "photos.png: class folder wren holds no image"),
        (lambda root: tree(root, {"owl": 0, "wren": 0}), "photos.png: its 2 class folders hold no image"),
        (lambda root: tree(root / "train", {"owl": 3, "wren": 0}), "photos.png/train: class folder wren holds no"),
        (lambda root: tree(root, {"train": 0, "test": 0}), "photos.png/train: has no class folders"),
        (lambda root: tree(root, {"train": 3}), "photos.png/train: has no class folders"),
        (lambda root: tree(root / "test", {"owl": 3, "wren": 3}), "photos.png: holds test/ and no train/"),
        (mistake_class_not_in_train, "photos.png/test/crow/00.png: class crow is not in train/"),
        (mistake_both_kinds, "photos.png: holds both train/ and the class folder crow/"),
        (mistake_all_broken, r"none of the 2 images can be read; the first is owl/a.jpg \(empty file\)"),
        (mistake_one_class_broken, "no image of class wren can be read"),
        (mistake_empty_test, "photos.png: the test folder holds no image"),
        (lambda root: tree(root, {"owl": 1, "wren": 1}), "one image per class leaves none for the test part"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, read, make, message):
    root = tmp_path / "photos.png"
    make(root)
    with pytest.raises(UserError, match=message) as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_the_config_asks_for_the_folder():
    dataset = config_of_folder.get_config().dataset
    fields = ("path", "cache_dir", "unreadable", "validation_fraction", "train_size", "test_size")
    with pytest.raises(UserError, match="--config.dataset.path=DIR"):
        load(dataset.name, **{field: dataset[field] for field in fields})


def test_options_that_do_not_fit(tmp_path, read):
    with pytest.raises(UserError, match="dataset.train_size"):
        read(tmp_path, train_size=5)
    options = {"cache_dir": "", "unreadable": "skip", "validation_fraction": 0.1, "train_size": None, "test_size": None}
    with pytest.raises(UserError, match="dataset.path is for photos"):
        load("paper_birds", path=str(tmp_path), **options)


def test_a_cache_that_cannot_be_written(tmp_path, read, monkeypatch):
    """It is told before the photos are decoded, whose verdicts would be lost."""
    root = tree(tmp_path / "photos", {"owl": 3, "wren": 3})
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setattr(checking, "_decode", lambda *_: pytest.fail("photos were decoded"))
    with pytest.raises(UserError, match="dataset.cache_dir"):
        read(root)
