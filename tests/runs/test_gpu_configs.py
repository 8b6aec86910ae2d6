"""The configs for one GPU start, train and predict: as they are, but for the size of network, views and run."""

import functools
import importlib
import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from c2f_jax.inference import load_model
from c2f_jax.models import backbones
from c2f_jax.models.published import IMAGENET
from c2f_jax.models.vit import VisionTransformer
from c2f_jax.runs.loop import train_and_evaluate
from tests.models.make_backbone_goldens import GOLDENS
from tests.models.make_resnet50_golden import draw_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        (folder / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 120, (72, 90, 3), np.uint8)
            pixels[20:50, (10 if name == "left" else 50) :][:, :30] += 100
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", ["folder_gpu", "cub_vit"])
def test_starts_trains_and_predicts(name, photos, tmp_path, monkeypatch):
    config = importlib.import_module(f"configs.{name}").get_config()
    form = dict(registers=4, positions="patches", layer_scale=1e-5)
    tiny = functools.partial(VisionTransformer, width=48, depth=2, heads=3, patch=14, **form)
    monkeypatch.setitem(backbones._CONSTRUCTORS, config.model.backbone, (tiny, {14: {}}))
    with np.load(GOLDENS) as goldens:
        weights = draw_weights(json.loads(goldens["dinov2_reg4/shapes"].tobytes()))
    save_file(weights, tmp_path / "model.safetensors")

    config.dataset.name, config.dataset.path, config.dataset.cache_dir = "folder", str(photos), str(tmp_path / "cache")
    config.dataset.raw_size, config.model.view_size, config.model.num_maps = 64, 56, 4
    config.model.pretrained = str(tmp_path / "model.safetensors")
    config.stages.fine_epochs, config.optimizer.warmup_epochs, config.train.batch_size = 2.0, 0.5, 8
    results = train_and_evaluate(config, tmp_path / "run")
    assert np.isfinite([value for key, value in results.items() if key.endswith("loss")]).all()
    assert {"coarse/loss", "fused/loss", "trained_fused/loss"} <= set(results)

    model = load_model(tmp_path / "run")
    assert (model.config.augment.mean, model.config.augment.std) == IMAGENET
    average, _ = model.variables
    assert {leaf.dtype for leaf in jax.tree.leaves(average)} == {np.dtype("float32")}
    said = list(model.predict([np.asarray(Image.open(path)) for path in sorted(photos.glob("*/3.png"))]))
    assert len(said) == 2
