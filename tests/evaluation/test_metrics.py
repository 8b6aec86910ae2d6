"""Metrics against values worked out by hand, and padding that must not count."""

import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.evaluation.classification import calibration_gaps, classification_sums
from c2f_jax.evaluation.evaluate import evaluate
from c2f_jax.evaluation.localization import attention_sums, best_ious, localization_sums, max_box_accuracy
from c2f_jax.evaluation.metrics import finalise, merge
from c2f_jax.models.two_looks import Look

# Rows: right; second; true class last of six; filling (would be right).
PROBABILITIES = np.array(
    [
        [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.6, 0.2, 0.05, 0.05, 0.05, 0.05],
        [0.3, 0.2, 0.2, 0.15, 0.1, 0.05],
        [1.0 - 5e-6, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6],
    ]
)
LABELS = np.array([0, 1, 5, 0])
MASK = np.array([1.0, 1.0, 1.0, 0.0])


def sums(rows):
    return classification_sums(
        jnp.log(jnp.asarray(PROBABILITIES[rows])), jnp.asarray(LABELS[rows]), jnp.asarray(MASK[rows])
    )


def test_classification_by_hand():
    got = finalise(sums(slice(None)))
    assert got["top_1_accuracy"] == pytest.approx(1 / 3)
    assert got["top_5_accuracy"] == pytest.approx(2 / 3)
    assert got["mean_per_class_accuracy"] == pytest.approx((1 + 0 + 0) / 3)  # classes 0, 1 and 5 were seen
    assert got["loss"] == pytest.approx(-(np.log(0.5) + np.log(0.2) + np.log(0.05)) / 3, rel=1e-5)


def test_batches_of_any_size_give_the_same():
    whole = finalise(sums(slice(None)))
    parts = finalise(merge(merge(merge(None, sums(slice(0, 1))), sums(slice(1, 3))), sums(slice(3, 4))))
    assert parts == pytest.approx(whole)


def test_constant_outputs_are_not_right():
    got = finalise(classification_sums(jnp.log(jnp.full((6, 6), 1 / 6)), jnp.arange(6), jnp.ones(6)))
    assert got["top_1_accuracy"] == 0.0


@pytest.mark.parametrize("where", [0, 3, slice(None)])
@pytest.mark.parametrize("classes", [2, 6])
def test_what_is_not_a_number_is_not_right(where, classes):
    """Of the true class, another one, or all; with so few classes that top-5 takes any other answer, too."""
    values = np.log(np.full((4, classes), 1 / classes))
    values[:, 0] += 1.0  # else right
    values[1:, where if isinstance(where, slice) else min(where, classes - 1)] = np.nan
    got = finalise(classification_sums(jnp.asarray(values), jnp.zeros(4, jnp.int32), jnp.ones(4)))
    assert got["top_1_accuracy"] == got["top_5_accuracy"] == got["mean_per_class_accuracy"] == 0.25
    assert not np.isfinite(got["loss"]) or (where == 3 and np.isfinite(got["loss"]))


def test_an_evaluation_that_is_not_finite_is_none():
    pair = (jnp.array(1.0), jnp.array(2.0))
    assert evaluate(lambda *_: {"a": pair}, None, None, [0, 0]) == {"a": 0.5}
    with pytest.raises(FloatingPointError, match="not finite: b, c"):
        broken = {"a": pair, "b": (jnp.nan, jnp.array(2.0)), "c": (jnp.inf, jnp.array(2.0))}
        evaluate(lambda *_: broken, None, None, [0])


def test_what_nothing_was_counted_for_has_no_figure():
    nothing = jnp.zeros(3)
    assert finalise({"a": (nothing, nothing), "b": (nothing, jnp.ones(3)), "c": calibration_gaps(*[nothing] * 3)}) == {
        "b": 0.0
    }


def test_filling_may_hold_anything():
    """NaN in rows that do not count reaches no figure."""
    maps = jnp.ones((2, 3, 3, 2)).at[1].set(jnp.nan)
    box = jnp.array([[0.0, 0.0, 1.0, 1.0], [jnp.nan] * 4])
    batch = {
        "mask": jnp.array([1.0, 0.0]),
        "box": box,
        "parts": jnp.stack([jnp.full((1, 2), 0.5), jnp.full((1, 2), jnp.nan)]),
        "part_visible": jnp.ones((2, 1)),
    }
    look = Look(box=box, view=None, logits=None, out={"attention_maps": maps}, batch_stats=None)
    got = finalise({**localization_sums(box, box, batch), **attention_sums(look, batch)})
    got |= finalise(classification_sums(jnp.log(box + 0.5), jnp.array([0, 0]), batch["mask"]))
    assert got and all(np.isfinite(value) for value in got.values()), got


