"""Photos are set aside by a hash: as they were before there were groups, and groups undivided."""

import hashlib
import math
import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2f_jax.data.splitting import Item, compile_pattern, group_of, joined, set_aside, shots
from c2f_jax.errors import UserError


def by_class_alone(items, fraction, at_least):
    """What versions without groups did, and what their runs go on with."""
    aside = set()
    for label in {item.label for item in items}:
        members = [item for item in items if item.label == label]
        members.sort(key=lambda item: hashlib.sha256(os.fsencode(item.path)).digest())
        aside.update(members[: min(len(members) - 1, max(at_least, math.floor(fraction * len(members) + 0.5)))])
    return [item for item in items if item not in aside], [item for item in items if item in aside]


def photos(counts):
    return [Item(f"c{label}/{i:03}.jpg", label) for label, count in enumerate(counts) for i in range(count)]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.5, 0.9]),
    st.sampled_from([0, 1]),
)
def test_without_groups_it_is_as_it_was(counts, fraction, at_least):
    items = photos(counts)
    assert set_aside(items, fraction, at_least=at_least) == by_class_alone(items, fraction, at_least)
    assert set_aside(items, fraction, at_least=at_least, units={}) == by_class_alone(items, fraction, at_least)


def test_the_choice_is_this_one():
    """Written down: a change of the hash or the rule would divide the photos of finished runs anew."""
    _, aside = set_aside(photos([10, 15]), 0.2, at_least=1)
    assert [item.path for item in aside] == ["c0/000.jpg", "c0/007.jpg", "c1/000.jpg", "c1/002.jpg", "c1/014.jpg"]


def grouped(counts, size):
    """Photos of classes in groups of `size`, and their units."""
    items = photos(counts)
    return items, {item.path: f"\0{item.label}-{int(item.path[-7:-4]) // size}" for item in items}


@settings(deadline=None)
@given(
    st.lists(st.integers(20, 80), min_size=2, max_size=6),
    st.integers(1, 6),
    st.sampled_from([0.1, 0.2, 0.3]),
)
def test_groups_stay_together_and_shares_stay_near(counts, size, fraction):
    items, units = grouped(counts, size)
    kept, aside = set_aside(items, fraction, units=units)
    assert sorted(kept + aside) == sorted(items)
    assert not {units[item.path] for item in kept} & {units[item.path] for item in aside}
    taken = Counter(item.label for item in aside)
    for label, count in enumerate(counts):
        assert abs(taken[label] - fraction * count) <= size / 2 + 0.5


def test_groups_over_several_classes():
    """Places with many kinds: the shares of all classes are held together."""
    items = [Item(f"{place}/{i}.jpg", (place + i) % 5) for place in range(60) for i in range(8)]
    units = {item.path: f"\0{item.path.split('/')[0]}" for item in items}
    kept, aside = set_aside(items, 0.2, at_least=1, units=units)
    assert not {units[item.path] for item in kept} & {units[item.path] for item in aside}
    total, taken = Counter(item.label for item in items), Counter(item.label for item in aside)
    assert all(abs(taken[label] / total[label] - 0.2) < 0.05 for label in total)


def test_a_class_of_two_large_groups_is_tested_and_one_of_one_group_is_not():
    items, units = grouped([60, 10], 30)
    kept, aside = set_aside(items, 0.2, at_least=1, units=units)
    assert Counter(item.label for item in aside) == {0: 30} and Counter(item.label for item in kept) == {0: 30, 1: 10}
    assert set_aside(items, 0.2, units=units) == (items, [])  # for validation none is better than half


def test_a_new_photo_hardly_changes_the_choice():
    items, units = grouped([60, 60], 4)
    before = {item.path for item in set_aside(items, 0.2, at_least=1, units=units)[1]}
    new = [Item("a new.jpg", 0), *items]
    after = {item.path for item in set_aside(new, 0.2, at_least=1, units=units | {"a new.jpg": "\x000-3"})[1]}
    assert len((before ^ after) - {"a new.jpg"}) <= 8


def test_units_join_over_shared_names():
    assert joined([["b", "a"], ["\0g", "c", "b"], ["x", "y"]]) == {
        **{name: "\0g" for name in ("\0g", "a", "b", "c")},
        **{"x": "x", "y": "x"},
    }


def test_fewer_shots_are_among_more():
    items = photos([10, 3, 30])
    five, ten = shots(items, 5), shots(items, 10)
    assert Counter(item.label for item in five) == {0: 5, 1: 3, 2: 5}
    assert set(five) < set(ten) and ten == [item for item in items if item in set(ten)]


@pytest.mark.parametrize(
    ("pattern", "group"),
    [(r"_(\d+)_", "17"), (r"board\d+", "board3"), (r"^[^/]+/[^_]+", "owl/board3"), (r"(x)?board", None), ("z", None)],
)
def test_patterns(pattern, group):
    assert group_of(compile_pattern(pattern), "owl/board3_17_a.jpg") == group


def test_a_bad_pattern_is_one_line():
    assert compile_pattern("") is None
    with pytest.raises(UserError, match=r"dataset.group_by: '\(x' is no regular expression \(missing \)") as caught:
        compile_pattern("(x")
    assert "\n" not in str(caught.value)
