"""Trees and tables of labelled photos, as people have them: which photo is of what class and part."""

import json
import os
import shutil

import pytest

from c2f_jax.data import listing
from c2f_jax.errors import UserError


@pytest.fixture
def make(tmp_path):
    def make(*paths, root=tmp_path / "photos"):
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        return root

    return make


def grid(*folders, classes=("owl", "wren"), count=3):
    return [f"{folder}/{name}/{i}.jpg" for folder in folders for name in classes for i in range(count)]


def found(listed):
    """(part, label) -> number of photos."""
    counts = {}
    for item in listed.items:
        counts[item.part, item.label] = counts.get((item.part, item.label), 0) + 1
    return counts


def both(*parts, count=3):
    return {(part, name): count for part in parts for name in ("owl", "wren")}


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("train", "test"), ("train", "test")),
        (("Training", "Testing"), ("train", "test")),
        (("TRAIN", "VALID", "TEST"), ("train", "val", "test")),
        (("train", "dev", "Test"), ("train", "val", "test")),
        (("train", "Validation", "testing"), ("train", "val", "test")),
        (("data/train/train", "data/test/test"), ("train", "test")),
        (("train/train", "test"), ("train", "test")),
        (("archive/birds/train", "archive/birds/val", "archive/birds/test"), ("train", "val", "test")),
        (("train/train", "train/test"), ("train", "test")),
        (("pets/images",), (None,)),
        (("pets",), (None,)),
        (("test",), ("test",)),
        (("train/images", "test/images"), ("train", "test")),
    ],
)
def test_parts_by_any_usual_name_and_in_folders_more(make, folders, parts):
    listed = listing.read(make(*grid(*folders)))
    assert found(listed) == both(*parts)
    assert all((listed.root / item.path).is_file() for item in listed.items)


def test_two_folders_of_one_part_are_joined_and_told(make):
    listed = listing.read(make(*grid("train", "val", "valid")))
    assert found(listed) == both("train") | both("val", count=6)
    assert listed.notes == ("val/ and valid/ are taken together as val part",)


@pytest.mark.parametrize("name", ["train", "Test", "dev", "training"])
def test_a_class_may_be_called_like_a_part(make, name):
    assert found(listing.read(make("bus/0.jpg", f"{name}/0.jpg"))) == {(None, "bus"): 1, (None, name): 1}


def test_a_class_below_train_may_be_called_like_a_part(make):
    listed = listing.read(make(*grid("train", "test", classes=("bus", "train"), count=1)))
    assert found(listed) == {(part, name): 1 for part in ("train", "test") for name in ("bus", "train")}


@pytest.mark.parametrize("below", ["", "test/", "unknown/", "images/"])
def test_a_test_folder_without_labels_is_named_and_not_used(make, below):
    listed = listing.read(make(*grid("train"), *[f"test/{below}{i}.jpg" for i in range(4)]))
    assert found(listed) == both("train")
    assert listed.notes == ("test/ holds 4 images in no class folder, that is without labels: not used",)


def test_a_part_may_hold_one_class_only(make):
    listed = listing.read(make(*grid("train"), "test/wren/monday/0.jpg", "test/wren/tuesday/0.jpg"))
    assert found(listed) == both("train") | {("test", "wren"): 2}


def test_images_in_no_class_folder_are_counted(make):
    listed = listing.read(make("cover.jpg", "x/cover.jpg", *grid("x/train", "x/test"), "x/train/stray.jpg"))
    assert found(listed) == both("train", "test")
    assert listed.notes[-1] == "images in no class folder, not used: 3"


SYSTEM = ["lost+found", "Lost+Found", "__MACOSX", "__macosx", ".ipynb_checkpoints", "@eaDir", "@EADIR", "#recycle"]


@pytest.mark.parametrize("name", [*SYSTEM, "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", ".Trash-1000"])
def test_system_folders_are_passed_over(make, name):
    root = make(*grid("train", "test"), f"{name}/owl/0.jpg", f"train/{name}/0.jpg", f"train/owl/{name}/0.jpg")
    assert found(listing.read(root)) == both("train", "test") and not listing.read(root).notes


def test_folders_linked_to_each_other_are_looked_into_once(make):
    root = make("owl/0.jpg", "owl/1.jpg", "owl/2.jpg", "wren/0.jpg", "wren/1.jpg", "wren/2.jpg")
    (root / "owl" / "like").symlink_to(root / "wren", target_is_directory=True)
    (root / "wren" / "like").symlink_to(root / "owl", target_is_directory=True)
    (root / "wren" / "itself").symlink_to("itself")
    assert found(listing.read(root)) == both(None)


