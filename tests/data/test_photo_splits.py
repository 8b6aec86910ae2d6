"""Photos of tables and trees as parts: groups and copies undivided, boxes, shots, classes drawn equally often."""

import os

import numpy as np
import pytest
from PIL import Image

from c2f_jax.data.pipeline import training_batches
from c2f_jax.data.raw import Raw
from c2f_jax.data.sources import Balanced, load
from c2f_jax.errors import UserError
from c2f_jax.runs.build import build, load_splits
from c2f_jax.runs.checks import check
from tests.tiny import tiny_config


def paint(path, seed, size=(60, 40)):
    """A photo-like picture: smooth random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def root(tmp_path):
    """Ten photos of each of two classes, named after bursts of two: owl/b3_1.png."""
    for label, name in enumerate(("owl", "wren")):
        for i in range(10):
            paint(tmp_path / "photos" / name / f"b{i // 2}_{i % 2}.png", 100 * label + i)
    return tmp_path / "photos"


@pytest.fixture
def read(tmp_path):
    def read(path, **options):
        defaults = {"unreadable": "skip", "validation_fraction": 0.2, "train_size": None, "test_size": None}
        return load("folder", path=str(path), cache_dir=str(tmp_path / "cache"), **defaults | options)

    return read


def paths(source):
    return [source[i]["name"] for i in range(len(source))]


def parts(splits):
    return [set(paths(part)) for part in (splits.train, splits.validation, splits.test)]


def table(root, header, rows):
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return root / "labels.csv"


def told(splits, words):
    return [note for note in splits.notes if words in note]


def test_a_table_and_the_tree_of_the_same_photos_are_split_alike(root, read):
    tree = read(root)
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"), reverse=True)]
    listed = read(table(root, "path,label", rows))
    assert [paths(part) for part in (listed.train, listed.validation, listed.test)] == [
        paths(part) for part in (tree.train, tree.validation, tree.test)
    ]
    assert listed.class_names == tree.class_names and listed.notes == tree.notes


def test_parts_of_a_table(root, read):
    rows = [
        *("owl/b0_0.png,owl,Train", "owl/b0_1.png,owl,dev", "owl/b1_0.png,owl,TESTING"),
        *("wren/b0_0.png,wren,training", "wren/b0_1.png,wren,test"),
    ]
    splits = read(table(root, "path,label,split", rows))
    assert [paths(part) for part in (splits.train, splits.validation, splits.test)] == [
        ["owl/b0_0.png", "wren/b0_0.png"],
        ["owl/b0_1.png"],
        ["owl/b1_0.png", "wren/b0_1.png"],
    ]
    assert splits.notes == ("2 classes; 2 train, 1 validation, 2 test images; in train of each class 1",)


def test_missing_files_of_a_table(root, read):
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in root.rglob("*.png")]
    place = table(root, "path,label", [*rows, *[f"gone/{i:02}.png,owl" for i in range(30)]])
    notes = read(place).notes
    assert notes[1] == "30 of 50 images are not there and are left out:" and notes[21:23] == (
        "  gone/19.png",
        "  and 10 more",
    )
    with pytest.raises(UserError, match=r"30 of 50 images cannot be read; the first is gone/00.png \(no such file"):
        read(place, unreadable="fail")
    with pytest.raises(UserError, match=rf"none of the 2 images.*paths are relative to {root}$"):
        read(table(root, "path,label", ["x/1.png,owl", "x/2.png,wren"]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["owl/b0_0.png,owl,test"], "labels.csv: no row has the split train"),
        (["owl/b0_0.png,owl,train"], "labels.csv: has only one label, owl"),
        (
            ["owl/b0_0.png,owl,train", "wren/b0_0.png,wren,train", "owl/b1_0.png,crow,test"],
            "labels.csv: row 4: class crow is not in train",
        ),
    ],
)
def test_tables_that_cannot_be_trained_on(root, read, rows, message):
    with pytest.raises(UserError, match=message):
        read(table(root, "path,label,split", rows))


def test_groups_of_a_table_are_on_one_side(root, read):
    rows = [f"{p.relative_to(root)},{p.parent.name},{p.parent.name}-{p.name[:2]}" for p in root.rglob("*.png")]
    splits = read(table(root, "path,label,group", rows))
    train, validation, test = ({path[: path.index("_")] for path in part} for part in parts(splits))
    assert not train & test and not train & validation and not validation & test
    assert len(test) == 2 and len(splits.test) == 4  # a fifth of each class, in one burst each
    assert told(splits, "10 groups, each on one side of a split")
    with pytest.raises(UserError, match="has a column group; leave out dataset.group_by"):
        read(root / "labels.csv", group_by="b.")


def test_groups_by_a_pattern(root, read):
    splits = read(root, group_by=r"^(.*/b\d)")
    train, validation, test = ({path[: path.index("_")] for path in part} for part in parts(splits))
    assert not train & test and not train & validation and not validation & test and len(splits.test) == 4
    everywhere = read(root, group_by=r"b\d")  # a burst of both classes
    train, _, test = ({path.split("/")[1][:2] for path in part} for part in parts(everywhere))
    assert not train & test and told(everywhere, "5 groups")


def test_photos_that_the_pattern_does_not_match_are_alone(root, read):
    splits = read(root, group_by=r"owl/b\d")
    assert told(splits, "dataset.group_by matches not 10 of 20 paths, each alone then: wren/b0_0.png, ")
    with pytest.raises(UserError, match="dataset.group_by: 'x9' matches no path; the first is owl/b0_0.png"):
        read(root, group_by="x9")
    with pytest.raises(UserError, match="no regular expression"):
        read(root, group_by="(x")


def test_a_group_in_two_given_parts_is_warned_of(root, read):
    rows = ["owl/b0_0.png,owl,train,g", "wren/b0_0.png,wren,train,h", "owl/b0_1.png,owl,test,g"]
    splits = read(table(root, "path,label,split,group", rows))
    assert told(splits, "1 groups stand in two parts, so that test figures may flatter: g")
    assert not any("each on one side" in note for note in splits.notes)


def test_a_class_of_one_group_is_named(root, read):
    rows = [f"{p.relative_to(root)},{p.parent.name},{p.parent.name[0]}{p.name[1]}" for p in root.rglob("*.png")]
    rows = [row.replace(row.split(",")[2], "w") if ",wren," in row else row for row in rows]
    assert told(
        read(table(root, "path,label,group", rows)), "1 of 2 classes are not in the test part (of one group only): wren"
    )


def test_copies_never_stand_on_both_sides(root, read):
    for i, path in enumerate(sorted((root / "owl").iterdir())):
        Image.open(path).save(root / "owl" / f"copy{i}.png", compress_level=1)
    splits = read(root)
    seen = [
        {part[i]["image"].tobytes() for i in range(len(part))}
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 30 and not told(splits, "nearly equal")


def test_near_copies_across_parts_are_warned_of(root, read):
    before = read(root)
    assert not told(before, "nearly equal")
    test = before.test[0]["name"]
    for i in range(100):  # until the copy's name is not one that is set aside
        copy = f"{test.split('/')[0]}/copy{i}.jpg"
        Image.open(root / test).resize((90, 60)).save(root / copy, quality=80)
        after = read(root)
        if copy in parts(after)[0] and test in parts(after)[2]:
            break
        (root / copy).unlink()
    (note,) = told(after, "nearly equal")
    assert note.startswith("1 photos have") and note.endswith(f": {test} = {copy}")


def test_one_picture_under_two_classes_is_told(root, read):
    Image.open(root / "owl" / "b0_0.png").save(root / "wren" / "same.png", compress_level=1)
    assert told(read(root), "1 photos stand in two classes, pixel for pixel: owl/b0_0.png = wren/same.png")


def test_linked_folders_do_not_multiply_photos(root, read):
    before = parts(read(root))
    os.symlink(root / "wren", root / "owl" / "like")
    os.symlink(root / "owl", root / "wren" / "like")
    assert parts(read(root)) == before


BOXES = "path,label,split,xmin,ymin,xmax,ymax"


def test_boxes_are_fractions_of_the_upright_photo(root, read):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 60 wide and 40 high is shown 40 wide and 60 high
    Image.open(root / "wren" / "b0_0.png").save(root / "wren" / "turned.jpg", exif=exif)
    rows = ["owl/b0_0.png,owl,train,15,10,30,40", "wren/turned.jpg,wren,train,10,15,40,30", "owl/b1_0.png,owl,test,,,,"]
    splits = read(table(root, BOXES, rows))
    np.testing.assert_allclose(splits.train[0]["box"], [0.25, 0.25, 1.0, 0.5])
    np.testing.assert_allclose(splits.train[1]["box"], [0.25, 0.25, 0.5, 1.0])
    assert splits.train[0]["box"].dtype == np.float32 and "box" not in splits.test[0] and len(splits.notes) == 2


def test_a_box_a_little_outside_is_cut(root, read):
    rows = ["owl/b0_0.png,owl,train,-1,-0.5,61,41.5", "wren/b0_0.png,wren,train,1,1,2,2", "owl/b1_0.png,owl,test,,,,"]
    np.testing.assert_array_equal(read(table(root, BOXES, rows)).train[0]["box"], [0, 0, 1, 1])


def test_boxes_of_some_photos_of_a_part_are_not_used(root, read):
    rows = ["owl/b0_0.png,owl,train,1,1,9,9", "wren/b0_0.png,wren,train,,,,", "owl/b1_0.png,owl,test,1,1,9,9"]
    splits = read(table(root, BOXES, rows))
    assert "box" not in splits.train[0] and "box" in splits.test[0]
    assert told(splits, "1 of 2 images of the train part have no box: its boxes are not used")


def test_a_box_outside_its_photo_names_the_row(root, read):
    rows = ["owl/b0_0.png,owl,train,1,1,9,9", "wren/b0_0.png,wren,train,1,1,40,60", "owl/b1_0.png,owl,test,1,1,9,9"]
    with pytest.raises(
        UserError, match="row 3: the box 1, 1, 40, 60 reaches out of the photo wren/b0_0.png, which is 60"
    ):
        read(table(root, BOXES, rows))


def test_shots_are_nested_and_leave_the_other_parts_alone(root, read):
    all_of_them, two, four = read(root), read(root, shots=2), read(root, shots=4)
    assert parts(two)[0] < parts(four)[0] < parts(all_of_them)[0]
    assert parts(two)[1:] == parts(four)[1:] == parts(all_of_them)[1:]
    assert np.bincount(two.train.labels).tolist() == [2, 2]
    assert told(two, "dataset.shots=2: 4 of 12 training images are used")


def test_shots_of_the_embedded_data():
    config = tiny_config(dataset__train_size=128)
    few = tiny_config(dataset__train_size=128, dataset__shots=3)
    splits = load_splits(few)
    assert np.bincount(splits.train.labels, minlength=16).tolist() == [3] * 16
    assert len(splits.validation) == len(load_splits(config).validation)
    used = {splits.train[i]["index"] for i in range(48)}
    more = load_splits(tiny_config(dataset__train_size=128, dataset__shots=5)).train
    assert used < {more[i]["index"] for i in range(len(more))}
    assert splits.train.labels.tolist() == [splits.train[i]["label"] for i in range(48)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dataset__shots", -1, "dataset.shots must be int from 0"),
        ("dataset__group_by", "(", "dataset.group_by: '\\(' is no regular expression"),
    ],
)
def test_values_that_cannot_be_used(field, value, message):
    with pytest.raises(UserError, match=message):
        check(tiny_config(**{field: value}))


def test_groups_are_for_photos():
    with pytest.raises(UserError, match="dataset.group_by is for dataset.name=folder"):
        load_splits(tiny_config(dataset__group_by="x"))


class Numbers:
    """A source whose examples are their indices."""

    def __init__(self, labels):
        self.labels = np.array(labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = np.full((2, 2, 3), index, np.uint8)
        return {"image": image, "label": int(self.labels[index]), "index": index}


def test_a_balanced_source_has_each_class_equally_often():
    source = Numbers([0] * 10 + [1] * 3 + [2] * 1)
    balanced = Balanced(source, source.labels)
    seen = [balanced[i]["index"] for i in range(len(balanced))]
    times = np.bincount(seen)
    assert len(balanced) == 30 and times.tolist() == [1] * 10 + [4, 3, 3] + [10]
    with pytest.raises(IndexError):
        balanced[30]


def test_balanced_batches_depend_on_seed_and_step_alone():
    source = Numbers([0] * 50 + [1] * 5)
    options = {"batch_size": 10, "raw": Raw(2, False), "process": 0, "processes": 1}
    balanced = Balanced(source, source.labels)

    def batches(start, count):
        found = training_batches(balanced, seed=3, start=start, **options)
        return [next(found)["index"].tolist() for _ in range(count)]

    first = batches(0, 10)
    assert batches(7, 3) == first[7:]
    counts = np.bincount(sum(first, []), minlength=55)  # a hundred images: every class fifty times
    assert counts[:50].tolist() == [1] * 50 and counts[50:].tolist() == [10] * 5


def test_balancing_changes_what_is_drawn_and_not_how_much(root, tmp_path):
    for path in sorted((root / "wren").iterdir())[3:]:
        path.unlink()
    options = {
        "dataset__name": "folder",
        "dataset__path": str(root),
        "dataset__cache_dir": str(tmp_path / "cache"),
        "dataset__train_size": None,
        "dataset__test_size": None,
    }
    plain, balanced = (build(tiny_config(**options, dataset__class_balanced=value)) for value in (False, True))
    assert plain.total_steps == balanced.total_steps and len(plain.splits.train) == len(balanced.splits.train) == 9

    def drawn(run, steps):
        batches = run.training_batches(0)
        return np.bincount(np.concatenate([next(batches)["label"] for _ in range(steps)]), minlength=2)

    assert drawn(balanced, 14).tolist() == [56, 56] and drawn(plain, 9).tolist() == [56, 16]


def test_the_evaluation_gets_the_boxes(root, tmp_path):
    rows = [f"{path.relative_to(root)},{path.parent.name},10,10,40,30" for path in root.rglob("*.png")]
    config = tiny_config(
        dataset__name="folder",
        dataset__path=str(table(root, "path,label,xmin,ymin,xmax,ymax", rows)),
        dataset__cache_dir=str(tmp_path / "cache"),
        dataset__train_size=None,
        dataset__test_size=None,
    )
    run = build(config)
    batch = next(run.evaluation_batches(run.splits.test))
    np.testing.assert_allclose(batch["box"][0], [10 / 40, 10 / 60, 30 / 40, 40 / 60])
