"""The order of the data is a pure function of (seed, step), and evaluation sees each example once."""

import jax
import numpy as np
import pytest

from c2f_jax.data.pipeline import evaluation_batches, in_memory, training_batches
from c2f_jax.data.sources import Subset, load, split_indices
from c2f_jax.errors import UserError


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
        Numbers(size), batch_size=4, raw_size=4, seed=seed, start=start, process=process, processes=processes
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


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_each_example_once(processes):
    seen, counts = [], set()
    for process in range(processes):
        batches = list(evaluation_batches(Numbers(9), batch_size=4, raw_size=4, process=process, processes=processes))
        counts.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (4 // processes, 4, 4, 3) and batch["image"].dtype == np.uint8
            seen += batch["index"][batch["mask"] > 0].tolist()
    assert sorted(seen) == list(range(9)) and counts == {3}


def test_evaluation_shares_are_the_batch_laid_end_to_end():
    settings = {"batch_size": 4, "raw_size": 4, "processes": 2}
    shares = [list(evaluation_batches(Numbers(6), process=process, **settings)) for process in (0, 1)]
    rows = [[*first["index"], *second["index"]] for first, second in zip(*shares, strict=True)]
    assert rows == [[0, 1, 2, 3], [4, 5, 0, 0]]


def test_images_of_other_sizes_are_resized():
    (batch,) = evaluation_batches(Numbers(2, 6, 9), batch_size=2, raw_size=4, process=0, processes=1)
    assert batch["image"].shape == (2, 4, 4, 3) and batch["image"][1].min() == batch["image"][1].max() == 1
    np.testing.assert_allclose(batch["square"], [[1.0, 6 / 9]] * 2)


def test_images_are_decoded_once_where_they_fit_into_memory():
    decoded = []

    class Counted(Numbers):
        def __getitem__(self, index):
            decoded.append(index)
            return super().__getitem__(index)

    source, size = Counted(10), 512  # 7.5 MiB of images of that size
    kept = in_memory(source, raw_size=size, limit_mib=8)
    settings = {"batch_size": 5, "raw_size": size, "seed": 0, "start": 0, "process": 0, "processes": 1}
    batches = training_batches(kept, **settings)
    first = [next(batches) for _ in range(6)]
    # Six batches are taken and more are read ahead. Only threads that meet at an image decode it twice.
    assert set(decoded) == set(range(10)) and len(decoded) <= 20
    del batches
    plain = training_batches(Numbers(10), **settings)
    for batch in first:
        jax.tree.map(np.testing.assert_array_equal, batch, next(plain))
    assert in_memory(source, raw_size=size, limit_mib=7) is source


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
