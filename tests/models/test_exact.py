"""Small forms of every backbone say what timm's models say, with the same weights drawn by name.

The figures are those of `make_backbone_goldens`; where torch and timm are installed the models are asked anew, and
whole feature maps compared.
"""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from c2f_jax.models.pretrained import load_pretrained
from tests.models.make_backbone_goldens import CASES, GOLDENS, draw_image, evaluate, sample, timm_model
from tests.models.make_resnet50_golden import draw_weights

# Hardly optimised: what is compared does not depend on it, and compiling takes most of the time.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# These take longest to compile: here the odd size alone, both where timm is.
AT_ONE_SIZE = ("efficientnet_lite2", "inception_v3", "convnext")
CLOSE = 2e-5  # of the largest value; float32 sums in another order


def abstract_variables(backbone, size, dtype=jnp.float32):
    image = jax.ShapeDtypeStruct((1, *size, 3), dtype)
    return jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), image)


def looks(backbone, variables, image, *, tokens=False):
    """(feature maps, class token or None) of one image."""

    def look(variables, image):
        maps = backbone.apply(variables, image, train=False)
        return maps, backbone.apply(variables, image, train=False, method="tokens")[:, 0] if tokens else None

    return jax.jit(look).lower(variables, image).compile(QUICKLY)(variables, image)


def classified(case, weights, maps, token):
    """Logits [1, classes], by the file's own classifier."""
    name = next(name for name in ("head.fc", "head", "classifier", "fc") if f"{name}.weight" in weights)
    values = np.asarray(token if token is not None else np.mean(maps, axis=(1, 2)))
    if case.logits == "mean_norm":
        centred = values - values.mean(axis=-1, keepdims=True)
        values = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
        values = values * weights["head.norm.weight"] + weights["head.norm.bias"]
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * max(1.0, np.abs(wanted).max()))


@pytest.fixture(scope="module")
def goldens():
    return np.load(GOLDENS)


@pytest.fixture(params=CASES)
def loaded(request, goldens, tmp_path):
    """(name, case, weights, our variables with these weights)."""
    name, case = request.param, CASES[request.param]
    weights = draw_weights(json.loads(goldens[f"{name}/shapes"].tobytes()))
    save_file(weights, tmp_path / "model.safetensors")
    wanted = abstract_variables(case.ours, case.sizes[0])
    return name, case, weights, load_pretrained(str(tmp_path / "model.safetensors"), name, wanted)


def test_feature_maps_and_logits_are_timms(loaded, goldens):
    name, case, weights, variables = loaded
    for number, size in enumerate(case.sizes):
        if name in AT_ONE_SIZE and number == 0:
            continue
        maps, token = looks(case.ours, variables, draw_image(size), tokens=case.logits == "token")
        assert maps.shape == tuple(goldens[f"{name}/shape_{number}"])
        assert_close(sample(maps), goldens[f"{name}/features_{number}"])
        if case.logits:
            assert_close(classified(case, weights, maps, token)[0], goldens[f"{name}/logits_{number}"])


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="pip install torch torchvision timm")
def test_whole_maps_are_those_of_the_timm_that_is_here(loaded):
    name, case, _, variables = loaded
    model, _ = timm_model(case)
    for size in case.sizes:
        theirs, _ = evaluate(model, case, draw_image(size))
        assert_close(looks(case.ours, variables, draw_image(size))[0], theirs)
