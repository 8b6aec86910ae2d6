"""The order of the data is a pure function of (seed, step), and evaluation sees each example once."""

import jax
import numpy as np
import pytest

from c2f_jax.data.pipeline import InMemory, Memory, evaluation_batches, training_batches
from c2f_jax.data.raw import Raw
from c2f_jax.data.sources import Subset, load, split_indices
from c2f_jax.errors import UserError
from c2f_jax.training.augment import example_keys, random_boxes

RAW = Raw(4, keep_aspect=False)


class Numbers:
    """Example i is an image of grey level i."""

    def __init__(self, size, height=4, width=4):
        self.size, self.shape = size, (height, width, 3)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"image": np.full(self.shape, index, np.uint8), "label": index % 3, "index": index}


def train(start=0, process=0, processes=1, seed=0, size=10):
    return training_batches(
        Numbers(size), batch_size=4, raw=RAW, seed=seed, start=start, process=process, processes=processes
    )


def take(batches, count):
    return [next(batches)["index"].tolist() for _ in range(count)]


def test_resuming_gives_the_same_order():
    whole = take(train(), 9)
    for start in (1, 4, 8):
        assert take(train(start=start), 9 - start) == whole[start:]


def test_every_epoch_is_a_new_permutation():
    order = np.concatenate(take(train(), 10))
    epochs = order.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert take(train(seed=1), 3) != take(train(), 3)


def test_processes_share_each_batch():
    whole = take(train(), 6)
    shares = [take(train(process=process, processes=2), 6) for process in (0, 1)]
    for step in range(6):
        assert shares[0][step] + shares[1][step] == whole[step]


def test_two_processes_see_each_example_once_an_epoch_and_go_on_with_the_next_one_after_a_stop():
    """Epochs of 10, batches of 4: some hold the end of one epoch and the start of the next."""
    steps = 15  # six epochs
    shares = [take(train(process=process, processes=2), steps) for process in (0, 1)]
    order = [index for step in range(steps) for share in shares for index in share[step]]
    for epoch in range(6):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    # Stopped after step 6, in the middle of the third epoch; gone on with by as many processes, by one, by four.
    for processes in (1, 2, 4):
        later = [take(train(start=6, process=process, processes=processes), steps - 6) for process in range(processes)]
        assert [index for step in range(steps - 6) for share in later for index in share[step]] == order[24:]


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_each_example_once(processes):
    seen, counts = [], set()
    for process in range(processes):
        batches = list(evaluation_batches(Numbers(9), batch_size=4, raw=RAW, process=process, processes=processes))
        counts.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (4 // processes, 4, 4, 3) and batch["image"].dtype == np.uint8
            seen += batch["index"][batch["mask"] > 0].tolist()
    assert sorted(seen) == list(range(9)) and counts == {3}


def test_evaluation_shares_are_the_batch_laid_end_to_end():
    settings = {"batch_size": 4, "raw": RAW, "processes": 2}
    shares = [list(evaluation_batches(Numbers(6), process=process, **settings)) for process in (0, 1)]
    rows = [[*first["index"], *second["index"]] for first, second in zip(*shares, strict=True)]
    assert rows == [[0, 1, 2, 3], [4, 5, 0, 0]]


def test_images_of_other_sizes_are_scaled():
    for keep_aspect, window in ((False, [0, 0, 1, 1]), (True, [0, 1 / 6, 1, 5 / 6])):
        raw = Raw(4, keep_aspect)  # 6 x 9 -> 4 x 6
        (batch,) = evaluation_batches(Numbers(2, 6, 9), batch_size=2, raw=raw, process=0, processes=1)
        assert batch["image"].shape == (2, 4, 4, 3) and batch["image"][1].min() == batch["image"][1].max() == 1
        np.testing.assert_allclose(batch["window"], [window] * 2, atol=1e-7)


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_photos_in_memory_give_the_same_batches(keep_aspect):
    """Whatever their shape: it is not taken from what is kept of them, which once squeezed all training views."""

    class Photos(Numbers):
        def __getitem__(self, index):
            photo = np.random.default_rng(index).integers(0, 256, (30 + 7 * index, 75 - 5 * index, 3), np.uint8)
            return super().__getitem__(index) | {"image": photo}

    raw = Raw(16, keep_aspect)
    settings = {"batch_size": 5, "raw": raw, "seed": 0, "start": 0, "process": 0, "processes": 1}
    kept = training_batches(InMemory(Photos(10), raw, Memory(8)), **settings)
    plain = training_batches(Photos(10), **settings)
    for _ in range(8):
        jax.tree.map(np.testing.assert_array_equal, next(kept), next(plain))
    (whole,) = evaluation_batches(InMemory(Photos(10), raw, Memory(8)), batch_size=10, raw=raw, process=0, processes=1)
    sides = whole["window"][:, 2:] - whole["window"][:, :2]
    pixels = sides * np.array([[30 + 7 * i, 75 - 5 * i] for i in range(10)])
    assert np.allclose(pixels[:, 0], pixels[:, 1], rtol=0.04) == keep_aspect


@pytest.mark.parametrize("odd", [{"box": np.zeros(4)}, {"parts": np.zeros((1, 2))}])
def test_examples_that_differ_are_no_batch(odd):
    """Neither is one filled up with what memory held before, nor are numbers repeated to fit."""

    class Mixed(Numbers):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"parts": np.ones((3, 2))} | (odd if index == 7 else {})

    batches = evaluation_batches(Mixed(8), batch_size=4, raw=RAW, process=0, processes=1)
    assert next(batches)["parts"].shape == (4, 3, 2)
    with pytest.raises(ValueError, match="differ"):
        next(batches)


