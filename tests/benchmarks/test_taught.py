"""Rows of boards and birds: where an oracle looks, and what a report says of lines."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import taught
from benchmarks.lines import pack
from c2f_jax.kernels import compose, contains
from tests.tiny import tiny_config


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_oracle_looks_where_it_is_annotated(mirrored):
    """In a view of a window of the photo, whichever way round it lies."""
    window = jnp.tile(jnp.array([[0.0, 0.2, 1.0, 0.7]]), (50, 1))  # of a photo twice as wide as high
    view = jnp.tile(jnp.array([[0.9, 0.1, 0.1, 0.9]]) if mirrored else jnp.array([[0.1, 0.1, 0.9, 0.9]]), (50, 1))
    place = jnp.stack([jnp.full(50, 0.4), jnp.full(50, 0.5)], axis=-1)
    batch = {"window": window, "box": jnp.concatenate([place, place], axis=-1)}
    shift = jnp.asarray(np.random.default_rng(0).uniform(-0.3, 0.3, (50, 2)))
    squares = partial(taught.annotated_squares, batch, {"place": jnp.full((50, 2), 0.5)}, view, side=0.3)
    boxes = compose(window, squares(place=taught.defect, shift=shift))
    assert bool(jnp.all(contains(boxes, place[:, None])))
    np.testing.assert_allclose(
        jnp.abs(boxes[:, 2:] - boxes[:, :2]), jnp.tile(jnp.array([[0.3, 0.15]]), (50, 1)), atol=1e-6
    )
    assert np.std(boxes[:, 0]) > 0.02 and bool(jnp.all((boxes[:, 0] > boxes[:, 2]) == mirrored))


def test_the_head_is_the_mean_of_its_visible_parts():
    parts, seen = np.random.default_rng(0).random((2, 15, 2)), np.zeros((2, 15), bool)
    seen[0, [1, 4, 7]] = True  # beak, crown; the left leg is none of the head's
    seen[1, 7] = True
    place, known = taught.head({"parts": parts, "part_visible": seen})
    np.testing.assert_allclose(place[0], (parts[0, 1] + parts[0, 4]) / 2)
    assert known.tolist() == [True, False] and np.isfinite(place).all()


def test_a_fixed_place_holds_most():
    """Seven of ten lie in a corner, three around the middle; a square of 0.4 cannot hold both."""
    corner, middle = np.random.default_rng(0).uniform(0.05, 0.25, (7, 2)), np.full((3, 2), 0.7)
    y, x = taught.fixed_place(np.concatenate([corner, middle]), side=0.4)
    assert 0.2 <= y <= 0.26 and 0.2 <= x <= 0.26  # moved in, where it would reach beyond the view
    np.testing.assert_allclose(taught.fixed_place(np.array([[0.5, 0.6]]), side=0.4), [0.5, 0.6], atol=0.02)


def test_rows_may_look_where_they_would_in_other_photos():
    """No photo where it would be looked at itself; in training but for shifts of up to 0.3 of the square's side."""
    run = taught.build_shuffled(tiny_config(region__side=0.2, stages__fine_epochs=1.0))
    places = jnp.array([[0.2, 0.3], [0.4, 0.5], [0.6, 0.7], [0.8, 0.3]])
    out, view = {"place": places}, jnp.tile(jnp.array([[0.0, 0.0, 1.0, 1.0]]), (4, 1))
    others = np.asarray(places)[[2, 3, 0, 1]]
    squares = run.task.test_region(out, view)
    np.testing.assert_allclose((squares[:, :2] + squares[:, 2:]) / 2, others, atol=1e-6)
    np.testing.assert_allclose(squares[:, 2:] - squares[:, :2], 0.2, atol=1e-6)
    (loss,) = (stage.loss for stage in run.stages if stage.name == "fine")
    trained = loss.keywords["region"](jax.random.split(jax.random.key(0), 4), out, view)
    moved = np.abs(np.asarray((trained[:, :2] + trained[:, 2:]) / 2) - others)
    assert moved.max() <= 0.3 * 0.2 + 1e-6 and moved.std() > 0.005


