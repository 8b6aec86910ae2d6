"""A network whose cells lie elsewhere than it seems is found out, whatever the photos show."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import geometry
from c2f_jax.kernels import soft_box

SHIFT = (1, 2)  # cells down and right
CELL = 8  # pixels


class Displaced(nn.Module):
    """Brightness by cell, and all of it moved."""

    with_box: bool

    @nn.compact
    def __call__(self, view, *, train):
        grey = jnp.mean(view, axis=-1, keepdims=True)
        self.param("unused", nn.initializers.zeros, ())
        cells = jnp.roll(nn.avg_pool(grey, (CELL, CELL), (CELL, CELL)), SHIFT, axis=(1, 2))
        region = cells[..., 0] ** 4
        region /= jnp.sum(region, axis=(1, 2), keepdims=True)
        box = soft_box(region, min_side=0.2, max_side=0.9)
        out = {"feature_maps": cells, "region": region, "box": box, "place": geometry.centre(region)}
        del out["place" if self.with_box else "box"]  # a network tells of one of them
        return jnp.zeros((len(view), 2)), out


def blobs(count):
    """Photos of a bright round thing somewhere near the middle, with its box."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0.35, 0.65, (count, 2))
    y, x = ((np.arange(128) + 0.5) / 128 for _ in range(2))
    distance = ((y[:, None] - centres[:, :1, None]) / 0.1) ** 2 + ((x - centres[:, 1:, None]) / 0.1) ** 2
    grey = 127 + 120 * np.exp(-0.5 * distance)
    boxes = np.concatenate([centres - 0.15, centres + 0.15], axis=-1).astype(np.float32)
    return {
        "image": np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8),
        "turned": np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8),
        "window": np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1)),
        "box": boxes,
        "parts": centres[:, None].astype(np.float32),
        "part_visible": np.ones((count, 1), np.float32),
    }


@pytest.mark.parametrize("side", [0.0, 0.3])
def test_a_displacement_is_found_in_every_way_and_moved_back(side):
    network = Displaced(with_box=not side)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)), train=False)
    run = SimpleNamespace(task=SimpleNamespace(network=network, normalise=lambda view: jnp.maximum(view - 126.0, 0.0)))
    run.task.side = side
    model = {"params": variables["params"], "batch_stats": {"coarse": {}}}
    told = {line["of"]: line for line in geometry.asked(run, model, 128, [blobs(8), blobs(8)], trained=True)}
    assert list(told) == ["receptive field", "patch", "norm", "region", "box"]
    for name, line in told.items():
        assert (line["y"], line["x"]) == pytest.approx(SHIFT, abs=0.05), name
        assert line["photos"] == 16 and line["view_size"] == 128
    box = told["box"]
    for moved in (box["moved"], box["moved by field"]):
        assert moved["iou"] > box["iou"] + 0.2 and moved["parts_inside"] >= box["parts_inside"]
