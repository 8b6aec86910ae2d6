"""Box arithmetic, and the boxes that maps point at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from c2f_jax.kernels import (
    area,
    compose,
    contains,
    flip_horizontal,
    flip_vertical,
    iou,
    ordered,
    region_distribution,
    soft_box,
    threshold_box,
)
from tests.kernels import oracles, versions

WHOLE = [0.0, 0.0, 1.0, 1.0]
ROOT3 = 3.0**0.5
# The limits out of the way: the bare box of mean and standard deviation.
BARE = {"min_side": 0.0, "max_side": 1.0, "temperature": 1e-4}
DEFAULT = {"min_side": 0.3, "max_side": 1.0, "temperature": 0.05}
EVEN = np.ones((6, 8))

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


@pytest.fixture
def x64():
    with versions.x64():
        yield


def random_boxes(count, seed=0):
    return np.random.default_rng(seed).uniform(-0.2, 1.2, (count, 4)).astype(np.float32)


def random_q(*shape, seed=0, sharpness=2.0):
    """Distributions [..., h, w] over positions."""
    odds = np.exp(sharpness * np.random.default_rng(seed).normal(size=shape))
    return odds / odds.sum(axis=(-2, -1), keepdims=True)


def one_hot(i, j, height=6, width=8):
    q = np.zeros((height, width), np.float32)
    q[i, j] = 1.0
    return q


# --- Arithmetic. ---


def test_by_hand():
    box = np.array([0.25, 0.75, 0.5, 0.25], np.float32)
    np.testing.assert_array_equal(ordered(box), [0.25, 0.25, 0.5, 0.75])
    np.testing.assert_array_equal(flip_horizontal(box), [0.25, 0.25, 0.5, 0.75])
    np.testing.assert_array_equal(flip_horizontal(flip_horizontal(box)), box)
    np.testing.assert_array_equal(flip_vertical(box), [0.5, 0.75, 0.25, 0.25])
    assert area(box) == 0.125


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (WHOLE, [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        ([0.5, 0.25, 1.0, 0.75], WHOLE, [0.5, 0.25, 1.0, 0.75]),
        ([0.5, 0.25, 1.0, 0.75], [0.0, 0.5, 0.5, 1.0], [0.5, 0.5, 0.75, 0.75]),
        ([0.0, 1.0, 1.0, 0.0], [0.25, 0.0, 0.5, 0.25], [0.25, 1.0, 0.5, 0.75]),
        ([0.0, 1.0, 1.0, 0.0], [0.25, 0.25, 0.5, 0.0], [0.25, 0.75, 0.5, 1.0]),
        ([1.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.5, 0.5], [1.0, 0.5, 0.75, 0.75]),
    ],
    ids=["in the whole", "the whole of", "inside", "mirrored", "mirrored twice", "turned over"],
)
def test_compose_by_hand(outer, inner, expected):
    np.testing.assert_allclose(compose(jnp.array(outer), jnp.array(inner)), expected, atol=1e-7)


def test_compose_is_associative():
    a, b, c = random_boxes(20, 1), random_boxes(20, 2), random_boxes(20, 3)
    np.testing.assert_allclose(compose(compose(a, b), c), compose(a, compose(b, c)), atol=1e-5)


def test_compose_broadcasts_one_view_over_its_boxes():
    views, boxes = random_boxes(3), random_boxes(6, 1).reshape(3, 2, 4)
    expected = [[compose(view, box) for box in inner] for view, inner in zip(views, boxes, strict=True)]
    np.testing.assert_allclose(compose(views[:, None], boxes), expected, atol=1e-6)


def test_iou_values():
    a, b = random_boxes(60), random_boxes(60, 1)
    expected = [oracles.iou(*pair) for pair in zip(a, b, strict=True)]
    assert 0.0 in expected
    assert max(expected) > 0.3
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (WHOLE, WHOLE, 1.0),
        (WHOLE, [0.0, 0.0, 0.5, 0.5], 0.25),
        ([0.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.75, 1.0], 1 / 3),
        ([0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], 0.0),
        ([0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], 0.0),
        ([0.1, 0.5, 0.9, 0.5], WHOLE, 0.0),
    ],
    ids=["same", "quarter", "half over", "touching", "a point with itself", "a line"],
)
def test_iou_by_hand(a, b, expected):
    np.testing.assert_allclose(iou(jnp.array(a), jnp.array(b)), expected, atol=1e-6)


def test_iou_does_not_change_under_flips():
    """A view that is mirrored still shows the same place."""
    a, b = random_boxes(30), random_boxes(30, 1)
    for turned in (flip_horizontal(a), a[:, [2, 1, 0, 3]], flip_horizontal(a[:, [2, 1, 0, 3]])):
        np.testing.assert_allclose(iou(turned, b), iou(a, b), atol=1e-6)
        np.testing.assert_allclose(iou(b, turned), iou(a, b), atol=1e-6)
        np.testing.assert_allclose(area(turned), area(a), atol=1e-7)


def test_iou_gradient_is_finite_for_boxes_without_area():
    point = jnp.array([0.2, 0.2, 0.2, 0.2])
    assert jnp.isfinite(jax.jit(jax.grad(iou))(point, point)).all()


def test_contains_has_its_edges():
    """Corners and edges belong to the box, whichever way it is turned."""
    points = np.array([[0.25, 0.5], [0.75, 1.0], [0.25, 0.75], [0.5, 0.6], [0.24, 0.6], [0.5, 0.49]], np.float32)
    for box in ([0.25, 0.5, 0.75, 1.0], [0.25, 1.0, 0.75, 0.5], [0.75, 1.0, 0.25, 0.5]):
        assert contains(jnp.array(box), points).tolist() == [True, True, True, True, False, False]


def test_contains_for_each_box_its_own_points():
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], np.float32)
    points = np.array([[[0.1, 0.1], [0.9, 0.9]], [[0.1, 0.1], [0.9, 0.9]]], np.float32)
    assert contains(boxes, points).tolist() == [[True, False], [False, True]]


# --- Where to look. ---


@pytest.mark.parametrize("low", [{}, {"floor": 0.3}, {"background": 1.0}, {"floor": 0.05, "background": 0.5}], ids=str)
def test_region_distribution_values(low):
    rng = np.random.default_rng(0)
    maps, score = rng.exponential(size=(3, 5, 4)).astype(np.float32), rng.normal(size=(3, 5, 4)).astype(np.float32)
    maps[0, :2] = 0.0
    expected = [oracles.region_distribution(*pair, **low) for pair in zip(maps, score, strict=True)]
    np.testing.assert_allclose(region_distribution(maps, score, **low), expected, rtol=1e-4, atol=1e-7)


def test_region_distribution_without_a_score_is_the_attention():
    maps = np.random.default_rng(0).uniform(0.5, 1.0, (5, 4)).astype(np.float32)
    np.testing.assert_allclose(region_distribution(maps, np.zeros_like(maps)), maps / maps.sum(), rtol=1e-3)


def test_region_distribution_without_attention_is_the_softmax_of_the_score():
    score = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    q = region_distribution(np.zeros_like(score), score)
    np.testing.assert_allclose(q, jax.nn.softmax(score, axis=(-2, -1)), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_region_distribution_does_not_see_the_scale(scale):
    """While the map is far above the constant that keeps zeros from the logarithm."""
    rng = np.random.default_rng(0)
    maps, score = rng.uniform(0.2, 1.0, (5, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(region_distribution(scale * maps, score), region_distribution(maps, score), rtol=1e-4)


def test_a_faint_background_does_not_widen_the_box():
    """An object of four cells in a corner, over 0.1 of its attention everywhere else."""
    maps = np.full((8, 8), 0.1, np.float32)
    maps[1:3, 1:3] = 1.0
    plain, floored = (
        soft_box(region_distribution(maps, np.zeros_like(maps), floor=floor), **BARE) for floor in (0.0, 0.1)
    )
    np.testing.assert_allclose(floored, [0.125, 0.125, 0.375, 0.375], atol=0.01)
    assert area(plain) > 0.8


@pytest.mark.parametrize("level", [0.0, 0.1, 1.0])
def test_any_background_below_the_mean_does_not_widen_the_box(level):
    """The same object over a background of whatever height; a floor of 0.1 holds back the lowest alone."""
    maps = np.full((8, 8), level, np.float32)
    maps[1:3, 1:3] += 1.0
    q = region_distribution(maps, np.zeros_like(maps), background=1.0)
    np.testing.assert_allclose(soft_box(q, **BARE), [0.125, 0.125, 0.375, 0.375], atol=0.02)


@pytest.mark.parametrize("low", [{}, {"floor": 0.3}], ids=str)
def test_region_distribution_gradients(x64, low):
    rng = np.random.default_rng(0)
    maps, score = rng.uniform(0.1, 1.0, (4, 3)), rng.normal(size=(4, 3))
    maps[0, 0] = 2.0

    def below_the_peak(maps, score):
        """Its derivative does not follow the peak, which enters as a constant."""
        return region_distribution(jnp.asarray(maps).at[0, 0].set(2.0), score, **low)

    check_grads(jax.jit(below_the_peak), (maps, score), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


def test_the_mean_is_a_constant_to_the_gradient(x64):
    rng = np.random.default_rng(0)
    maps, score, weights = rng.uniform(0.1, 1.0, (4, 3)), rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    low, eps = maps.mean(), 1e-4 * maps.max() + 1e-8

    def by_hand(maps):
        odds = jnp.where(maps > low, maps - low, 0.0) + eps
        odds = odds * jnp.exp(score)
        return jnp.sum(weights * odds / jnp.sum(odds))

    got = jax.grad(lambda maps: jnp.sum(weights * region_distribution(maps, score, background=1.0)))(jnp.asarray(maps))
    np.testing.assert_allclose(got, jax.grad(by_hand)(jnp.asarray(maps)), rtol=1e-9, atol=1e-12)


def test_low_precision_maps_give_float32_boxes():
    maps = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 4)), jnp.bfloat16)
    q = region_distribution(maps, jnp.zeros_like(maps))
    assert q.dtype == soft_box(q.astype(jnp.bfloat16)).dtype == threshold_box(maps, 0.5, padding=0.1).dtype == "float32"
    np.testing.assert_allclose(q.sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("limits", [BARE, DEFAULT], ids=["bare", "default"])
def test_soft_box_values(limits):
    q, kappas = random_q(4, 6, 8).astype(np.float32), np.array([0.5, 1.0, ROOT3, 3.0], np.float32)
    expected = [oracles.soft_box(one, kappa, **limits) for one, kappa in zip(q, kappas, strict=True)]
    np.testing.assert_allclose(soft_box(q, kappas, **limits), expected, atol=1e-5)
    np.testing.assert_allclose(soft_box(q, 1.0, **limits)[1], expected[1], atol=1e-5)


def test_soft_box_defaults():
    """The numbers of the method."""
    q = random_q(6, 8).astype(np.float32)
    np.testing.assert_allclose(soft_box(q), oracles.soft_box(q, ROOT3, **DEFAULT), atol=1e-5)


def test_soft_box_of_a_uniform_map_is_the_view():
    np.testing.assert_allclose(soft_box(jnp.full((6, 8), 1 / 48), **BARE), WHOLE, atol=2e-4)


def test_soft_box_of_displaced_maps():
    """Cells that lie half of one right and down of what they show: a block's box moves back, and stays in the view."""
    block = np.zeros((8, 8), np.float32)
    block[2:4, 4:7] = 1 / 6
    moved, there = soft_box(block, ROOT3, **BARE, cell_offset=0.5), soft_box(block, ROOT3, **BARE)
    np.testing.assert_allclose(moved, there - 1 / 16, atol=1e-6)
    in_the_corner = soft_box(np.roll(block, (-2, -4), (0, 1)), ROOT3, **BARE, cell_offset=0.5)
    np.testing.assert_allclose(in_the_corner[:2], 0, atol=1e-6)