def test_rows_may_look_at_the_middle():
    run = taught.build_centre(tiny_config(region__side=0.2, stages__fine_epochs=1.0))
    view = jnp.array([[0.1, 0.2, 0.5, 0.8], [0.5, 0.8, 0.1, 0.2]])  # the second one mirrored
    squares = run.task.test_region({"place": jnp.array([[0.2, 0.3], [0.9, 0.9]])}, view)
    np.testing.assert_allclose(squares, [[0.2, 0.4, 0.4, 0.6], [0.4, 0.6, 0.2, 0.4]], atol=1e-6)


def line(name, right, **other):
    bits = pack(np.array(right, bool))
    views = dict.fromkeys(("coarse", "fine", "fused", "inside"), bits) | {"known": pack(np.ones(len(right), bool))}
    regions = {"own": views, "annotated": views}
    fixed = {
        "subject": "birds",
        "seed": 0,
        "groups": [0, 1, 2, 3],
        "new": None,
        "seconds": 60.0,
        "training": {"a": 0.5},
        "metrics": {"coarse/loss": 0.75, "fused/loss": 0.5},
    }
    return {**fixed, "name": name, "overrides": {}, "regions": regions, **other}


def test_a_report_says_what_the_lines_hold(capsys):
    once = line("one_look", [1, 0, 0, 0], overrides={"method": "attention"})
    taught.report([once, line("taught", [1, 1, 1, 0])])
    said = capsys.readouterr().out.splitlines()
    assert "| taught | 0 | 50.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 100.0 / 0.0 | 0.500 | 1 |" in said
    assert "| one_look | 0 | 50.0 | 25.0 | – | – | – | – | – / – | 0.750 | 1 |" in said
    assert said[-1].startswith("birds: taught, less one_look: +50.0 (+0.0 to ") and said[-1].endswith("seeds 0")


def test_a_report_compares_on_the_seeds_of_both(capsys):
    rights = {0: [1, 1, 0, 0], 1: [1, 1, 1, 1], 2: [0, 0, 0, 0]}
    untaught = [line("untaught", [0, 1, 0, 0], seed=seed) for seed in (1, 0)]
    taught.report([*(line("taught", right, seed=seed) for seed, right in rights.items()), *untaught])
    said = capsys.readouterr().out.splitlines()
    assert any(row.startswith("| taught | 0, 1, 2 | 50.0 ± 0.0 | 50.0 ± 50.0 |") for row in said)
    # Gains of 25 and 75 points: by Student's t with one degree of freedom 12.706 standard errors of 25 either way.
    assert "taught, less untaught: +50.0 (" in said[-1]
    assert said[-1].endswith("by seeds -267.7 to +367.7), seeds 0, 1")


def test_whole_boards_are_drawn(capsys):
    """Two groups of four images, one of them gained: one draw in four has no gain, of images alone hardly any."""
    groups = {"groups": [0] * 4 + [1] * 4}
    taught.report([line("fixed", [0] * 4 + [1] * 4, **groups), line("taught", [1] * 8, **groups)])
    assert "taught, less fixed: +50.0 (+0.0 to +100.0), seeds 0" in capsys.readouterr().out


def test_an_oracle_is_asked_at_the_annotated_places(capsys):
    """And wrong at its own, here."""
    ours, oracle = line("taught", [0, 0, 0, 0]), line("oracle", [1, 1, 0, 0])
    oracle["regions"] = {**oracle["regions"], "own": ours["regions"]["own"]}
    taught.report([ours, oracle])
    assert "taught, less oracle: -50.0 (" in capsys.readouterr().out


def test_a_report_says_what_share_of_the_oracles_gain_is_reached(capsys):
    """Above the fixed place's one photo of four the oracle has three: taught has one of these, by half a photo too
    little. A seed that one of the three rows lacks does not count."""
    rights = {"fixed": [1, 0, 0, 0], "taught": [1, 1, 0, 0], "oracle": [1, 1, 1, 1]}
    other = line("taught", [1, 1, 1, 1], seed=1)
    taught.report([*(line(name, right) for name, right in rights.items()), other, line("fixed", [0] * 4, seed=1)])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("birds: taught has 33 % of what oracle has above fixed; less half of that: -12.5 (")
    assert said.endswith("), seeds 0")