def test_a_class_folder_elsewhere_is_followed(make, tmp_path):
    root = make("wren/0.jpg")
    make("0.jpg", "deep/1.jpg", root=tmp_path / "elsewhere")
    (root / "owl").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    listed = listing.read(root)
    assert [item.path for item in listed.items] == ["owl/0.jpg", "owl/deep/1.jpg", "wren/0.jpg"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_by_two_paths_is_counted_once(make, link):
    root = make("owl/0.jpg", "owl/1.jpg", "wren/0.jpg")
    link(root / "owl" / "0.jpg", root / "owl" / "again.jpg")
    listed = listing.read(root)
    assert found(listed) == {(None, "owl"): 2, (None, "wren"): 1}
    assert listed.notes == ("1 paths lead to files that others lead to; each file is counted once",)
    link(root / "owl" / "0.jpg", root / "wren" / "again.jpg")
    with pytest.raises(UserError, match="owl/0.jpg and wren/again.jpg are one file in two classes, owl and wren"):
        listing.read(root)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_in_two_parts_is_held_out(make, link):
    root = make(*grid("train", "test"))
    link(root / "test" / "owl" / "0.jpg", root / "train" / "owl" / "copy.jpg")
    listed = listing.read(root)
    assert found(listed) == both("train", "test")
    assert listed.notes[1] == "1 files stood in two parts; used: test/owl/0.jpg and not train/owl/copy.jpg"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (grid("north", "south"), r"north, south hold the same folders \(owl, wren\), which look like the classes"),
        (grid("2021", "2022", "2023") + ["2022/crow/0.jpg"], r"2021, 2022, 2023 hold the same folders \(owl, wren\)"),
        (grid("seg_train/seg_train", "seg_test/seg_test") + ["seg_pred/seg_pred/0.jpg"], "seg_test, seg_train hold"),
        (grid("training_set", "test_set"), "call them train/, val/ and test/"),
        (grid("train/north", "train/south"), "photos/train: its folders north, south hold the same folders"),
        (grid("owl", "wren", classes=("train", "test")), r"\(test, train\): parts inside classes; turn them round"),
        (grid("train") + ["crow/0.jpg"], "holds both train/ and the class folder crow/"),
        (["train/0.jpg", "test/0.jpg"], "photos/train: has no class folders.*table of path and label"),
    ],
)
def test_what_looks_like_something_else_is_refused_in_one_line(make, paths, message):
    with pytest.raises(UserError, match=message) as caught:
        listing.read(make(*paths))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "paths",
    [
        [f"{name}/images/{i}.jpg" for name in ("owl", "wren") for i in range(3)],  # as in Tiny ImageNet
        [f"{name}/{day}/0.jpg" for name, days in {"owl": "abc", "wren": "cde"}.items() for day in days],
        ["owl/male/0.jpg", "owl/0.jpg", "owl/1.jpg", "wren/male/0.jpg", "wren/1.jpg", "wren/2.jpg"],
    ],
)
def test_folders_below_classes_that_say_nothing(make, paths):
    assert found(listing.read(make(*paths))) == both(None)


# --- Tables ---


@pytest.fixture
def table(tmp_path):
    def table(text, name="labels.csv", encoding="utf-8"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(encoding))
        return listing.read(path)

    return table


ROWS = [["path", "label", "split", "group"], ["a/0.jpg", "Grünspecht", "train", "g1"], ["b.jpg", "Wei, ß", "TEST", ""]]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"])
def test_separators_and_encodings(table, separator, encoding):
    lines = [separator.join(f'"{cell}"' if separator in cell else cell for cell in row) for row in ROWS]
    listed = table("\r\n".join(lines) + "\r\n", encoding=encoding)
    assert listed.items == (
        listing.Listed("a/0.jpg", "Grünspecht", "train", "g1", None, 2),
        listing.Listed("b.jpg", "Wei, ß", "test", None, None, 3),
    )
    assert bool(listed.notes) == (encoding in ("latin-1", "cp1252"))  # a guess is told


def test_letters_that_come_late_are_read_too(table):
    text = "path,label\n" + "".join(f"{i:06}.jpg,owl\n" for i in range(20_000)) + "z.jpg,Grünspecht\n"
    assert table(text, encoding="cp1252").items[-1].label == "Grünspecht"


@pytest.mark.parametrize(
    ("first", "row"),
    [
        ("label,path", "owl,a.jpg"),
        ("Species;File Name", "owl;a.jpg"),
        ("CLASS\timage_path", "owl\ta.jpg"),
        ("filename,width,height,class", "a.jpg,10,10,owl"),
        (",path,label", "0,a.jpg,owl"),
        ("sep=;\npath;label", "a.jpg;owl"),
        ('"path","label"', '"a.jpg","owl"'),
    ],
)
def test_columns_in_any_order_and_by_usual_names(table, first, row):
    (item,) = table(f"{first}\n{row}\n").items
    assert (item.path, item.label) == ("a.jpg", "owl")


