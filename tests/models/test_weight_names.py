"""Weights by other names are the same weights: torchvision's, transformers', the authors'."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from c2f_jax.errors import UserError
from c2f_jax.models.pretrained import load_pretrained, save_weights
from c2f_jax.models.weight_names import in_timms_words
from tests.models.make_backbone_goldens import CASES, FOREIGN, GOLDENS, draw_image, sample, timm_model
from tests.models.make_resnet50_golden import draw_weights
from tests.models.test_exact import abstract_variables, assert_close, looks


def drawn(name):
    with np.load(GOLDENS) as goldens:
        return draw_weights(json.loads(goldens[f"{name}/shapes"].tobytes()))


def loaded(tmp_path, weights, backbone, size):
    save_file(weights, tmp_path / "model.safetensors")
    return load_pretrained(str(tmp_path / "model.safetensors"), "x", abstract_variables(backbone, (size, size)))


@pytest.mark.parametrize("name", FOREIGN)
def test_other_libraries_files_give_their_features(name, tmp_path):
    backbone, side = FOREIGN[name]
    weights = drawn(name)
    if name.endswith("dinov3"):
        weights |= {key: 0 * value for key, value in weights.items() if key.endswith(("q_proj.bias", "v_proj.bias"))}
    variables = loaded(tmp_path, weights, backbone, side)
    maps, _ = looks(backbone, variables, draw_image((side, side)))
    with np.load(GOLDENS) as goldens:
        assert_close(sample(maps), goldens[f"{name}/features"])


# --- The authors' names, made from timm's by hand. ---


def of_convnexts_authors(weights):
    renames = [("stages.{}.blocks.", "stages.{}."), ("stages.{}.downsample.", "downsample_layers.{}.")]
    found = {}
    for key, value in weights.items():
        for old, new in [("stem.", "downsample_layers.0."), ("conv_dw", "dwconv"), ("mlp.fc", "pwconv")]:
            key = key.replace(old, new)
        for stage in range(4):
            for old, new in renames:
                key = key.replace(old.format(stage), new.format(stage))
        key = key.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        value = value.reshape(1, 1, 1, -1) if ".grn." in key else value
        found[key.replace("head.norm", "norm").replace("head.fc", "head")] = value
    return found


def of_dinov2s_authors(weights):
    found = {key: value for key, value in weights.items() if not key.startswith("head.")}
    if "reg_token" in found:
        found["register_tokens"] = found.pop("reg_token")
        own = np.random.default_rng(0).normal(size=found["cls_token"].shape).astype(np.float32)
        found["cls_token"] = found["cls_token"] - own
        found["pos_embed"] = np.concatenate([own, found["pos_embed"]], axis=1)
    return found | {"mask_token": np.zeros((1, found["cls_token"].shape[-1]), np.float32)}


def of_dinov3s_authors(weights):
    found = {}
    for key, value in weights.items():
        found[key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = value
        if key.endswith("qkv.weight"):
            bias = np.zeros(len(value), np.float32)
            third = len(value) // 3
            bias[third : 2 * third] = 7.0  # of the keys, which the mask takes away
            mask = np.ones_like(bias)
            mask[third : 2 * third] = 0.0
            found |= {key.replace("weight", "bias"): bias, key.replace("weight", "bias_mask"): mask}
    found["storage_tokens"] = found.pop("reg_token")
    found["rope_embed.periods"] = np.ones(4, np.float32)
    found["mask_token"] = np.zeros((1, 48), np.float32)
    return {key: value for key, value in found.items() if not key.startswith("head.")}


def of_clips_authors(weights):
    """OpenAI's and OpenCLIP's names, with some of the tower that reads text."""
    found = {"logit_scale": np.ones((), np.float32), "transformer.resblocks.0.ln_1.weight": np.ones(48, np.float32)}
    renames = [("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("cls_token", "class_embedding")]
    renames += [("pos_embed", "positional_embedding"), ("blocks.", "transformer.resblocks."), ("norm1", "ln_1")]
    renames += [("norm2", "ln_2"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj.", "attn.out_proj.")]
    renames += [("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]
    for key, value in weights.items():
        for old, new in renames:
            key = key.replace(old, new)
        key = f"visual.{key}".replace("visual.norm.", "visual.ln_post.")
        if "head" not in key:
            found[key] = value[0, 0] if "class" in key else value[0] if "positional" in key else value
    return found | {"visual.proj": np.zeros((48, 32), np.float32)}


def of_transformers_clip(weights):
    """Its names, with some of the tower that reads text; features of its own program were compared once."""
    found = {"logit_scale": np.ones((), np.float32), "text_model.final_layer_norm.weight": np.ones(48, np.float32)}
    found |= {"visual_projection.weight": np.ones((32, 48), np.float32), "text_projection.weight": np.ones((32, 48))}
    found["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    renames = [("patch_embed.proj", "embeddings.patch_embedding"), ("norm_pre", "pre_layrnorm")]
    renames += [("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding.weight")]
    renames += [("blocks.", "encoder.layers."), ("norm1", "layer_norm1"), ("norm2", "layer_norm2")]
    renames += [("attn.proj", "self_attn.out_proj")]
    for key, value in weights.items():
        for old, new in renames:
            key = key.replace(old, new)
        key = f"vision_model.{key}".replace("vision_model.norm.", "vision_model.post_layernorm.")
        if ".qkv." in key:
            for part, third in zip("qkv", np.split(value, 3), strict=True):
                found[key.replace("attn.qkv", f"self_attn.{part}_proj")] = third
        elif "head" not in key:
            found[key] = value[0, 0] if "class_emb" in key else value[0] if "position_emb" in key else value
    return found


AUTHORS = {
    "clip": of_clips_authors,
    "clip_quickgelu": of_transformers_clip,
    "convnext": of_convnexts_authors,
    "convnextv2": of_convnexts_authors,
    "dinov2": of_dinov2s_authors,
    "dinov2_reg4": of_dinov2s_authors,
    "dinov3": of_dinov3s_authors,
}


@pytest.mark.parametrize("name", AUTHORS)
def test_authors_names_give_timms_variables(name, tmp_path):
    weights, case = drawn(name), CASES[name]
    theirs = AUTHORS[name](weights)
    assert set(theirs) - set(weights)
    wanted = loaded(tmp_path, weights, case.ours, case.sizes[0][0])
    found = loaded(tmp_path, theirs, case.ours, case.sizes[0][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found, wanted)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="pip install torch torchvision timm")
@pytest.mark.parametrize("name", sorted(AUTHORS.keys() - {"clip_quickgelu"}))  # whose names timm does not know
def test_timm_reads_the_authors_names_alike(name):
    import torch
    from timm.models import convnext, eva, vision_transformer

    module = convnext if "convnext" in name else eva if name == "dinov3" else vision_transformer
    theirs = AUTHORS[name](drawn(name))
    model, _ = timm_model(CASES[name])
    filtered = module.checkpoint_filter_fn({key: torch.from_numpy(np.array(v)) for key, v in theirs.items()}, model)
    ours, timms = in_timms_words(theirs), in_timms_words({key: value.numpy() for key, value in filtered.items()})
    ours, timms = ({k: v for k, v in found.items() if not k.startswith("head.")} for found in (ours, timms))
    assert all(key.endswith(".qkv.bias") and not np.any(ours[key]) for key in set(ours) - set(timms))
    for key in timms:
        np.testing.assert_allclose(ours[key], timms[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("missing", ["q_proj.weight", "k_proj.weight", "v_proj.weight", "q_proj.bias", "v_proj.bias"])
def test_a_part_of_a_matrix_that_is_missing_is_told(tmp_path, missing):
    """No zeros take its place; of the keys' biases they do, which DINOv3 has none of."""
    weights = of_transformers_clip(drawn("clip_quickgelu"))
    del weights[f"vision_model.encoder.layers.1.self_attn.{missing}"]
    leaf = "kernel" if "weight" in missing else "bias"
    with pytest.raises(UserError, match=f"variables without a key: params/blocks_1/attn/qkv/{leaf}$"):
        loaded(tmp_path, weights, CASES["clip_quickgelu"].ours, 64)


