"""Photos of every shape reach the views with their own resolution along both sides, and where they should."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from c2f_jax.data.photos import Photos
from c2f_jax.data.pipeline import training_batches
from c2f_jax.data.raw import STRIP, Raw
from c2f_jax.data.splitting import Item
from c2f_jax.kernels import compose, crop_and_resize
from c2f_jax.training.augment import example_keys, random_boxes, random_places

SIDES = st.integers(1, 90)


def noise(height, width):
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


@given(SIDES, SIDES, st.integers(1, 40), st.booleans(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_any_photo_gives_a_whole_raw_image_the_same_scaled_or_not(height, width, size, keep, y, x):
    photo, raw = noise(height, width), Raw(size, keep)
    first = raw.cut(photo, np.array([y, x]))
    assert first["image"].shape == (size, size, 3) and first["image"].dtype == np.uint8
    ymin, xmin, ymax, xmax = first["window"]
    assert 0 <= ymin < ymax <= 1 and 0 <= xmin < xmax <= 1 and first["window"].dtype == np.float32
    scaled = raw.scale(photo)
    assert raw.scale(scaled) is scaled
    again = raw.cut(scaled, np.array([y, x]))
    np.testing.assert_array_equal(again["image"], first["image"])
    np.testing.assert_array_equal(again["window"], first["window"])
    if not keep:
        assert first["window"].tolist() == [0, 0, 1, 1]


def bars(height, width, period, along):
    """Bars of `period` pixels: grey levels that vary along the photo's width, or across it."""
    wave = 127.5 + 100 * np.sin(2 * np.pi * (np.arange(width if along else height) + 0.5) / period)
    grey = np.broadcast_to(wave[None, :] if along else wave[:, None], (height, width))
    return np.repeat(grey[..., None], 3, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("turned", [False, True])
def test_bars_along_and_across_are_seen_alike(ratio, turned):
    """Bars of 4 px in a photo whose shorter side is 128: the raw image of 128 px shows them, and so does a view."""
    shape = (128 * ratio, 128) if turned else (128, 128 * ratio)
    contrast = {}
    for along in (False, True):
        raw = Raw(128, keep_aspect=True).cut(bars(*shape, 4, along))["image"]
        view = np.asarray(crop_and_resize(jnp.asarray(raw)[None], jnp.array([[0.25, 0.25, 0.75, 0.75]]), 64))
        contrast[along] = (raw.std() / (100 / 2**0.5), view.std() / (100 / 2**0.5))
    np.testing.assert_allclose(contrast[True], contrast[False], atol=0.02)
    assert min(contrast[True]) > 0.95
    squeezed = Raw(128, keep_aspect=False).cut(bars(*shape, 4, not turned))["image"]
    assert squeezed.std() / (100 / 2**0.5) < 0.7 or ratio == 1  # which is what squeezing costs, from 2:1 on


@pytest.mark.parametrize("ratio", [1, 1.5, 3, 6])
@pytest.mark.parametrize("turned", [False, True])
def test_a_window_shows_what_its_place_in_the_photo_holds(ratio, turned):
    """A photo whose red says how far down, and whose green how far right a pixel is."""
    height, width = (round(200 * ratio), 200) if turned else (200, round(200 * ratio))
    y, x = np.mgrid[:height, :width]
    photo = np.stack([255 * (y + 0.5) / height, 255 * (x + 0.5) / width, 0 * x], axis=-1).round().astype(np.uint8)
    for place in ([0.0, 0.0], [0.3, 0.8], [1.0, 1.0], [0.5, 0.5]):
        got = Raw(64, keep_aspect=True).cut(photo, np.array(place))
        window = got["window"]
        for part in ([0.25, 0.5, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]):
            view = np.asarray(crop_and_resize(jnp.asarray(got["image"])[None], jnp.array([part]), 16))[0]
            ymin, xmin, ymax, xmax = np.asarray(compose(jnp.asarray(window), jnp.array(part)))
            np.testing.assert_allclose(view[..., 0].mean() / 255, (ymin + ymax) / 2, atol=4e-3)
            np.testing.assert_allclose(view[..., 1].mean() / 255, (xmin + xmax) / 2, atol=4e-3)
        np.testing.assert_allclose(got["image"][0, :, 1].min() / 255, window[1], atol=0.01)
        np.testing.assert_allclose(got["image"][0, :, 1].max() / 255, window[3], atol=0.01)


@pytest.mark.parametrize("shape", [(40, 40), (40, 60), (100, 40), (40, 300)])
def test_views_lie_uniformly_in_the_photo_whatever_its_shape(shape):
    """Centres of views of one size are spread evenly from the first to the last place they can take."""
    short, side = min(shape), 0.5
    raw, keys = Raw(40, keep_aspect=True), example_keys(0, 0, jnp.arange(2000))
    places = np.asarray(random_places(keys))
    windows = jnp.stack([raw.cut(noise(*shape), place)["window"] for place in places])
    boxes = random_boxes(keys, jnp.asarray(places), min_side=side, max_side=side, flip=False)
    boxes = np.asarray(compose(windows, boxes)) * np.tile(shape, 2)
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], short * side, atol=1e-3)
    for axis in (0, 1):
        free = shape[axis] - short * side
        quantiles = np.quantile(boxes[:, axis] / free, np.linspace(0, 1, 11))
        # Windows begin at whole pixels of the scaled photo.
        np.testing.assert_allclose(quantiles, np.linspace(0, 1, 11), atol=0.03 + 0.5 / free)


def test_a_strip_takes_memory_for_a_window_alone():
    photo = noise(10, 10 * STRIP + 1)
    raw = Raw(64, keep_aspect=True)
    assert raw.scale(photo) is photo  # at 64 px a side it would be 40 times as large
    got = raw.cut(photo, np.array([0.0, 1.0]))
    assert got["image"].shape == (64, 64, 3)
    np.testing.assert_allclose(got["window"], [0, 31 / 41, 1, 1])


def test_training_sees_all_of_a_long_photo():
    class Long:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            photo = np.zeros((20, 60, 3), np.uint8)
            photo[:, :20], photo[:, 40:] = 100, 200
            return {"image": photo, "label": 0, "index": 0}

    settings = {"seed": 0, "start": 0, "process": 0, "processes": 1}
    batch = next(training_batches(Long(), batch_size=64, raw=Raw(20, keep_aspect=True), **settings))
    levels = {int(level) for level in np.unique(batch["image"])}
    assert levels == {0, 100, 200}
    starts = batch["window"][:, 1]
    assert starts.min() < 0.05 and starts.max() > 2 / 3 - 0.05


def test_a_large_jpeg_is_decoded_at_reduced_scale_and_looks_the_same(tmp_path):
    y, x = np.mgrid[:900, :1400]
    photo = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.sin(y / 25), 127 + 100 * np.sin((x + y) / 60)], -1)
    Image.fromarray(photo.round().astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    items, raw = [Item("a.jpg", 0, None)], Raw(96, keep_aspect=True)
    whole, reduced = (Photos(tmp_path, items, min_side)[0]["image"] for min_side in (None, raw.size))
    assert whole.shape == (900, 1400, 3) and reduced.shape == (225, 350, 3)
    for place in ([0, 0], [0, 1]):
        first, second = (raw.cut(image, np.array(place)) for image in (whole, reduced))
        assert np.abs(first["image"].astype(int) - second["image"]).mean() < 1.0
        np.testing.assert_allclose(first["window"], second["window"], atol=5e-3)