def test_columns_that_are_not_used_are_named(table):
    assert table("path,label,splitt\na.jpg,owl,train\n").notes == ("labels.csv: columns not used: splitt",)


@pytest.mark.parametrize("label", ["7", "007", "7.0", "nan", "True", "Cooper's hawk", "a | b; c"])
def test_labels_are_names(table, label):
    assert table(f"path,label\na.jpg,{label}\nb.jpg,x\n").items[0].label == label


def test_quoted_cells(table):
    listed = table('path,label\n"a ""1"", x.jpg","owl\nbarn"\nb.jpg,wren\n')
    assert [(item.path, item.label, item.row) for item in listed.items] == [
        ('a "1", x.jpg', "owl\nbarn", 2),
        ("b.jpg", "wren", 3),
    ]


def test_json_lines(table):
    rows = [{"file_name": "a.jpg", "label": 3, "group": None}, {"label": 3.50, "file_name": "b.jpg", "xmin": None}]
    text = "".join(json.dumps(row) + "\n" for row in rows[:1]) + '\n{"file_name": "b.jpg", "label": 3.50}\n'
    listed = table(text, "labels.jsonl")
    assert [(item.path, item.label, item.row) for item in listed.items] == [("a.jpg", "3", 1), ("b.jpg", "3.50", 3)]


def test_paths(table, make, tmp_path):
    root = make("owl/1.jpg", "back\\slash.jpg")
    other = tmp_path / "elsewhere" / "3.jpg"
    rows = ["owl\\1.jpg", "./owl/../owl/2.jpg", f"{root}/owl/3.jpg", str(other), "back\\slash.jpg", "../up.jpg"]
    listed = table("path,label\n" + "".join(f"{row},owl\n" for row in rows))
    wanted = {"owl/1.jpg", "owl/2.jpg", "owl/3.jpg", other.as_posix(), "back\\slash.jpg", "../up.jpg"}
    assert {item.path for item in listed.items} == wanted


def test_the_table_may_be_given_relatively(table, make, monkeypatch):
    root = make("owl/1.jpg")
    table(f"path,label\n{root}/owl/1.jpg,owl\n")
    monkeypatch.chdir(root)
    assert listing.read("labels.csv").items[0].path == "owl/1.jpg"


def test_boxes_in_pixels(table):
    listed = table("path;label;xmin;ymin;xmax;ymax\na.jpg;owl;1,5;2;30;40\nb.jpg;owl;;;;\n")
    assert [item.box for item in listed.items] == [(2.0, 1.5, 40.0, 30.0), None]


def test_a_row_twice_counts_once(table):
    listed = table("path,label\na.jpg,owl\n./a.jpg,owl\n")
    assert len(listed.items) == 1 and listed.notes == ("labels.csv: 1 rows say what another says",)


BOX = "path,label,xmin,ymin,xmax,ymax\na.jpg,owl,1,1,2,2\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'path': its first row is empty"),
        ("a.jpg,owl\nb.jpg,wren\n", "has no column 'path': its first row is a.jpg, owl; write path,label there"),
        ("path,name\na.jpg,owl\n", "has no column 'label'"),
        ("path,label\n", "holds no row"),
        ("image,file,label\na.jpg,b.jpg,owl\n", "columns image and file could both be 'path'"),
        ("path,label\na.jpg,owl\nb.jpg\n", "row 3 has no label"),
        ("path,label\n,owl\n", "row 2 has no path"),
        ("path,label\na.jpg,owl,barn\n", "row 2 has 3 cells and the header 2"),
        ('path,label\n"a.jpg,owl\nb.jpg,owl\n', "a quotation mark is likely not closed"),
        (
            "path,label\na.jpg,owl\n\na.jpg,wren\n",
            r"rows 2 and 4 say different things of a.jpg \(label: owl and wren\)",
        ),
        ("path,label,split\na.jpg,owl,train\na.jpg,owl,test\n", r"rows 2 and 3.*\(part: train and test\)"),
        ("path,label,split\na.jpg,owl,train\nb.jpg,owl,\n", "row 3 has the split ''; call it train, val or test"),
        ("path,label,split\na.jpg,owl,fold1\n", "row 2 has the split 'fold1'"),
        (BOX + "b.jpg,owl,1,1,nan,2\n", "row 3: the box 1, 1, nan, 2 is not four numbers"),
        (BOX + "b.jpg,owl,1,1,x,2\n", "row 3: the box 1, 1, x, 2 is not four numbers"),
        (BOX + "b.jpg,owl,1,1,,2\n", "row 3: the box 1, 1, nothing, 2 is not four numbers"),
        (BOX + "b.jpg,owl,5,1,2,2\n", "row 3: the box 5, 1, 2, 2 has no inside"),
        (BOX + "b.jpg,owl,-9,1,2,2\n", "row 3: the box -9, 1, 2, 2 reaches out of the photo"),
        (
            "path,label,xmin,ymin,xmax,ymax\na.jpg,owl,.1,.1,.5,.5\n",
            "look like fractions of the photo; give.*in pixels",
        ),
        ("path,label,xmin,ymin\na.jpg,owl,1,1\n", "boxes need columns xmin, ymin, xmax, ymax.*not there: xmax, ymax"),
    ],
)
def test_mistakes_in_tables_are_told_in_one_line(table, text, message):
    with pytest.raises(UserError, match=f"labels.csv.*{message}") as caught:
        table(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.jpg"\n', "row 1 is not JSON"),
        ('["a.jpg", "owl"]\n', "row 1 is not an object"),
        ('{"path": "a.jpg", "label": "owl"}\n{"path": "b.jpg"}\n', "row 2 has no label"),
    ],
)
def test_mistakes_in_json_lines(table, text, message):
    with pytest.raises(UserError, match=f"labels.jsonl.*{message}"):
        table(text, "labels.jsonl")