def test_a_part_beside_the_whole_has_no_place(tmp_path):
    weights = drawn("vit")
    weights["blocks.0.attn.q.weight"] = weights["blocks.0.attn.proj.weight"]
    with pytest.raises(UserError, match=r"keys without a place: blocks.0.attn.q.weight$"):
        loaded(tmp_path, weights, CASES["vit"].ours, 64)


@pytest.mark.parametrize("wrapper", ["module.", "model.", "backbone.", "module.model.", "_orig_mod."])
def test_a_word_before_all_names_is_left_out(tmp_path, wrapper):
    """As wrappers of training programs leave it."""
    weights, case = drawn("vit"), CASES["vit"]
    found = loaded(tmp_path, {wrapper + key: value for key, value in weights.items()}, case.ours, 64)
    jax.tree.map(np.testing.assert_array_equal, found, loaded(tmp_path, weights, case.ours, 64))
    some = {(wrapper if "blocks" in key else "") + key: value for key, value in weights.items()}
    with pytest.raises(UserError, match="keys without a place"):
        loaded(tmp_path, some, case.ours, 64)


def test_biases_that_are_not_zero_are_not_left_out(tmp_path):
    weights = of_dinov3s_authors(drawn("dinov3"))
    weights["blocks.1.attn.qkv.bias"][0] = 0.5
    with pytest.raises(UserError, match=r"keys without a place: blocks.1.attn.qkv.bias$"):
        loaded(tmp_path, weights, CASES["dinov3"].ours, 64)


