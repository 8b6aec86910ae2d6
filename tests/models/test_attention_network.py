"""What depends on what, shown by gradients: exactly 0 where nothing may flow, more than 0 where it must."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.kernels import compose, crop_and_resize, region_distribution, soft_box
from c2f_jax.models.attention_network import AttentionNetwork, PooledNetwork, scale_gradient
from c2f_jax.models.two_looks import (
    Look,
    attention_over_image,
    central_boxes,
    learned_region,
    log_probabilities,
    threshold_region,
    two_looks,
)

VIEW, RAW = 16, 32


class TinyBackbone(nn.Module):
    """One convolution with stride 4, batch-normalised."""

    features: int = 12

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(self.features, (4, 4), strides=4)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))


def make(**settings):
    network = AttentionNetwork(TinyBackbone(), num_classes=5, num_maps=3, feature_scale=20.0, **settings)
    variables = network.init(jax.random.key(0), jnp.zeros((1, VIEW, VIEW, 3)), train=False)
    return network, variables["params"], variables["batch_stats"]


def raw_images(count=4):
    return jax.random.randint(jax.random.key(1), (count, RAW, RAW, 3), 0, 256).astype(jnp.uint8)


def see_twice(network, params, stats, raw, *, train=True, region=learned_region, coarse_box=None, fine_size=VIEW):
    return two_looks(
        network,
        params,
        {"coarse": stats, "fine": stats},
        raw,
        central_boxes(jnp.ones((len(raw), 2))) if coarse_box is None else coarse_box,
        region=region,
        view_size=VIEW,
        fine_size=fine_size,
        prepare=lambda views: views / 127.5 - 1.0,
        train=train,
    )


def perturbed(params):
    """Parameters whose score head is not at its zero start, where only its last layer has a gradient."""
    kernel = params["inverse_mapping"]["score"]["kernel"]
    score = {**params["inverse_mapping"]["score"], "kernel": jax.random.normal(jax.random.key(2), kernel.shape)}
    return {**params, "inverse_mapping": {**params["inverse_mapping"], "score": score}}


def norms(gradients):
    return jax.tree.map(lambda g: float(jnp.linalg.norm(g)), gradients)


@pytest.mark.parametrize("box_gradient", ["none", "mapping", "all"])
def test_where_the_boxs_gradient_goes(box_gradient):
    network, params, stats = make(box_gradient=box_gradient)
    params, raw = perturbed(params), raw_images()

    def through_box(params):
        # The classifier, backbone and attention of the fine look are constants: what is left goes through the box.
        box = see_twice(network, params, stats, raw)["fine"].box
        return jnp.sum(jnp.sin(crop_and_resize(raw, box, VIEW, antialias=True) / 255.0))

    got = norms(jax.grad(through_box)(params))
    mapping, below = got["inverse_mapping"], (got["attention"], got["backbone"])
    flows = {"none": (False, False), "mapping": (True, False), "all": (True, True)}[box_gradient]
    assert (mapping["kappa"] > 0, mapping["score"]["kernel"] > 0, mapping["project"]["kernel"] > 0) == (flows[0],) * 3
    for part in below:
        assert any(value > 0 for value in jax.tree.leaves(part)) is flows[1]
    assert all(value == 0 for value in jax.tree.leaves(got["head"]))


def test_the_region_starts_as_the_attention_above_its_floor():
    network, params, stats = make(floor=0.4, kappa_init=1.2)
    _, out = network.apply({"params": params, "batch_stats": stats}, raw_images()[:, :VIEW, :VIEW] / 255.0, train=False)
    mean = jnp.mean(out["attention_maps"], axis=-1)
    q = region_distribution(mean, jnp.zeros_like(mean), floor=0.4)
    np.testing.assert_allclose(out["region"], q, rtol=1e-5)
    np.testing.assert_allclose(out["box"], soft_box(q, 1.2), rtol=1e-5)
    assert np.min(q) < 1e-3 < 0.5 / q[0].size < np.max(q)  # some of it is below, some above


def test_the_second_look_has_its_own_size():
    network, params, stats = make()
    raw = raw_images()
    same, smaller = see_twice(network, params, stats, raw), see_twice(network, params, stats, raw, fine_size=8)
    assert (same["fine"].view.shape[1:3], smaller["fine"].view.shape[1:3]) == ((VIEW, VIEW), (8, 8))
    np.testing.assert_array_equal(same["coarse"].logits, smaller["coarse"].logits)
    np.testing.assert_array_equal(same["fine"].box, smaller["fine"].box)
    shown = crop_and_resize(raw, smaller["fine"].box, 8, antialias=True) / 127.5 - 1.0
    np.testing.assert_allclose(smaller["fine"].view, shown, atol=1e-6)


def test_box_gradient_scale_scales_that_gradient_alone():
    def gradient(scale):
        network, params, stats = make(box_gradient_scale=scale)
        params, raw = perturbed(params), raw_images()
        return jax.grad(lambda p: jnp.sum(see_twice(network, p, stats, raw)["fine"].box ** 2))(params)

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        jax.tree.map(lambda g: 0.1 * g, gradient(1.0)),
        gradient(0.1),
    )
    np.testing.assert_allclose(scale_gradient(jnp.array([3.0]), 0.1), [3.0])


def test_orthogonal_attention_filters():
    _, params, _ = make()
    kernel = params["attention"]["conv"]["kernel"].reshape(12, 3)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(3), atol=1e-6)
    _, params, _ = make(attention_init="lecun_normal")
    kernel = params["attention"]["conv"]["kernel"].reshape(12, 3)
    assert np.abs(kernel.T @ kernel - np.eye(3)).max() > 0.05
    with pytest.raises(ValueError, match="attention_init must be one of"):
        make(attention_init="zeros")


def test_at_the_start_the_region_is_the_attentions_own():
    network, params, stats = make()
    view = jax.random.normal(jax.random.key(3), (2, VIEW, VIEW, 3))
    _, out = network.apply({"params": params, "batch_stats": stats}, view, train=False)
    mean = out["attention_maps"].mean(-1)
    assert jnp.all(mean.sum((1, 2)) > 0)
    np.testing.assert_allclose(out["region"], mean / mean.sum((1, 2), keepdims=True), atol=2e-3)


def test_a_fine_view_inherits_the_mirror():
    network, params, stats = make()
    raw = raw_images()
    mirrored = jnp.broadcast_to(jnp.array([0.0, 1.0, 1.0, 0.0]), (4, 4))
    looks = see_twice(network, params, stats, raw, train=False)
    flipped = see_twice(network, params, stats, raw[:, :, ::-1], train=False, coarse_box=mirrored)
    np.testing.assert_allclose(flipped["coarse"].view, looks["coarse"].view, atol=1e-4)
    np.testing.assert_allclose(flipped["fine"].view, looks["fine"].view, atol=1e-3)
    assert jnp.all(flipped["fine"].box[:, 1] > flipped["fine"].box[:, 3])


def test_each_kind_of_view_has_statistics_of_its_own():
    network, params, stats = make()
    looks = see_twice(network, params, stats, raw_images())
    leaves = [jax.tree.leaves(seen.batch_stats) for seen in looks.values()]
    assert any(not np.allclose(a, b) for a, b in zip(*leaves, strict=True))
    assert any(not np.allclose(a, b) for a, b in zip(leaves[0], jax.tree.leaves(stats), strict=True))
    for seen in see_twice(network, params, stats, raw_images(), train=False).values():
        jax.tree.map(np.testing.assert_array_equal, seen.batch_stats, stats)


def test_fine_box_is_composed_in_raw_coordinates():
    network, params, stats = make()
    raw = raw_images()
    coarse_box = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.6, 0.7]), (4, 4))
    looks = see_twice(network, params, stats, raw, coarse_box=coarse_box)
    np.testing.assert_allclose(looks["fine"].box, compose(coarse_box, looks["coarse"].out["box"]), atol=1e-6)
    assert jnp.all(looks["fine"].box[:, 0] >= 0.1 - 1e-6) and jnp.all(looks["fine"].box[:, 3] <= 0.7 + 1e-6)


def test_threshold_region_finds_a_lone_peak():
    maps = jnp.zeros((1, 4, 4, 2)).at[0, 1, 2, :].set(1.0)
    ymin, xmin, ymax, xmax = np.asarray(
        threshold_region({"attention_maps": maps}, jnp.array([[0.0, 0.0, 1.0, 1.0]]), size=64)
    )[0]
    assert ymin < (1 + 0.5) / 4 < ymax and xmin < (2 + 0.5) / 4 < xmax
    assert (ymax - ymin) < 0.65 and (xmax - xmin) < 0.65


def test_fusion_averages_probabilities():
    network, params, stats = make()
    looks = see_twice(network, params, stats, raw_images(), train=False)
    scores = log_probabilities(looks)
    expected = 0.5 * (jax.nn.softmax(looks["coarse"].logits) + jax.nn.softmax(looks["fine"].logits))
    np.testing.assert_allclose(jnp.exp(scores["fused"]), expected, rtol=1e-5)
    once = see_twice(network, params, stats, raw_images(), train=False, region=None)
    assert list(once) == list(log_probabilities(once)) == ["coarse"]


def test_bfloat16_keeps_pooling_and_boxes_in_float32():
    network, params, stats = make(dtype=jnp.bfloat16)
    logits, out = network.apply({"params": params, "batch_stats": stats}, jnp.ones((2, VIEW, VIEW, 3)), train=False)
    assert out["attention_maps"].dtype == jnp.bfloat16
    assert logits.dtype == out["pooled"].dtype == out["box"].dtype == out["region"].dtype == jnp.float32


def test_baseline_is_average_pooling_and_a_linear_layer():
    network = PooledNetwork(TinyBackbone(), num_classes=5)
    variables = network.init(jax.random.key(0), jnp.zeros((1, VIEW, VIEW, 3)), train=False)
    view = jax.random.normal(jax.random.key(3), (2, VIEW, VIEW, 3))
    logits, out = network.apply(variables, view, train=False)
    head = variables["params"]["head"]
    np.testing.assert_allclose(logits, out["feature_maps"].mean((1, 2)) @ head["kernel"] + head["bias"], rtol=1e-5)


def test_attention_lies_over_the_part_of_the_image_that_was_seen():
    maps = jnp.zeros((1, 4, 4, 2)).at[0, 0, 3].set(3.0)  # the view's upper right corner
    coarse = Look(jnp.array([[0.25, 0.25, 0.75, 0.75]]), None, None, {"attention_maps": maps}, None)
    heat = np.array(attention_over_image(coarse, 16))[0]
    assert heat[4:6, 10:12].min() > 0.5
    assert heat.max() == heat[4:6, 10:12].max() == 1.0
    heat[4:8, 8:12] = 0.0
    np.testing.assert_array_equal(heat, 0.0)
    mirrored = np.asarray(attention_over_image(coarse._replace(box=jnp.array([[0.25, 0.75, 0.75, 0.25]])), 16))[0]
    assert mirrored[4:6, 4:6].min() > 0.5


def test_central_boxes():
    sides = jnp.array([[0.5, 0.5], [1.0, 1.0], [1.0, 0.5]])
    expected = [[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 1.0], [0.0, 0.25, 1.0, 0.75]]
    np.testing.assert_allclose(central_boxes(sides), expected)