@pytest.mark.parametrize(
    ("name", "message"), [("labels.xlsx", "is neither a folder nor a table"), ("none.csv", "none.csv does not exist")]
)
def test_other_files(make, name, message):
    root = make("labels.xlsx")
    with pytest.raises(UserError, match=f"{message}; give the folder.*, or a table of path and label"):
        listing.read(root / name)


@pytest.mark.parametrize("mark", ["utf-32", "utf-16", "utf-8-sig"])
def test_what_a_byte_order_mark_says(table, mark):
    assert [item.label for item in table("path,label\na.jpg,Grün\nb.jpg,x\n", encoding=mark).items] == ["Grün", "x"]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("path,label\na.jpg,o\0wl\n", "l.csv", "holds NUL characters"),
        ("PK\3\4\24\0\0\0" * 20, "l.csv", "holds NUL characters"),  # a workbook that was given another name
        ('{"path": "a.jpg", "label": {"name": "owl"}}\n', "l.jsonl", "row 1: label is an object or a list"),
        ('{"path": "a.jpg", "label": "owl"}\n{"path": ["b.jpg"], "label": 1}\n', "l.jsonl", "row 2: path is an object"),
        ("[" * 100_000, "l.jsonl", "row 1 is not JSON"),
    ],
)
def test_files_that_are_no_table_are_a_line(table, text, name, message):
    with pytest.raises(UserError, match=message) as caught:
        table(text, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("train", ["train", "Training", "train_set", "training_images", "Train2017", "TRAIN-DATA"])
@pytest.mark.parametrize("test", ["test1", "Test Set", "val2017", "eval", "testing_images"])
@pytest.mark.parametrize("above", ["", "pets/"])
def test_parts_without_classes_do_not_become_classes(make, train, test, above):
    root = make(*[f"{above}{folder}/{i}.jpg" for folder in (train, test) for i in range(4)])
    with pytest.raises(UserError, match="no class folders|look like parts and no classes"):
        listing.read(root)


def test_a_link_that_leads_nowhere_is_no_class_less(make):
    root = make(*grid("train", "test"))
    (root / "train" / "crow").symlink_to("/nowhere")
    with pytest.raises(UserError, match="train/crow is a link to /nowhere, which is not there"):
        listing.read(root)
    (root / "train" / "crow").unlink()
    (root / "train" / "notes.txt").symlink_to("/nowhere")
    assert found(listing.read(root)) == both("train", "test")


def test_classes_of_several_folders_are_told(make):
    species = ["Parus/major", "Parus/ater", "Strix/aluco", "Strix/nebulosa"]
    line = "2 of 2 class folders hold several folders, each one class: Parus = ater, major"
    for part in ("", "train/"):
        root = make(*[f"{part}{name}/{i}.jpg" for name in species for i in range(3)])
        assert listing.read(root).notes == (line,)
        shutil.rmtree(root)


def test_names_that_are_perhaps_one_class_are_told(table):
    rows = ["Owl", "owl", "barn owl", "barn  owl", "Gr\u00fcn", "Gru\u0308n", "wren"]
    (note,) = table("path,label\n" + "".join(f"{i}.jpg,{row}\n" for i, row in enumerate(rows))).notes
    assert "'Owl' and 'owl'" in note and "'Gru\\u0308n' and 'Gr\\xfcn'" in note and "'barn  owl'" in note
    assert "wren" not in note


@pytest.mark.parametrize("word", ["nan", "NA", "None", "null"])
def test_a_word_for_nothing_is_told(table, word):
    assert any(f"{word}: taken as the name" in note for note in table(f"path,label\na.jpg,{word}\nb.jpg,x\n").notes)
