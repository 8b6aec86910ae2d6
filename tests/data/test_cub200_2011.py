"""CUB-200-2011's layout, from a folder or an archive, through TFDS without TensorFlow; small data made here.

Real photos only where C2F_CUB_DIR names the first 50 classes, unpacked and shrunk to a short side of 256 pixels.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2f_jax.data import sources
from c2f_jax.data.builders import published, records
from c2f_jax.data.images import decode
from c2f_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
CLASS_NAMES = ("003.Owl", "017.Wren", "200.Barn Swallow")
# id, class, is it for training, width, height; ids and classes neither start at 1 nor follow each other
PHOTOS = [
    (7, 3, 1, 40, 30),
    (8, 3, 0, 30, 40),
    (30, 17, 1, 20, 20),
    (31, 200, 1, 24, 16),
    (1000, 17, 1, 25, 10),
    (1001, 200, 0, 16, 16),
]
BOXES = {8: (-3.0, 4.5, 20.0, 100.0)}  # x, y, width, height: sticks out at the left and below
BOX = (2.0, 1.0, 8.0, 6.0)


def name_of(image_id, label):
    return f"{CLASS_NAMES[(3, 17, 200).index(label)]}/photo {image_id}.jpg"


def write(root):
    """The official layout: CUB_200_2011/ with everything in it, and attributes.txt beside it."""
    folder = root / "CUB_200_2011"
    (folder / "parts").mkdir(parents=True)
    (root / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    (folder / "classes.txt").write_text("3 003.Owl\n17 017.Wren\n200 200.Barn Swallow\n")
    lines = {name: [] for name in (*TABLES, "parts/part_locs.txt")}
    for image_id, label, is_train, width, height in PHOTOS:
        path = folder / "images" / name_of(image_id, label)
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "L" if image_id == 30 else "RGB"  # CUB holds a few grey ones
        Image.new(mode, (width, height), image_id % 256 if mode == "L" else (image_id % 256, 0, 0)).save(path)
        lines["images.txt"].append(f"{image_id} {name_of(image_id, label)}")
        lines["image_class_labels.txt"].append(f"{image_id} {label}")
        lines["train_test_split.txt"].append(f"{image_id} {is_train}")
        lines["bounding_boxes.txt"].append(f"{image_id} " + " ".join(map(str, BOXES.get(image_id, BOX))))
        for part in range(1, 16):
            seen = int(part % 3 > 0)
            lines["parts/part_locs.txt"].append(f"{image_id} {part} {seen * part * 2}.0 {seen * part / 2} {seen}")
    lines["image_class_labels.txt"].reverse()  # tables need not agree in their order
    for name, content in lines.items():
        if content:
            (folder / name).write_text("\n".join(content) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "data")


def pack(root, path):
    """Everything below `root` in an archive; the photos before the tables, which comes hardest."""
    files = sorted((file for file in root.rglob("*") if file.is_file()), key=lambda file: (file.suffix, file.name))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(root))
    else:
        with tarfile.open(path, f"w:{path.suffix[1:].replace('tgz', 'gz').replace('tar', '')}") as archive:
            for file in files:
                archive.add(file, f"./{file.relative_to(root)}")
    return path


@pytest.fixture
def load(tmp_path):
    def load(path):
        return published.load("cub200_2011", "" if path is None else str(path), cache_dir=str(tmp_path / "cache"))

    return load


def prepared(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "cub200_2011").glob("*/*"))


def check(loaded, folder):
    train, test, class_names, _ = loaded
    assert class_names == CLASS_NAMES
    wanted = {split: [photo for photo in PHOTOS if photo[2] == split] for split in (1, 0)}
    for source, split in ((train, 1), (test, 0)):
        assert len(source) == len(wanted[split])
        for index, (image_id, label, _, width, height) in enumerate(wanted[split]):
            example = source[index]
            assert example["index"] == index and example["label"] == (3, 17, 200).index(label)
            assert example["name"] == f"images/{name_of(image_id, label)}"
            np.testing.assert_array_equal(example["image"], decode(folder / example["name"]))
            assert example["image"].shape == (height, width, 3)
            x, y, box_width, box_height = BOXES.get(image_id, BOX)
            box = (y / height, x / width, (y + box_height) / height, (x + box_width) / width)
            np.testing.assert_allclose(example["box"], np.clip(box, 0, 1), rtol=1e-6)
            seen = [part % 3 > 0 for part in range(1, 16)]
            parts = [(part / 2 / height, part * 2 / width) if part % 3 else (0, 0) for part in range(1, 16)]
            np.testing.assert_array_equal(example["part_visible"], seen)
            np.testing.assert_allclose(example["parts"], np.clip(parts, 0, 1), rtol=1e-6)
            assert example["box"].dtype == example["parts"].dtype == np.float32
            assert example["part_visible"].dtype == np.bool_
    with pytest.raises(IndexError):
        test[len(test)]


def test_the_unpacked_folder_and_the_one_above(folder, load, tmp_path):
    check(load(folder), folder)
    check(load(folder.parent), folder)
    assert prepared(tmp_path) == ["2.0.0"]
    np.testing.assert_allclose(load(folder)[1][0]["box"], (4.5 / 40, 0.0, 1.0, 17 / 30), rtol=1e-6)


@pytest.mark.parametrize("kind", ["tgz", "tar", "zip"])
def test_archives(folder, load, tmp_path, kind):
    archive = pack(folder.parent, tmp_path / f"CUB_200_2011.{kind}")
    check(load(archive), folder)


def test_photos_are_kept_byte_for_byte_and_not_beside_the_originals(folder, load, tmp_path):
    before = sorted((tmp_path / "data").rglob("*"))
    train = load(folder).train
    assert train._records[int(train._order[0])]["image"] == (folder / train[0]["name"]).read_bytes()
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_data_sets_are_told_apart_and_prepared_once(folder, load, tmp_path, capsys):
    load(folder)
    assert capsys.readouterr().err.count("preparing") == 1
    shutil.rmtree(folder / "images")  # a second start reads what was prepared
    check_after = load(folder)
    assert capsys.readouterr().err == "" and check_after[0][0]["image"].shape == (30, 40, 3)
    shutil.rmtree(tmp_path / "data")
    write(tmp_path / "data")
    split = folder / "train_test_split.txt"
    split.write_text(split.read_text().replace("1000 1", "1000 0"))
    train, test, _, _ = load(folder)
    assert (len(train), len(test)) == (3, 3) and prepared(tmp_path) == ["2.0.0"] * 2


def test_through_sources(folder, tmp_path):
    splits = sources.load(
        "cub200_2011",
        path=str(folder),
        cache_dir=str(tmp_path / "cache"),
        unreadable="skip",
        validation_fraction=0.25,
        train_size=None,
        test_size=None,
    )
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [3, 1, 2]
    assert splits.class_names == CLASS_NAMES and splits.published["train"] == 5994
    assert splits.notes == (
        "not all of CUB-200-2011 as it is published, or more: 4 train of 5994, 2 test of 5794, 3 classes of 200",
    )


@pytest.mark.parametrize("stop", [RuntimeError("killed"), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_a_preparation_that_was_interrupted_goes_on(folder, load, tmp_path, monkeypatch, stop, kind):
    """What whole shards hold is not read again."""
    place = folder if kind == "folder" else pack(folder.parent, tmp_path / "CUB_200_2011.tgz")
    look, looked = records._look, []

    def fails_at_the_fourth(*args):
        looked.append(args[2].name)
        if len(looked) == 4:
            raise stop
        return look(*args)

    monkeypatch.setattr(records, "SHARD_BYTES", 1)  # a shard each
    monkeypatch.setattr(records, "AHEAD", 1)
    monkeypatch.setattr(records, "_look", fails_at_the_fourth)
    with pytest.raises(type(stop)):
        load(place)
    assert prepared(tmp_path) == ["2.0.0.incomplete"] and len(looked) == 4
    check(load(place), folder)
    assert sorted(looked) == sorted([*(f"images/{name_of(*photo[:2])}" for photo in PHOTOS), looked[3]])
    assert prepared(tmp_path) == ["2.0.0"]


def test_ctrl_c_keeps_what_is_written(folder, load, tmp_path, monkeypatch):
    look, looked = records._look, []

    def stops_at_the_fourth(*args):
        looked.append(args[2].name)
        if len(looked) == 4:
            raise KeyboardInterrupt
        return look(*args)

    monkeypatch.setattr(records, "AHEAD", 1)
    monkeypatch.setattr(records, "_look", stops_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    check(load(folder), folder)
    assert len(looked) == len(PHOTOS) + 1  # of all but the fourth once


def test_shards_begin_small_so_that_a_stop_loses_little(folder, load, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FIRST_BYTES", 1)
    monkeypatch.setattr(records, "SHARD_BYTES", 1 << 30)
    check(load(folder), folder)
    assert len(list((tmp_path / "cache").rglob("*-train.array_record*"))) == 4


def test_a_process_that_was_killed_leaves_nothing_half(folder, load, tmp_path):
    code = f"""
