import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2f_jax.data import deep_pcb, sources
from c2f_jax.errors import UserError

SIZE = 64


def write_board(root: Path, name: str, boxes: list[tuple[int, int, int, int, int]]) -> None:
    """A grey board; each defect is a bright block, (x1, y1, x2, y2, kind)."""
    group = root / "PCBData" / "group1"
    for folder in ("1", "1_not"):
        (group / folder).mkdir(parents=True, exist_ok=True)
    board = np.full((SIZE, SIZE), 100, np.uint8)
    Image.fromarray(board).save(group / "1" / f"{name}_temp.png")
    for x1, y1, x2, y2, _ in boxes:
        board[y1:y2, x1:x2] = 250
    Image.fromarray(board).save(group / "1" / f"{name}_test.png")
    (group / "1_not" / f"{name}.txt").write_text("".join(f"{' '.join(map(str, box))}\n" for box in boxes))


def write_lists(root: Path, train: list[str], test: list[str]) -> None:
    for name, boards in (("trainval", train), ("test", test)):
        lines = [f"group1/1/{board}.jpg group1/1_not/{board}.txt" for board in boards]
        (root / "PCBData" / f"{name}.txt").write_text("\n".join(lines))


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    root = tmp_path / "DeepPCB"
    write_board(root, "a", [(4, 8, 12, 14, 1), (40, 44, 50, 52, 6)])
    write_board(root, "b", [(4, 4, 12, 12, 3), (18, 4, 26, 12, 2), (48, 48, 56, 56, 5)])  # the first two 6 px apart
    write_board(root, "c", [(30, 30, 36, 36, 4)])
    write_lists(root, ["a", "b"], ["c"])
    return root


def load(path: Path, cache: Path) -> tuple[deep_pcb.Defects, deep_pcb.Defects, tuple[str, ...]]:
    return deep_pcb.load(str(path), cache_dir=str(cache))


def test_an_example_is_a_board_with_one_defect(boards: Path, tmp_path: Path) -> None:
    train, test, names = load(boards, tmp_path)
    assert names == ("open", "short", "mousebite", "spur", "spurious_copper", "pin_hole")
    assert [names[label] for label in train.labels] == ["open", "pin_hole", "spurious_copper"]
    assert [names[label] for label in test.labels] == ["spur"]
    expected = np.full((SIZE, SIZE), 100)
    expected[8:14, 4:12] = 250  # rows are y
    first = train[0]
    np.testing.assert_array_equal(first["image"], np.repeat(expected[..., None], 3, axis=-1))
    np.testing.assert_allclose(first["box"] * SIZE, [8, 4, 14, 12])
    assert first["name"] == "group1/1/a#0" and first["label"] == 0
    assert np.sum(train[2]["image"][..., 0] == 250) == 64  # both of the close ones are gone


def test_a_cover_leaves_the_defect_beside_it(tmp_path: Path) -> None:
    # Nine pixels apart by x alone: grown by 3, the cover of the one ends before the other begins.
    write_board(tmp_path, "a", [(4, 4, 12, 12, 1), (21, 4, 29, 12, 2)])
    write_lists(tmp_path, ["a"], ["a"])
    train, _, _ = load(tmp_path, tmp_path)
    assert [int(np.sum(train[i]["image"][..., 0] == 250)) for i in range(len(train))] == [64, 64]


def test_no_board_is_on_both_sides_of_the_validation_split(boards: Path, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path), "unreadable": "fail", "train_size": None, "test_size": None}
    splits = sources.load("deep_pcb", path=str(boards), validation_fraction=0.5, **options)
    board = {
        part: {e["name"][:-2] for e in map(p.__getitem__, range(len(p)))}
        for part, p in (("train", splits.train), ("validation", splits.validation))
    }
    assert sorted(board["train"] | board["validation"]) == ["group1/1/a", "group1/1/b"]
    assert not board["train"] & board["validation"]
    assert len(splits.train) + len(splits.validation) == 3


def test_the_repository_as_a_zip_archive(boards: Path, tmp_path: Path) -> None:
    archive = tmp_path / "DeepPCB-master.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(boards.rglob("*")):
            file.write(path, Path("DeepPCB-master") / path.relative_to(boards))
    plain, zipped = load(boards, tmp_path)[0], load(archive, tmp_path / "cache")[0]
    np.testing.assert_array_equal(plain[1]["image"], zipped[1]["image"])
    assert len(load(boards / "PCBData", tmp_path)[0]) == 3


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: (root / "PCBData" / "test.txt").unlink(), "holds no PCBData"),
        (lambda root: (root / "PCBData/group1/1/a_temp.png").unlink(), "a_temp.jpg is missing"),
        (lambda root: (root / "PCBData/group1/1_not/a.txt").write_text("1 2 3\n"), "x1 y1 x2 y2 kind"),
        (lambda root: (root / "PCBData/group1/1_not/a.txt").write_text("1 2 3 4 7\n"), "not 1 to 6"),
        (lambda root: (root / "PCBData/test.txt").write_text("one\n"), "line 1"),
    ],
)
def test_what_is_not_whole_is_named(boards: Path, tmp_path: Path, spoil: object, told: str) -> None:
    spoil(boards)
    with pytest.raises(UserError, match=told):
        load(boards, tmp_path)


def test_a_photo_that_cannot_be_read_is_named(boards: Path, tmp_path: Path) -> None:
    (boards / "PCBData/group1/1/a_test.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="a_test.png cannot be read"):
        load(boards, tmp_path)[0][0]


def test_the_whole_data_set(tmp_path: Path) -> None:
    place = os.environ.get("C2F_DEEP_PCB_DIR")
    if not place:
        pytest.skip("C2F_DEEP_PCB_DIR does not name DeepPCB's folder")
    train, test, _ = load(Path(place), tmp_path)
    assert (len(train), len(test)) == (6326, 2980)
    assert np.bincount(test.labels).tolist() == [628, 436, 557, 457, 453, 449]
    assert len(set(train.boards)) <= 1000 and not set(train.boards) & set(test.boards)
    for index in (0, 3000, 6325):
        example = train[index]
        assert example["image"].shape == (640, 640, 3)
