"""Published weights, in PyTorch's layout, as variables of a backbone, and back.

A file of weights is a flat dictionary of arrays in the safetensors format. Modules are named after timm's keys, which
for ResNet and Inception are torchvision's, too; `weight_names` knows other names.
"""

import json
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from c2f_jax import storage
from c2f_jax.errors import UserError
from c2f_jax.models.published import Values, values_of, values_of_all
from c2f_jax.models.vit import resize_positions
from c2f_jax.models.weight_names import in_timms_words

OURS = "c2f"  # before the keys of what no published backbone has, in files of `save_weights`
# What a file may hold beyond the backbone: its classifier, PyTorch's count of batches, which no rule here needs; ours.
WEIGHTS = "model.safetensors"
KEYS = ("mean", "std")
_CLASSIFIER = r"(classifier|fc|heads?|head_dist|pre_logits|pooler|AuxLogits)\..*"
_LEFT_OVER = re.compile(rf"{_CLASSIFIER}|.*\.num_batches_tracked|{OURS}\..*")
# Modules after the one whose features are taken, where they are not made.
_BEYOND = ("Mixed_7a", "Mixed_7b", "Mixed_7c")
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# Modules that PyTorch keeps in lists: `blocks_0_1` is its `blocks.0.1`.
_LISTS = re.compile(r"^(layer\d|blocks|stages|stem|downsample)(_\d+)+$")
_RENAMED = {
    **{"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"},
    "patch_embed_proj": "patch_embed.proj",
}
_LISTED = 8