import os, signal
from c2f_jax.data.builders import published, records
def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)
records._describe = kill
published.load("cub200_2011", {str(folder)!r}, cache_dir={str(tmp_path / "cache")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    (shard,) = (tmp_path / "cache").rglob("*-test.array_record*")
    (tmp_path / "cache").rglob("test-00000.json").__next__().unlink()  # as if it had not been whole
    shard.write_bytes(b"half")
    check(load(folder), folder)
    assert prepared(tmp_path) == ["2.0.0"]


def test_what_was_cleared_away_is_prepared_again(folder, load, tmp_path):
    load(folder)
    (shard,) = (tmp_path / "cache").rglob("*-test.array_record*")
    shard.unlink()
    check(load(folder), folder)


def test_processes_prepare_in_turn(folder, load, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(len(load(folder)[0]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [4, 4, 4] and prepared(tmp_path) == ["2.0.0"]


def edited(name, old, new):
    def edit(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return edit


def emptied(name):
    return lambda folder: (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *((lambda folder, name=name: (folder / name).unlink(), f"{name} is missing") for name in TABLES[1:]),
        (lambda folder: shutil.rmtree(folder / "parts"), "parts/part_locs.txt is missing"),
        (lambda folder: (folder / "images.txt").unlink(), "images.txt is missing"),
        (emptied("images.txt"), "images.txt is empty"),
        (edited("images.txt", "30 ", "31 "), "images.txt lists 31 2 times"),
        (edited("images.txt", "photo 8.jpg", "photo 7.jpg"), "images.txt lists 003.Owl/photo 7.jpg 2 times"),
        (edited("images.txt", "1001 200", "1001\n200"), "images.txt, line 6 must have 2 words, not '1001'"),
        (edited("images.txt", "003.Owl/photo 8.jpg", "../../photo 8.jpg"), "names images/../.., which leads out of"),
        (edited("classes.txt", "17 017.Wren\n", ""), "image_class_labels.txt gives image 30 the class 17"),
        (edited("classes.txt", "017.Wren", "003.Owl"), "classes.txt lists 003.Owl 2 times"),
        (edited("classes.txt", "3 ", "2 002.Emu\n3 "), "class 002.Emu has no training image"),
        (edited("image_class_labels.txt", "8 3\n", ""), "image_class_labels.txt has 0 lines for image 8, not 1"),
        (edited("train_test_split.txt", "8 0", "9 0"), "train_test_split.txt names image 9, which images.txt does not"),
        (edited("train_test_split.txt", "8 0", "8 2"), "train_test_split.txt has '2' for image 8"),
        (
            edited("bounding_boxes.txt", "7 2.0", "7 two"),
            "bounding_boxes.txt has something other than numbers for imag",
        ),
        (
            edited("bounding_boxes.txt", "7 2.0", "7 nan"),
            "bounding_boxes.txt has something other than numbers for imag",
        ),
        (edited("parts/part_locs.txt", "7 2 ", "7 3 "), "parts/part_locs.txt must list parts 1 to 15 of image 7"),
        (
            lambda folder: [edited("train_test_split.txt", f"{i} 0", f"{i} 1")(folder) for i in (8, 1001)],
            "the tables leave the test part empty",
        ),
        (
            lambda folder: (folder / "images" / name_of(8, 3)).unlink(),
            "images/003.Owl/photo 8.jpg is missing, one of 1",
        ),
        (emptied(f"images/{name_of(8, 3)}"), r"images/003.Owl/photo 8.jpg cannot be read \(empty file\)"),
    ],
)
def test_damaged_data_are_told_in_one_line(folder, load, damage, message, tmp_path):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert "2.0.0" not in prepared(tmp_path)


@pytest.mark.parametrize("kind", ["tgz", "tar", "zip"])
def test_damaged_archives(folder, load, tmp_path, kind):
    archive = pack(folder.parent, tmp_path / f"CUB_200_2011.{kind}")
    whole = archive.read_bytes()
    for size in (0, 10, len(whole) // 2):
        archive.write_bytes(whole[:size])
        with pytest.raises(UserError, match="CUB_200_2011.*(not a whole tar or zip|is missing)"):
            load(archive)
    # A plain tar has no checksum of its contents; a zip has one for each member, a compressed tar for the whole.
    places = {"tgz": range(len(whole) // 4, len(whole) // 2, len(whole) // 16), "zip": (), "tar": ()}[kind]
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(whole)) as zipped:
            places = [zipped.infolist()[-1].header_offset + 200]
    for place in places:
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with pytest.raises(UserError, match="CUB_200_2011.*not a whole tar or zip"):
            load(archive)
    with pytest.raises(UserError, match="there is no"):
        load(tmp_path / "nowhere.tgz")
    (folder / "images" / name_of(8, 3)).unlink()
    with pytest.raises(UserError, match="photo 8.jpg is missing"):
        load(pack(folder.parent, archive))


def test_a_cache_that_cannot_be_written(folder, load, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--config.dataset.cache_dir=DIR"):
        published.load("cub200_2011", str(folder), cache_dir=str(tmp_path / "file" / "below"))
    look = records._look

    def clears_the_cache(*args):
        shutil.rmtree(tmp_path / "cache" / "cub200_2011", ignore_errors=True)
        return look(*args)

    monkeypatch.setattr(records, "_look", clears_the_cache)  # no shard can be written, as on a full disk
    with pytest.raises(UserError, match="No such file or directory.*--config.dataset.cache_dir=DIR"):
        load(folder)


def test_tensorflow_is_not_imported(folder, tmp_path):
    trap = tmp_path / "trap" / "tensorflow" / "__init__.py"
    trap.parent.mkdir(parents=True)
    trap.write_text("import os, sys\nsys.stderr.write('tensorflow is being imported')\nos._exit(3)\n")
    code = f"""
import sys
from c2f_jax.data.builders import published
train, test, *_ = published.load("cub200_2011", {str(folder)!r}, cache_dir={str(tmp_path / "cache")!r})
print(train[0]["image"].shape, len(test), "tensorflow" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": f"{trap.parents[1]}{os.pathsep}{ROOT}"}
    run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False}
    assert subprocess.run([sys.executable, "-c", "import tensorflow"], **run).returncode == 3
    done = subprocess.run([sys.executable, "-c", code], **run)
    assert (done.returncode, done.stdout.strip()) == (0, "(30, 40, 3) 2 False"), done.stderr


REAL = os.environ.get("C2F_CUB_DIR")


@pytest.mark.skipif(REAL is None, reason="needs real photos: set C2F_CUB_DIR to CUB-200-2011's first 50 classes")
def test_real_photos(load):
    train, test, class_names, _ = load(REAL)
    assert (len(train), len(test), len(class_names)) == (1500, 1389, 50)
    assert class_names[0] == "001.Black_footed_Albatross"
    np.testing.assert_array_equal(np.bincount(train.labels), np.full(50, 30))
    # Image 2: "105.92 22.86 116.59 201.14", of 381 x 256 pixels.
    bird = train[0]
    assert bird["name"].endswith("Black_Footed_Albatross_0009_34.jpg") and bird["image"].shape == (256, 381, 3)
    corners = np.array([22.86 / 256, 105.92 / 381, 224.0 / 256, 222.51 / 381])
    np.testing.assert_allclose(bird["box"], corners, atol=1e-6)
    assert all(0 <= value <= 1 for record in test._records for value in record["box"])
