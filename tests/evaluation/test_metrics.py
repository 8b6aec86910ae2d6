"""Metrics against values worked out by hand, and padding that must not count."""

import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.evaluation.classification import classification_sums
from c2f_jax.evaluation.localization import localization_sums
from c2f_jax.training.metrics import finalise, merge

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


def test_localization_by_hand():
    batch = {
        "mask": jnp.array([1.0, 1.0, 0.0]),
        "box": jnp.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 1.0]]),
        "parts": jnp.array([[[0.1, 0.1], [0.4, 0.9]], [[0.5, 0.5], [0.6, 0.6]], [[0.0, 0.0], [0.0, 0.0]]]),
        "part_visible": jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
    }
    boxes = jnp.array([[0.0, 0.0, 1.0, 0.5], [0.25, 0.75, 0.75, 0.25], [0.0, 0.0, 1.0, 1.0]])  # the second mirrored
    got = finalise(localization_sums(boxes, batch))
    assert got["box/mean_iou"] == pytest.approx((0.5 + 1.0) / 2)
    assert got["box/whole_image_iou"] == pytest.approx(0.25)
    assert got["box/mean_area"] == pytest.approx((0.5 + 0.25) / 2)
    assert got["box/parts_inside"] == pytest.approx(2 / 3)


def test_what_is_not_known_is_not_told():
    got = finalise(localization_sums(jnp.array([[0.0, 0.0, 1.0, 0.5]]), {"mask": jnp.ones(1)}))
    assert got == {"box/mean_area": 0.5}
