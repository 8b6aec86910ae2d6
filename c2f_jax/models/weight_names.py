"""Names of published weights: what torchvision, transformers and the authors call them, in timm's words.

timm's names are those of our modules (`pretrained`). Each other way to name them is a table of regular expressions,
known by a key that only it has.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]


class _Dialect(NamedTuple):
    """`marker`: a key (regular expression) that says that it is this one. `rules`: each takes what the one before it
    left; a key of which nothing is left has no use in a backbone.
    """

    marker: str
    rules: Sequence[tuple[str, str]]


_TORCHVISION_CONVNEXT = _Dialect(
    r"features\.1\.0\.block\.0\.weight",
    (
        (r"features\.0\.(\d)\.", r"stem.\1."),
        *((rf"features\.{2 * stage}\.(\d)\.", rf"stages.{stage}.downsample.\1.") for stage in (1, 2, 3)),
        *((rf"features\.{2 * stage + 1}\.(\d+)\.", rf"stages.{stage}.blocks.\1.") for stage in range(4)),
        *((rf"\.block\.{number}\.", f".{name}.") for number, name in ((0, "conv_dw"), (2, "norm"))),
        *((rf"\.block\.{number}\.", f".mlp.{name}.") for number, name in ((3, "fc1"), (5, "fc2"))),
        (r"\.layer_scale$", r".gamma"),
    ),
)
_TORCHVISION_VIT = _Dialect(
    r"encoder\.layers\.encoder_layer_0\.ln_1\.weight",
    (
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
        (r"^encoder\.ln\.", "norm."),
    ),
)
_AUTHORS_CONVNEXT = _Dialect(
    r"downsample_layers\.0\.0\.weight",
    (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        (r"\.grn\.gamma$", ".mlp.grn.weight"),
        (r"\.grn\.beta$", ".mlp.grn.bias"),
        (r"^norms?\..*", ""),  # the classifier's; DINOv3's, of each stage
    ),
)
_AUTHORS_VIT = _Dialect(  # DINOv2, DINOv3
    r"mask_token",
    (
        (r"^mask_token$", ""),
        (r"^(?:register|storage)_tokens$", "reg_token"),
        (r"^rope_embed\.periods$", ""),
    ),
)
_TIMM_DINOV3 = _Dialect(r"blocks\.0\.gamma_1", ((r"\.gamma_(\d)$", r".ls\1.gamma"),))
_TRANSFORMERS_VIT = _Dialect(  # ViT, DINOv2, DINOv3
    r"(?:\w+\.)?embeddings\.patch_embeddings\.(?:projection\.)?weight|embeddings\.cls_token",
    (
        (r"^(?:vit|dinov2|dinov2_with_registers|dinov3_vit|model)\.", ""),
        (r"^embeddings\.mask_token$", ""),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
        (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.", r".attn.\1."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.|\.mlp\.up_proj\.", ".mlp.fc1."),
        (r"\.output\.dense\.|\.mlp\.down_proj\.", ".mlp.fc2."),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"^layernorm\.", "norm."),
    ),
)
_TRANSFORMERS_CONVNEXT = _Dialect(
    r"(?:convnext(?:v2)?\.)?encoder\.stages\.0\.layers\.0\.dwconv\.weight",
    (
        (r"^convnext(?:v2)?\.", ""),
        (r"^embeddings\.patch_embeddings\.", "stem.0."),
        (r"^embeddings\.layernorm\.", "stem.1."),
        (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        (r"\.grn\.", ".mlp.grn."),
        (r"\.layernorm\.", ".norm."),
        (r"\.layer_scale_parameter$", ".gamma"),
        (r"^layernorm\..*", ""),  # the classifier's
    ),
)
_TRANSFORMERS_CLIP = _Dialect(
    r"(?:vision_model\.)?pre_layrnorm\.weight",
    (
        (r"^(?:text_model|text_projection|visual_projection)\..*|^logit_scale$|^.*\.position_ids$", ""),
        (r"^vision_model\.", ""),
        (r"^embeddings\.class_embedding$", "cls_token"),
        (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^post_layernorm\.", "norm."),
        (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
        (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
        (r"\.self_attn\.out_proj\.", ".attn.proj."),
        (r"\.layer_norm(\d)\.", r".norm\1."),
    ),
)
_AUTHORS_CLIP = _Dialect(  # OpenAI, OpenCLIP
    r"visual\.class_embedding",
    (
        (r"^(?!visual\.).*|^visual\.proj$", ""),
        (r"^visual\.class_embedding$", "cls_token"),
        (r"^visual\.positional_embedding$", "pos_embed"),
        (r"^visual\.conv1\.", "patch_embed.proj."),
        (r"^visual\.ln_pre\.", "norm_pre."),
        (r"^visual\.ln_post\.", "norm."),
        (r"^visual\.transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
        (r"\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ),
)
_DIALECTS = (
    *(_TORCHVISION_CONVNEXT, _TORCHVISION_VIT, _AUTHORS_CONVNEXT, _AUTHORS_VIT, _AUTHORS_CLIP, _TIMM_DINOV3),
    *(_TRANSFORMERS_CONVNEXT, _TRANSFORMERS_VIT, _TRANSFORMERS_CLIP),
)
# What training programs put before all names of a model that they wrap.
_WRAPPERS = re.compile(r"(?:_orig_mod|module|model|backbone|net)\.")


def in_timms_words(weights: Weights) -> Weights:
    """The same weights under timm's names, where they have others; and in timm's shapes.

    Queries, keys and values of their own become one matrix; a class token and its position embedding become one, where
    register tokens stand between it and the patches. What no name is known for keeps the one that it has.
    """
    while (wrapper := _wrapper(weights)) is not None:
        weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    for dialect in _DIALECTS:
        if any(re.fullmatch(dialect.marker, key) for key in weights):
            weights = {_renamed(key, dialect.rules): value for key, value in weights.items()}
            weights.pop("", None)
    weights = _with_one_qkv(_without_masked_biases(weights))
    weights = {key: value.reshape(-1) if _is_flat(key) else value for key, value in weights.items()}
    if "cls_token" in weights:  # CLIP's authors have it, and positions, without the sides of 1
        weights["cls_token"] = weights["cls_token"].reshape(1, 1, -1)
    places = weights.get("pos_embed")
    if places is not None and places.ndim == 2:
        places = weights["pos_embed"] = places[None]
    if places is not None and "reg_token" in weights and "cls_token" in weights and _is_square(places.shape[1] - 1):
        weights["cls_token"] = weights["cls_token"] + places[:, :1]
        weights["pos_embed"] = places[:, 1:]
    return weights


def _wrapper(weights: Weights) -> str | None:
    """The word before all of the names, if it is one of `_WRAPPERS`."""
    found = _WRAPPERS.match(next(iter(weights), ""))
    return found[0] if found and all(key.startswith(found[0]) for key in weights) else None


def _renamed(key: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _is_flat(key: str) -> bool:
    """Whether timm has it as one number per channel where others have sides of 1 beside them."""
    return key.endswith((".gamma", ".grn.weight", ".grn.bias"))


def _is_square(number: int) -> bool:
    return round(number**0.5) ** 2 == number


def _without_masked_biases(weights: Weights) -> Weights:
    """DINOv3's authors' keys have biases that a mask takes away."""
    found = dict(weights)
    for key in weights:
        if key.endswith(".qkv.bias_mask"):
            mask, bias = found.pop(key), key.removesuffix("_mask")
            found[bias] = np.where(mask == 1, found[bias], 0)
    return found


def _with_one_qkv(weights: Weights) -> Weights:
    """One matrix of queries, keys and values where there are all three; what is not whole stays, and has no place."""
    found = dict(weights)
    for key in weights:
        match = re.fullmatch(r"(blocks\.\d+\.attn)\.q\.(weight|bias)", key)
        if match is None or match.expand(r"\1.qkv.\2") in weights:
            continue
        block, leaf = match.groups()
        parts = {part: weights.get(f"{block}.{part}.{leaf}") for part in "qkv"}
        if leaf == "bias" and parts["k"] is None:  # DINOv3's keys have none
            parts["k"] = np.zeros_like(weights[key])
        whole = [part for part in parts.values() if part is not None]
        if len(whole) == len(parts):
            for part in parts:
                found.pop(f"{block}.{part}.{leaf}", None)
            found[f"{block}.qkv.{leaf}"] = np.concatenate(whole)
    return found