@pytest.mark.parametrize(("top", "left", "bottom", "right"), [(1, 2, 4, 6), (0, 0, 3, 4), (5, 7, 6, 8), (2, 0, 3, 8)])
def test_soft_box_of_a_uniform_block_is_the_block(top, left, bottom, right):
    block = np.zeros((6, 8), np.float32)
    block[top:bottom, left:right] = 1.0
    box = soft_box(block / block.sum(), ROOT3, **BARE)
    np.testing.assert_allclose(box, [top / 6, left / 8, bottom / 6, right / 8], atol=2e-4)


@pytest.mark.parametrize(("i", "j"), [(0, 0), (5, 7), (3, 2)])
def test_soft_box_of_a_single_cell_has_the_smallest_side(i, j):
    """Inside the view, and around the cell."""
    box = np.array(soft_box(one_hot(i, j)))
    sides = box[2:] - box[:2]
    assert (sides > 0.3).all()
    assert (sides < 0.32).all()
    assert contains(box, np.array([[(i + 0.5) / 6, (j + 0.5) / 8]], np.float32)).all()
    assert box.min() >= -1e-6
    assert box.max() <= 1.0 + 1e-6


@quick
@given(seeds, st.floats(0.0, 6.0), st.floats(0.125, 20.0, width=32))
def test_soft_box_stays_inside_the_view(seed, sharpness, kappa):
    """From an even map to a single cell, for any kappa; to the last digit."""
    box = np.array(soft_box(random_q(8, 6, 8, seed=seed, sharpness=sharpness).astype(np.float32), kappa))
    assert (box >= -1e-6).all()
    assert (box <= 1.0 + 1e-6).all()
    assert (box[:, 2:] - box[:, :2] >= 0.3 - 1e-6).all()