def test_photos_are_decoded_once_where_there_is_memory():
    decoded = []

    class Counted(Numbers):
        def __getitem__(self, index):
            decoded.append(index)
            return super().__getitem__(index)

    raw = Raw(512, keep_aspect=False)
    settings = {"batch_size": 5, "raw": raw, "seed": 0, "start": 0, "process": 0, "processes": 1}
    first, seen = None, {}
    for mib in (8, 4, 0):  # 10 photos of 0.75 MiB: all are kept, 5 are, none is
        decoded.clear()
        source = InMemory(Counted(10), raw, Memory(mib))
        batches = training_batches(source, **settings)
        got = [next(batches) for _ in range(20)]
        del batches
        seen[mib] = len(decoded)
        first = first or got
        for ours, other in zip(first, got, strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, other)
    # 20 batches are taken and more are read ahead. Only threads that meet at a photo decode it twice.
    assert 10 <= seen[8] <= 20 and seen[8] + 30 < seen[4] < seen[0] - 30 and seen[0] >= 100


def test_memory_is_shared_and_never_more_than_there_is():
    memory = Memory(1)
    assert memory.take(1 << 19) and not memory.take((1 << 19) + 1) and memory.take(1 << 19) and not memory.take(1)


def test_an_example_on_both_sides_of_an_epochs_boundary_gets_two_views():
    """11 of the first 20 batches of 16 at 20 photos hold one twice."""
    settings = {"batch_size": 16, "raw": RAW, "seed": 0, "start": 0, "process": 0, "processes": 1}
    batches, twice = training_batches(Numbers(20), **settings), 0
    for step in range(20):
        batch = next(batches)
        assert batch["row"].tolist() == list(range(16))
        keys = example_keys(0, step, batch["row"])
        boxes = np.asarray(random_boxes(keys, batch["place"], min_side=0.5, max_side=1.0, flip=True))
        assert len({tuple(box) for box in boxes.tolist()}) == len({tuple(place) for place in batch["place"].tolist()})
        assert len(np.unique(boxes, axis=0)) == 16
        twice += len(set(batch["index"].tolist())) < 16
    assert twice > 5


def test_places_and_rows_are_those_of_one_process():
    def take(process, processes, start):
        settings = {"batch_size": 4, "raw": RAW, "seed": 3, "start": start, "process": process, "processes": processes}
        batches = training_batches(Numbers(10), **settings)
        return [next(batches) for _ in range(5 - start)]

    whole, later = take(0, 1, 0), take(0, 1, 2)
    shares = list(zip(take(0, 2, 0), take(1, 2, 0), strict=True))
    for name in ("place", "row", "index"):
        for step in range(5):
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares[step]]), whole[step][name])
        np.testing.assert_array_equal(later[0][name], whole[2][name])
    places = np.concatenate([batch["place"] for batch in whole])
    assert len(np.unique(places)) == 40 and 0 <= places.min() < 0.2 and 0.8 < places.max() < 1


def test_validation_part_is_fixed_and_disjoint():
    kept, aside = split_indices(50, 0.2)
    assert len(aside) == 10 and sorted([*kept, *aside]) == list(range(50))
    np.testing.assert_array_equal(split_indices(50, 0.2)[1], aside)
    assert Subset(Numbers(50), aside)[3]["index"] == aside[3]


def test_unknown_data_set():
    with pytest.raises(UserError, match="paper_birds"):
        load(
            "birds",
            path="",
            cache_dir="",
            unreadable="skip",
            validation_fraction=0.1,
            train_size=None,
            test_size=None,
        )
