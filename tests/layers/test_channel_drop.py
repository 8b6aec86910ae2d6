"""Channel DropBlock: against NumPy's, channel by channel; its gradient; only where it is asked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from c2f_jax.layers.channel_drop import ChannelDrop, channel_drop
from c2f_jax.layers.drop_path import dropping
from c2f_jax.runs import parallel
from c2f_jax.training.augment import example_keys

BATCH, CHANNELS = 16, 12
KEYS = example_keys(0, jnp.int32(3), jnp.arange(BATCH))


def feature_maps():
    """With a channel that is zero everywhere, one that is twice another, and two that live in one cell alone."""
    x = np.random.default_rng(0).normal(size=(BATCH, 3, 4, CHANNELS)).astype(np.float32)
    x[..., 5] = 0.0
    x[..., 7] = 2.0 * x[..., 2]
    x[..., 8:10] *= np.arange(12).reshape(3, 4, 1) == 6
    return x


def by_hand(x, count):
    """The first channel by lot; then one by one the channel of largest cosine with it, of equals by lot."""
    out = np.zeros(x.shape)
    for i, key in enumerate(KEYS):
        lot = np.asarray(jax.random.uniform(key, (CHANNELS,)))
        columns = x[i].reshape(-1, CHANNELS).astype(np.float64)
        first, left, cosines = columns[:, lot.argmin()], list(range(CHANNELS)), []
        for column in columns.T:
            lengths = np.linalg.norm(first) * np.linalg.norm(column)
            cosines.append(round(first @ column / lengths, 4) if lengths else 0.0)
        for _ in range(count):
            best = max(cosines[channel] for channel in left)
            left.remove(min((channel for channel in left if cosines[channel] == best), key=lot.__getitem__))
        out[i][..., left] = x[i][..., left] * CHANNELS / len(left)
    return out


@pytest.mark.parametrize(("rate", "count"), [(1e-9, 1), (0.25, 3), (0.5, 6), (0.99, CHANNELS - 1)])
def test_against_numpy(rate, count):
    x = feature_maps()
    out = np.asarray(jax.jit(partial(channel_drop, rate=rate))(KEYS, x))
    np.testing.assert_allclose(out, by_hand(x, count), rtol=1e-6, atol=0)


def test_the_mean_stays_and_doubles_go_together():
    keys = example_keys(1, jnp.int32(0), jnp.arange(4000))
    x = np.repeat(np.eye(4, dtype=np.float32), 2, axis=-1).reshape(1, 2, 2, 8)  # every channel has its double
    out = np.asarray(channel_drop(keys, jnp.tile(x, (4000, 1, 1, 1)), 0.25))
    np.testing.assert_allclose(out.mean(axis=0), x[0], atol=0.04)
    gone = ~out.any(axis=(1, 2))
    assert np.all(gone.sum(axis=-1) == 2)
    np.testing.assert_array_equal(gone[:, ::2], gone[:, 1::2])


def test_rounding_does_not_choose_between_doubles():
    """Channels that are multiples of one map: who goes is who would go if they were the same."""
    random = np.random.default_rng(2)
    pattern, scales = (random.uniform(0.1, 1.0, shape).astype(np.float32) for shape in ((3, 4, 1), (CHANNELS,)))
    expected, found = (
        channel_drop(KEYS, np.broadcast_to(maps, (BATCH, 3, 4, CHANNELS)), 0.5) == 0
        for maps in (pattern, pattern * scales)
    )
    np.testing.assert_array_equal(found, expected)


def test_the_gradient_is_that_of_the_channels_that_stay():
    """At maps of zeros too, where all channels are equally alike: then any may go."""
    for x in (feature_maps(), np.zeros((BATCH, 3, 4, CHANNELS), np.float32)):
        out, pull = jax.vjp(lambda x: channel_drop(KEYS, x, 0.25), x)
        gradient = np.asarray(pull(jnp.ones_like(out))[0])
        stays = gradient[:, 0, 0] != 0
        assert np.all(stays.sum(axis=-1) == CHANNELS - 3) and np.all(stays.any(axis=0)) and np.all(~stays.all(axis=0))
        np.testing.assert_allclose(gradient, np.broadcast_to(stays[:, None, None] * CHANNELS / 9, x.shape), rtol=1e-6)
        np.testing.assert_allclose(out, x * gradient, rtol=1e-6)


def test_half_precision_keeps_its_type_and_a_single_channel_stays():
    x = feature_maps()
    low = channel_drop(KEYS, jnp.asarray(x, jnp.bfloat16), 0.25)
    assert low.dtype == jnp.bfloat16 and np.all((~np.asarray(low).any(axis=(1, 2))).sum(axis=-1) >= 3)
    np.testing.assert_array_equal(channel_drop(KEYS, x[..., :1], 0.9), x[..., :1])


def test_an_example_has_its_own_draw_wherever_it_lies_and_none_outside_of_training():
    x, layer = jnp.asarray(feature_maps()), ChannelDrop(0.25)
    np.testing.assert_array_equal(layer.apply({}, x), x)
    with dropping(KEYS):
        first, second = (np.asarray(layer.apply({}, x)) for _ in range(2))
    with dropping(KEYS[::-1]):
        turned = np.asarray(layer.apply({}, x[::-1]))
    with dropping(KEYS):
        thrice = np.split(np.asarray(layer.apply({}, jnp.concatenate([x, x, x]))), 3)
    np.testing.assert_array_equal(turned[::-1], first)
    np.testing.assert_array_equal(thrice[0], first)
    assert not any(np.array_equal(thrice[one], thrice[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    assert not np.array_equal(first, second)  # of two looks

    places = NamedSharding(parallel.make_mesh(), PartitionSpec("data"))
    assert len(places.device_set) == 4
    shared = jax.jit(partial(channel_drop, rate=0.25))(*jax.device_put((KEYS, x), places))
    np.testing.assert_array_equal(shared, jax.jit(partial(channel_drop, rate=0.25))(KEYS, x))
