"""Random views: keyed by (seed, step, row), inside the image, with colours in range."""

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.training import augment


def test_a_view_depends_on_seed_step_row_and_place_alone():
    row, settings = jnp.array([5, 9, 5]), {"min_side": 0.5, "max_side": 1.0, "flip": True}
    place = jnp.array([[0.2, 0.7], [0.5, 1.0], [0.2, 0.7]])
    boxes = augment.random_boxes(augment.example_keys(0, jnp.int32(3), row), place, **settings)
    np.testing.assert_array_equal(boxes[0], boxes[2])
    assert not np.allclose(boxes[0], boxes[1])
    alone = augment.random_boxes(augment.example_keys(0, jnp.int32(3), jnp.array([9])), place[1:2], **settings)
    np.testing.assert_array_equal(alone[0], boxes[1])
    for seed, step in ((1, 3), (0, 4)):
        other = augment.random_boxes(augment.example_keys(seed, jnp.int32(step), row), place, **settings)
        assert not np.allclose(other[0], boxes[0])


def test_boxes_lie_everywhere_inside_the_image_and_half_are_mirrored():
    keys = augment.example_keys(0, jnp.int32(0), jnp.arange(2000))
    boxes = np.asarray(augment.random_boxes(keys, augment.random_places(keys), min_side=0.6, max_side=0.9, flip=True))
    assert boxes.min() >= -1e-6 and boxes.max() <= 1.0 + 1e-6
    lowest, highest = np.minimum(boxes[:, 1], boxes[:, 3]), np.maximum(boxes[:, 1], boxes[:, 3])
    assert lowest.min() < 0.01 and highest.max() > 0.99
    sides = boxes[:, 2] - boxes[:, 0]
    np.testing.assert_allclose(np.abs(boxes[:, 3] - boxes[:, 1]), sides, atol=1e-6)
    assert 0.6 - 1e-6 <= sides.min() < 0.62 and 0.88 < sides.max() <= 0.9 + 1e-6
    assert 0.45 < np.mean(boxes[:, 1] > boxes[:, 3]) < 0.55


def test_views_may_also_be_upside_down():
    keys = augment.example_keys(0, jnp.int32(0), jnp.arange(2000))
    places, settings = augment.random_places(keys), {"min_side": 0.6, "max_side": 0.9, "flip": True}
    turned = np.asarray(augment.random_boxes(keys, places, **settings, upside_down=True))
    upside_down, mirrored = turned[:, 0] > turned[:, 2], turned[:, 1] > turned[:, 3]
    assert 0.45 < np.mean(upside_down) < 0.55
    assert 0.2 < np.mean(upside_down & mirrored) < 0.3  # one says nothing of the other
    # Places, sides and mirrors stay what they are without.
    upright = np.asarray(augment.random_boxes(keys, places, **settings))
    np.testing.assert_array_equal(np.where(upside_down[:, None], turned[:, [2, 1, 0, 3]], turned), upright)


def test_colour_by_hand():
    views = jnp.array([[[[10.0, 20.0, 60.0]]]])
    keys = augment.example_keys(0, jnp.int32(0), jnp.array([0]))
    same = augment.random_colour(keys, views, brightness=0.0, saturation=(1.0, 1.0))
    np.testing.assert_allclose(same, views, atol=1e-5)
    grey = augment.random_colour(keys, views, brightness=0.0, saturation=(0.0, 0.0))
    np.testing.assert_allclose(grey, np.full((1, 1, 1, 3), 30.0), atol=1e-5)
    double = augment.random_colour(keys, views, brightness=0.0, saturation=(2.0, 2.0))
    np.testing.assert_allclose(double[0, 0, 0], [0.0, 10.0, 90.0], atol=1e-5)  # -10 is clipped


def test_brightness_shifts_all_alike():
    keys = augment.example_keys(0, jnp.int32(0), jnp.arange(500))
    views = jnp.full((500, 1, 1, 3), 128.0)
    shifts = np.asarray(augment.random_colour(keys, views, brightness=0.1, saturation=(0.5, 1.5)) - 128.0)[:, 0, 0]
    np.testing.assert_allclose(shifts[:, 0], shifts[:, 2], atol=1e-4)
    assert 24.0 < np.abs(shifts).max() <= 25.5


def test_normalise():
    got = augment.normalise(jnp.array([[[0.0, 127.5, 255.0]]]), mean=(127.5,) * 3, std=(127.5,) * 3)
    np.testing.assert_allclose(got, [[[-1.0, 0.0, 1.0]]])


def test_streams_are_independent():
    keys = augment.example_keys(0, jnp.int32(0), jnp.arange(4))
    drawn = [jax.random.key_data(augment.stream(keys, number)) for number in (augment.CROP, augment.COLOUR)]
    assert not np.any(np.all(drawn[0] == drawn[1], axis=-1))