@quick
@given(seeds)
def test_soft_box_mirrors_with_the_map(seed):
    q = random_q(6, 8, seed=seed).astype(np.float32)
    ymin, xmin, ymax, xmax = soft_box(q)
    np.testing.assert_allclose(soft_box(q[:, ::-1]), [ymin, 1 - xmax, ymax, 1 - xmin], atol=1e-5)


def test_soft_box_gradients(x64):
    """Where the centre is not moved, in the distribution and in kappa."""
    q, kappa = random_q(3, 5, 6, sharpness=0.7), np.array([0.7, 1.0, 1.2])
    check_grads(jax.jit(soft_box), (q, kappa), order=1, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-5)


@jax.jit
def path_gradients(maps, score, kappa):
    def loss(maps, score, kappa):
        return jnp.array([1.0, 2.0, -3.0, 4.0]) @ soft_box(region_distribution(maps, score), kappa)

    return jax.grad(loss, argnums=(0, 1, 2))(maps, score, kappa)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("maps", [one_hot(0, 0), one_hot(2, 3), EVEN, 0 * EVEN, 1e-30 * EVEN])
def test_gradients_of_the_whole_path_are_finite(maps, dtype):
    """Attention and score to box, for the maps that break roots and logarithms."""
    for gradient in path_gradients(jnp.asarray(maps, dtype), jnp.zeros((6, 8)), ROOT3):
        assert jnp.isfinite(gradient).all()


