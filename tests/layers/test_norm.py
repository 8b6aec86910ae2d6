"""BatchNorm against flax's and against the definition in NumPy; the max-pool against flax's."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from c2f_jax.layers.conv import max_pool
from c2f_jax.layers.norm import BatchNorm, batch_norm

SHAPE = (4, 5, 3, 6)


def example(dtype=np.float64):
    """Images [B, H, W, C] whose channels differ in mean and spread, scale and bias."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE) * np.arange(1, 7) + np.arange(6)
    return x.astype(dtype), rng.normal(size=6).astype(dtype), rng.normal(size=6).astype(dtype)


def test_equals_the_definition():
    x, scale, bias = example()
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    with jax.enable_x64(True):
        out, got_mean, got_variance = batch_norm(*map(jnp.asarray, (x, scale, bias)), 1e-3, None)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(variance + 1e-3) * scale + bias, atol=1e-12)
    np.testing.assert_allclose(got_mean, mean, atol=1e-12)
    np.testing.assert_allclose(got_variance, variance, atol=1e-11)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        arguments = tuple(map(jnp.asarray, example()))

        def f(*arguments):
            return jnp.sin(batch_norm(*arguments, 1e-3, None)[0])

        check_grads(f, arguments, order=2, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_equals_flax(train):
    """Result, running statistics and gradients; the same names and initial values of the variables."""
    x, scale, bias = example(np.float32)
    results = []
    for module in (BatchNorm, nn.BatchNorm):
        norm = module(use_running_average=not train, momentum=0.9, epsilon=1e-3)
        variables = norm.init(jax.random.key(0), x)
        start = jax.tree.map(np.asarray, variables)
        stats = {"mean": jnp.arange(6.0), "var": 1.0 + jnp.arange(6.0)}

        def run(params, x, norm=norm, stats=stats):
            out, updated = norm.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
            return out, updated["batch_stats"]

        out, vjp, after = jax.vjp(run, {"scale": scale, "bias": bias}, x, has_aux=True)
        results.append((start, out, after, vjp(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for mine, reference in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=2e-5)


def test_bfloat16_is_normalised_in_float32():
    x, scale, bias = example(np.float32)
    half = jnp.asarray(x, jnp.bfloat16)
    out, variables = BatchNorm(use_running_average=False, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), half)
    assert out.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    exact, mean, variance = batch_norm(half.astype(jnp.float32), jnp.ones(6), jnp.zeros(6), 1e-5, None)
    np.testing.assert_allclose(np.float32(out), exact, atol=2.0**-8 * np.abs(exact).max())
    _, half_mean, half_variance = batch_norm(half, jnp.ones(6), jnp.zeros(6), 1e-5, None)
    np.testing.assert_array_equal(half_mean, mean)
    np.testing.assert_array_equal(half_variance, variance)


def test_constant_channels_stay_finite():
    gradients = jax.grad(lambda x: jnp.sum(batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5, None)[0] ** 2))
    assert np.all(np.isfinite(gradients(jnp.full((2, 4, 4, 3), 1000.0))))


@pytest.mark.parametrize("spread", ["jit", "pmap"])
def test_statistics_are_those_of_all_devices(spread):
    x, scale, bias = example(np.float32)
    weight = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)

    def gradients(x, scale, bias, weight, axis_name):
        return jax.grad(lambda *a: jnp.sum(batch_norm(*a, 1e-3, axis_name)[0] * weight), argnums=(0, 1, 2))(
            x, scale, bias
        )

    expected = gradients(x, scale, bias, weight, None)
    if spread == "pmap":
        run = jax.pmap(partial(gradients, axis_name="d"), axis_name="d", in_axes=(0, None, None, 0))
        parts = run(x[:, None], scale, bias, weight[:, None])
        got = [np.concatenate(parts[0]), np.sum(parts[1], axis=0), np.sum(parts[2], axis=0)]
    else:
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        split = NamedSharding(mesh, PartitionSpec("data"))
        got = jax.jit(partial(gradients, axis_name=None))(
            jax.device_put(x, split), scale, bias, jax.device_put(weight, split)
        )
    for mine, reference in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("window", "strides", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 0)])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_equals_flax(window, strides, padding, ties):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(2, 9, 8, 3)))
    x = np.maximum(x, 0.5) if ties else x  # most windows then hold their maximum more than once
    settings = {"strides": (strides, strides), "padding": ((padding, padding),) * 2}
    results = []
    for pool in (max_pool, nn.max_pool):
        out, vjp = jax.vjp(lambda x, pool=pool: pool(x, (window, window), **settings), x)
        results.append((out, *vjp(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))))
    for mine, reference in zip(*results, strict=True):
        np.testing.assert_allclose(mine, reference, atol=1e-6)


def test_max_pool_passes_on_what_is_not_a_number():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    out = jax.jit(lambda x: max_pool(x, (2, 2), strides=(2, 2), padding=((0, 0), (0, 0))))(x)
    np.testing.assert_array_equal(np.isnan(out[0, :, :, 0]), [[True, False], [False, False]])


def test_max_pool_is_exported_for_every_platform():
    f = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))) ** 2)))
    x = jnp.float32(np.random.default_rng(0).normal(size=(1, 6, 6, 2)))
    for platform in ("cpu", "cuda", "tpu"):
        text = export.export(f, platforms=[platform])(x).mlir_module()
        assert ("reduce_window" in text or "select_and_scatter" in text) == (platform != "cpu")