def test_localization_by_hand():
    batch = {
        "mask": jnp.array([1.0, 1.0, 0.0]),
        "box": jnp.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 1.0]]),
        "parts": jnp.array([[[0.1, 0.1], [0.4, 0.9]], [[0.5, 0.5], [0.6, 0.6]], [[0.0, 0.0], [0.0, 0.0]]]),
        "part_visible": jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
    }
    boxes = jnp.array([[0.0, 0.0, 1.0, 0.5], [0.25, 0.75, 0.75, 0.25], [0.0, 0.0, 1.0, 1.0]])  # the second mirrored
    views = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.25, 1.0, 0.75, 0.0], [0.0, 0.0, 1.0, 1.0]])
    got = finalise(localization_sums(boxes, views, batch))
    assert got["box/mean_iou"] == pytest.approx((0.5 + 1.0) / 2)
    assert got["box/whole_image_iou"] == pytest.approx(0.25)
    assert got["box/mean_area"] == pytest.approx((0.5 + 0.25) / 2)
    assert got["box/share_of_view"] == pytest.approx((0.5 + 0.5) / 2)
    assert got["box/middle_inside"] == 1.0
    assert got["box/parts_inside"] == pytest.approx(2 / 3)
    elsewhere = {**batch, "box": batch["box"].at[0].set(jnp.array([0.0, 0.6, 0.5, 0.8]))}
    assert finalise(localization_sums(boxes, views, elsewhere))["box/middle_inside"] == 0.5


def test_what_is_not_known_is_not_told():
    boxes, views = jnp.array([[0.0, 0.0, 1.0, 0.5]]), jnp.array([[0.0, 0.0, 1.0, 1.0]])
    got = finalise(localization_sums(boxes, views, {"mask": jnp.ones(1)}))
    assert got == {"box/mean_area": 0.5, "box/share_of_view": 0.5}


def test_calibration_by_hand():
    """Gaps within a bin cancel, those of two bins do not; a bin holds its upper edge; filling counts nowhere."""
    confidence = jnp.array([0.95, 0.94, 1.0, 0.39, 0.2, 0.5])
    right = jnp.array([1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    mask = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    gaps = calibration_gaps(confidence, right, mask)
    assert np.flatnonzero(gaps.counts).tolist() == [2, 5, 14]  # 0.2 is 3/15, the upper edge of the third bin
    expected = (abs(0.05 + 0.06 - 1.0) + 0.39 + 0.8) / 5
    assert finalise({"e": gaps})["e"] == pytest.approx(expected)
    parts = [calibration_gaps(confidence[i], right[i], mask[i]) for i in (slice(0, 2), slice(2, 6))]
    assert finalise(merge({"e": parts[0]}, {"e": parts[1]}))["e"] == pytest.approx(expected)


def coarse_look(maps, box):
    none = jnp.zeros(())
    return Look(jnp.asarray(box), none, none, {"attention_maps": jnp.asarray(maps)}, None)


def test_overlap_by_hand():
    maps = np.zeros((3, 1, 2, 3))
    maps[0, 0, :, 0], maps[0, 0, :, 1], maps[0, 0, :, 2] = (3.0, 0.0), (1.0, 1.0), (0.0, 2.0)
    maps[1, 0, :, 0], maps[1, 0, :, 1] = (2.0, 0.0), (5.0, 0.0)  # the third map is dead: one pair
    maps[2] = 1.0  # filling
    got = finalise(attention_sums(coarse_look(maps, np.zeros((3, 4))), {"mask": jnp.array([1.0, 1.0, 0.0])}))
    assert got == {"attention/overlap": pytest.approx((2 * 0.5**0.5 + 0.0 + 1.0) / 4)}


def test_part_hit_by_hand():
    """The peak's cell is the last of the first row: (1/4, 3/4) of the view."""
    maps = np.zeros((4, 2, 2, 1))
    maps[:, 0, 1] = 1.0
    view = [0.0, 0.0, 0.8, 0.8]  # the peak at (0.2, 0.6) of the image; mirrored, at (0.2, 0.2)
    batch = {
        "mask": jnp.ones(4),
        "box": jnp.tile(jnp.array([0.1, 0.1, 0.6, 0.6]), (4, 1)),  # the root of its area is 0.5: within 0.05
        "parts": jnp.array(
            [[[0.16, 0.62], [0.9, 0.9]], [[0.2, 0.66], [0.2, 0.6]], [[0.2, 0.24], [0.9, 0.9]], [[0.2, 0.6], [0.2, 0.6]]]
        ),
        "part_visible": jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]),
    }
    boxes = [view, view, [0.0, 0.8, 0.8, 0.0], view]  # hit; its near part is hidden; hit; no part to hit
    got = finalise(attention_sums(coarse_look(maps, boxes), batch))
    assert got == {"attention/part_hit": pytest.approx(2 / 3)}


def test_boxes_of_components_by_hand():
    values = np.zeros((2, 4, 4))
    values[0, 0, 0], values[0, 1, 1] = 1.0, 0.6  # diagonal neighbours are one component
    values[0, 3, 3] = 0.4
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]])
    got = best_ious(values, boxes, (0.2, 0.5, 0.7))
    np.testing.assert_allclose(got, [[1.0, 1.0, 0.25], [0.0, 0.0, 0.0]])
    # A component that reaches far loses to a second one that fits.
    values[0, 3, 3], values[0, 3, 2], values[0, 2, 2:] = 0.9, 0.9, 0.9
    assert best_ious(values[:1], np.array([[0.5, 0.5, 1.0, 1.0]]), (0.8,)) == pytest.approx(1.0)


def test_box_accuracy_takes_thresholds_from_the_validation_part():
    validation = np.array([[0.2, 0.6, 0.8], [0.4, 0.6, 0.1]])  # best: second, second, third
    test = np.array([[0.9, 0.4, 0.1], [0.9, 0.6, 0.75]])
    got = max_box_accuracy(validation, test, (0.1, 0.2, 0.3))
    assert got.thresholds == (0.2, 0.2, 0.3)
    assert got.levels == (1.0, 0.5, 0.5) and got.value == pytest.approx(2 / 3)