def test_score_moves_the_box():
    """More of the score to the right moves the box there, by its gradient too."""
    maps = jnp.ones((6, 8))

    @jax.jit
    def xmin(score):
        return soft_box(region_distribution(maps, score), 1.0)[1]

    assert (jax.jit(jax.grad(xmin))(jnp.zeros((6, 8)))[:, -1] > 0).all()
    assert xmin(jnp.broadcast_to(jnp.arange(8.0), (6, 8))) > 0.5


# --- By a threshold. ---


def test_threshold_box_values():
    maps = np.random.default_rng(0).uniform(size=(5, 6, 8)).astype(np.float32) ** 4
    thresholds = np.array([0.1, 0.4, 0.6, 0.8, 1.0], np.float32)
    expected = [oracles.threshold_box(*pair, 0.05) for pair in zip(maps, thresholds, strict=True)]
    assert len(np.unique(np.round(expected, 4), axis=0)) > 2
    np.testing.assert_allclose(threshold_box(maps, thresholds, padding=0.05), expected, atol=1e-6)
    np.testing.assert_allclose(threshold_box(maps, 0.6, padding=0.05)[2], expected[2], atol=1e-6)


def test_threshold_box_of_nothing_is_the_view():
    np.testing.assert_array_equal(threshold_box(np.zeros((2, 6, 8), np.float32), 0.5, padding=0.1), [WHOLE, WHOLE])


def test_threshold_box_of_a_lone_peak_is_its_cell():
    box = threshold_box(one_hot(2, 5), 0.5, padding=0.0)
    np.testing.assert_allclose(box, [2 / 6, 5 / 8, 3 / 6, 6 / 8], atol=1e-7)
    padded = threshold_box(one_hot(0, 7), 0.5, padding=0.1)
    np.testing.assert_allclose(padded, [0.0, 7 / 8 - 0.1, 1 / 6 + 0.1, 1.0], atol=1e-6)


def test_threshold_box_reaches_its_threshold():
    """A cell at exactly the share counts."""
    maps = np.array([[1.0, 0.5, 0.25, 0.0]], np.float32)
    np.testing.assert_array_equal(threshold_box(maps, 0.5, padding=0.0), [0.0, 0.0, 1.0, 0.5])


def test_threshold_box_has_no_gradient():
    maps = np.random.default_rng(0).uniform(size=(6, 8)).astype(np.float32)
    gradients = jax.grad(lambda m, t: threshold_box(m, t, padding=0.1).sum(), argnums=(0, 1))(maps, 0.5)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
