"""Paper birds: a pure function of (seed, index), with a class that only small parts know."""

import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.data import paper_birds
from c2f_jax.data.paper_birds import CLASS_NAMES, PART_NAMES, RAW_SIZE, PaperBirds, render
from c2f_jax.kernels import crop_and_resize

PLAIN, BARRED = 0, 1  # labels that differ in the wing alone
WING = PART_NAMES.index("wing")


def coarse_view(image, box=(0.0, 0.0, 1.0, 1.0), size=64):
    return np.asarray(crop_and_resize(jnp.asarray(image), jnp.asarray(box), size, antialias=True))


def pixels(points):
    """Fractions (y, x) -> indices of the pixel there."""
    return tuple(np.floor(np.asarray(points) * RAW_SIZE).astype(int).T)


def test_a_pure_function_of_seed_and_index():
    first, again = render(3, 7), render(3, 7)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(render(3, 8)["image"], first["image"])
    assert not np.array_equal(render(4, 7)["image"], first["image"])


def test_the_label_changes_the_parts_and_nothing_else():
    one, other = render(0, 5, label=0), render(0, 5, label=len(CLASS_NAMES) - 1)
    np.testing.assert_array_equal(one["box"], other["box"])
    np.testing.assert_array_equal(one["parts"], other["parts"])
    changed = np.any(one["image"] != other["image"], axis=-1)
    ymin, xmin, ymax, xmax = np.round(one["box"] * RAW_SIZE).astype(int)
    assert changed[ymin:ymax, xmin:xmax].any()
    changed[ymin - 1 : ymax + 1, xmin - 1 : xmax + 1] = False
    assert not changed.any()
    assert changed.size * 0.25 > (ymax - ymin) * (xmax - xmin)


@pytest.mark.parametrize("bit", range(4))
def test_each_part_tells_its_bit_where_it_is_said_to_be(bit):
    part = {0: "cap", 1: "beak", 2: "tail tip", 3: "wing"}[bit]
    for index in range(10):
        one, other = render(0, index, label=0), render(0, index, label=8 >> bit)
        changed = np.any(one["image"] != other["image"], axis=-1)
        row, column = pixels(one["parts"])
        at = PART_NAMES.index(part)
        near = changed[row[at] - 1 : row[at] + 2, column[at] - 1 : column[at] + 2]
        assert near.any(), (part, index)
        others = [i for i in range(4) if i != at]
        assert not changed[row[others], column[others]].any(), (part, index)


def test_a_coarse_view_cannot_tell_the_wings_apart():
    raw_difference = []
    for index in range(40):
        images = [render(0, index, label=label)["image"] for label in (PLAIN, BARRED)]
        views = [coarse_view(image) for image in images]
        assert np.abs(views[0] - views[1]).max() < 2.0  # of 255
        raw_difference.append(np.abs(np.subtract(*images, dtype=float)).max())
    assert np.mean(raw_difference) > 60.0


def test_a_fine_view_can():
    for index in range(20):
        one, other = (render(0, index, label=label) for label in (PLAIN, BARRED))
        centre = one["box"].reshape(2, 2).mean(axis=0)
        box = (*(centre - 0.2), *(centre + 0.2))
        assert np.abs(coarse_view(one["image"], box) - coarse_view(other["image"], box)).max() > 12.0


def test_boxes_hold_the_parts_and_little_else():
    sides = []
    for index in range(64):
        bird = render(0, index)
        ymin, xmin, ymax, xmax = bird["box"]
        assert 0.0 <= ymin < ymax <= 1.0 and 0.0 <= xmin < xmax <= 1.0
        assert np.all(bird["parts"] >= (ymin, xmin)) and np.all(bird["parts"] <= (ymax, xmax))
        assert bird["part_visible"].all() and bird["image"].dtype == np.uint8
        sides.append(xmax - xmin)
    assert min(sides) > 0.25 and max(sides) < 0.45


def test_classes_take_turns_and_splits_differ():
    train, test = PaperBirds("train", size=32), PaperBirds("test", size=4)
    assert [train[i]["label"] for i in range(32)] == [*range(16), *range(16)]
    assert len(set(CLASS_NAMES)) == 16 and [test[i]["index"] for i in range(4)] == [0, 1, 2, 3]
    assert not np.array_equal(train[0]["image"], test[0]["image"])
    assert (len(PaperBirds("train")), len(PaperBirds("test"))) == (paper_birds.TRAIN_SIZE, paper_birds.TEST_SIZE)
    with pytest.raises(IndexError):
        test[4]
    with pytest.raises(ValueError, match="split must be"):
        PaperBirds("val")