def load_pretrained(source: str, backbone_name: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The backbone's variables with every value taken from a file of published weights.

    Left out are the file's classifier (`classifier.*`, `fc.*`, `head.*`, ...), `num_batches_tracked`, modules after the
    features that the backbone ends with, biases of queries, keys and values that are all zero where the backbone has
    none, and what `save_weights` put beside a backbone (`c2f.*`); everything else must fit. Position embeddings of
    another grid are resized.

    Args:
        source: path of a `.safetensors` file, or a model of the Hugging Face hub, see `read_weights`.
        backbone_name: key of `BACKBONES`, for messages.
        variables: {"params": ..., "batch_stats": ...} of the backbone itself: arrays, or `jax.ShapeDtypeStruct`.

    Returns:
        Variables of the same structure, shapes and dtypes.

    Raises:
        UserError: if the source cannot be read, or where keys of the file have no place in the backbone, variables
            have no key, or shapes differ; one message names all three.
    """
    weights = in_timms_words(read_weights(source))
    flat = traverse_util.flatten_dict(variables)
    path_of = {_torch_key(path): path for path in flat}
    modules = {path[1] for path in flat}
    unplaced = [key for key, value in weights.items() if key not in path_of and not _is_of_no_use(key, value, modules)]
    missing = ["/".join(path) for key, path in path_of.items() if key not in weights]
    misshaped = []
    loaded = {}
    for key, path in path_of.items():
        if key not in weights:
            continue
        value, leaf = weights[key], flat[path]
        if path[-1] == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T  # OIHW to HWIO
        if path[-1] == "pos_embed" and value.shape != leaf.shape:
            value = _resized(value, leaf.shape)
        if value.shape != leaf.shape:
            misshaped.append(f"{key} {weights[key].shape} for {'/'.join(path)} {leaf.shape}")
        else:
            loaded[path] = jnp.asarray(value, leaf.dtype)
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("keys without a place", unplaced),
            ("variables without a key", missing),
            ("shapes that differ", misshaped),
        )
        if names
    ]
    if problems:
        raise UserError(f"the weights {source} are not those of {backbone_name}; {'; '.join(problems)}")
    return traverse_util.unflatten_dict(loaded)


def input_values(source: str, backbone_name: str) -> Values | None:
    """What images the weights of `source` expect; None where nobody says.

    By the table of published weights, else by the `config.json` (timm's) or `preprocessor_config.json` (transformers')
    that lies beside them, else by what all published weights of the backbone have in common.
    """
    return values_of(source) or _values_beside(source) or values_of_all(backbone_name)


def _values_beside(source: str) -> Values | None:
    for name in ("config.json", "preprocessor_config.json"):
        try:
            path = _download(source, name) if source.startswith("hf://") else _as_path(source).with_name(name)
            said = json.loads(storage.read_text(path)) if storage.is_file(path) else {}
            said = {**said, **(said.get("pretrained_cfg") or {})}
            found = [tuple(round(255.0 * float(v), 3) for v in said.get(key) or said[f"image_{key}"]) for key in KEYS]
        except (UserError, OSError, ValueError, TypeError, AttributeError, KeyError):
            continue  # no such file, or one that says nothing of it
        mean, std = found
        if len(mean) == len(std) == 3 and all(
            0.0 <= m <= 255.0 and 0.0 < s <= 255.0 for m, s in zip(mean, std, strict=True)
        ):
            return Values((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
    return None


def save_weights(path: Path, params: dict[str, Any], batch_stats: dict[str, Any]) -> None:
    """All variables of a network as a safetensors file, which `load_pretrained` takes for its backbone.

    The backbone has its published names and PyTorch's layout, with the first look's batch statistics. All else is under
    `c2f.` and its path here, in the layout it has here: `c2f.params.head.kernel`, `c2f.batch_stats.fine.backbone...`.

    Args:
        path: of the file.
        params: of the network, {"backbone": ..., ...}.
        batch_stats: {"coarse": {"backbone": ..., ...}, "fine": ...} of it.
    """
    backbone = {"params": params["backbone"], "batch_stats": batch_stats["coarse"].get("backbone", {})}
    weights = {}
    for place, value in traverse_util.flatten_dict(backbone).items():
        value = np.asarray(value)
        if place[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T  # HWIO to OIHW
        weights[_torch_key(place)] = np.ascontiguousarray(value)
    everything = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
    for place, value in everything.items():
        if place[:2] != ("params", "backbone") and place[:3] != ("batch_stats", "coarse", "backbone"):
            weights[".".join((OURS, *place))] = np.ascontiguousarray(value)
    storage.write_bytes(path, save(weights))  # `save_file` would keep it from everybody but its owner


def read_weights(source: str) -> dict[str, np.ndarray]:
    """All arrays of a file of weights by their key, as they are in the file.

    Args:
        source: path of a `.safetensors` file; or `hf://owner/name` for `model.safetensors` of that model of the Hugging
            Face hub, at the moment's newest revision, or `hf://owner/name@revision` at a branch, tag or commit. Only a
            commit names the same weights forever. Downloads are kept in the hub's cache; with `HF_HUB_OFFLINE=1`
            nothing but that cache is used.

    Raises:
        UserError: if there is no such file or model, or the file is not in the safetensors format.
    """
    path = locate(source)
    try:
        return load(storage.read_bytes(path)) if storage.is_remote(path) else load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a dtype that NumPy lacks
        raise UserError(f"{path} cannot be read as safetensors of a NumPy dtype: {_one_line(error)}") from error


def locate(source: str) -> Path:
    """Where the file of `read_weights` lies, once it is here; raises UserError if there is none."""
    path = _download(source, WEIGHTS) if source.startswith("hf://") else _as_path(source)
    if not storage.is_file(path):
        raise UserError(f"there is no file of weights {path}; give the path of a .safetensors file or hf://owner/name")
    return path


def _as_path(source: str) -> Path:
    return storage.as_path("model.pretrained", source)


def _download(source: str, file: str) -> Path:
    """`hf://owner/name[@revision]` -> where that file of it lies in the cache."""
    match = re.fullmatch(r"hf://([^/@\s]+/[^/@\s]+)(?:@(\S+))?", source)
    if match is None:
        raise UserError(f"weights on the hub are named hf://owner/name or hf://owner/name@revision; got {source!r}")
    name, revision = match.groups()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry; we tell of the failure
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except Exception as error:  # the library's errors have no common base
        raise UserError(
            f"cannot fetch {source} ({type(error).__name__}: {_one_line(error)}); "
            f"download {WEIGHTS} of {name} by hand and give --config.model.pretrained=FILE"
        ) from error


def _is_of_no_use(key: str, value: np.ndarray, modules: set[str]) -> bool:
    """Whether a key without a place is one that may be left out. modules: the backbone's own, at the top."""
    if key.endswith(".attn.qkv.bias"):
        return not value.any()
    top = key.partition(".")[0]
    return bool(_LEFT_OVER.fullmatch(key)) or (top in _BEYOND and top not in modules)


def _resized(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Position embeddings [1, own + n * n, N] for a network that has them in another `shape`; as they are if neither is
    of a square grid, or they have another number of tokens of their own."""
    before, after = (_own_and_side(size[1]) for size in (places.shape, shape))
    if places.ndim != 3 or before is None or after is None or before[0] != after[0]:
        return places
    (own, _), (_, side) = before, after
    grid = resize_positions(jnp.asarray(places[:, own:], jnp.float32), (side, side))
    return np.concatenate([places[:, :own], np.asarray(grid)], axis=1)


def _own_and_side(tokens: int) -> tuple[int, int] | None:
    """(1 or 0 for the class token, side of the patches' grid) of so many position embeddings."""
    for own in (0, 1):
        side = math.isqrt(tokens - own)
        if side * side == tokens - own:
            return own, side
    return None


def _torch_key(path: tuple[str, ...]) -> str:
    """("params", "layer2_0", "downsample_bn", "scale") -> "layer2.0.downsample.1.weight"."""
    collection, *modules, leaf = path
    names = [_LISTS.sub(lambda found: found[0].replace("_", "."), module) for module in modules]
    names = [_RENAMED.get(name, name) for name in names]
    return ".".join([*names, _LEAVES.get((collection, leaf), leaf)])


def _some(names: Iterable[str]) -> str:
    """The first few in order, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - _LISTED
    return ", ".join(ordered[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