# --- Sizes, ends, and back. ---


@pytest.mark.parametrize("name", ["vit", "dinov2_reg4"])
def test_position_embeddings_of_another_grid_are_resized(name, tmp_path):
    """A network made for other images from the start says what one does whose embeddings are resized at each look."""
    weights, case = drawn(name), CASES[name]
    own, size = case.sizes[0][0], 2 * case.sizes[0][0]
    image = draw_image((size, size))
    resized = loaded(tmp_path, weights, case.ours, size)
    as_they_are = loaded(tmp_path, weights, case.ours, own)
    assert resized["params"]["pos_embed"].shape != as_they_are["params"]["pos_embed"].shape
    found, _ = looks(case.ours, resized, image)
    wanted, _ = looks(case.ours, as_they_are, image)
    assert_close(found, wanted)


def test_another_network_s_position_embeddings_are_refused(tmp_path):
    weights = drawn("dinov2_reg4")
    weights["pos_embed"] = weights["pos_embed"][:, :11]
    with pytest.raises(
        UserError, match=r"shapes that differ: pos_embed \(1, 11, 48\) for params/pos_embed \(1, 16, 48\)"
    ):
        loaded(tmp_path, weights, CASES["dinov2_reg4"].ours, 56)


def test_blocks_after_the_features_are_left_out(tmp_path):
    weights, case = drawn("inception_v3"), CASES["inception_v3_6e"]
    assert any(key.startswith("Mixed_7c.") for key in weights)
    variables = loaded(tmp_path, weights, case.ours, 96)
    assert "Mixed_7a" not in variables["params"] and "Mixed_6e" in variables["params"]
    del weights["Mixed_6e.branch1x1.conv.weight"]
    with pytest.raises(UserError, match="variables without a key: params/Mixed_6e/branch1x1/conv/kernel$"):
        loaded(tmp_path, weights, case.ours, 96)


@pytest.mark.parametrize("name", ["dinov2_reg4", "convnextv2", "dinov3"])
def test_what_is_saved_is_loaded(name, tmp_path):
    case, size = CASES[name], CASES[name].sizes[0][0]
    variables = loaded(tmp_path, drawn(name), case.ours, size)
    save_weights(tmp_path / "saved.safetensors", {"backbone": variables["params"]}, {"coarse": {}, "fine": {}})
    again = load_pretrained(str(tmp_path / "saved.safetensors"), name, abstract_variables(case.ours, (size, size)))
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert jnp.asarray(jax.tree.leaves(again)[0]).dtype == jnp.float32
