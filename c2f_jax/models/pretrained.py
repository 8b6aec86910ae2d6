"""Published weights, in PyTorch's layout under torchvision's or timm's names, as variables of a backbone, and back.

A file of weights is a flat dictionary of arrays in the safetensors format. For ResNets torchvision's names and timm's
coincide; for EfficientNet-Lite they are timm's.
"""

import logging
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

OURS = "c2f"  # before the keys of what no published backbone has, in files of `save_weights`
# What a file may hold beyond the backbone: its classifier, PyTorch's count of batches, which no rule here needs; ours.
_LEFT_OVER = re.compile(rf"(classifier|fc)\.\w+|.*\.num_batches_tracked|{OURS}\..*")
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_LISTED = 8


def load_pretrained(source: str, backbone_name: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The backbone's variables with every value taken from a file of published weights.

    The file's classifier (`classifier.*`, `fc.*`), `num_batches_tracked` and what `save_weights` put beside a backbone
    (`c2f.*`) are left out; everything else must fit.

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
    weights = read_weights(source)
    flat = traverse_util.flatten_dict(variables)
    path_of = {_torch_key(path): path for path in flat}
    unplaced = [key for key in weights if key not in path_of and not _LEFT_OVER.fullmatch(key)]
    missing = ["/".join(path) for key, path in path_of.items() if key not in weights]
    misshaped = []
    loaded = {}
    for key, path in path_of.items():
        if key not in weights:
            continue
        value, leaf = weights[key], flat[path]
        if path[-1] == "kernel" and value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)  # OIHW to HWIO
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


def save_weights(path: Path, params: dict[str, Any], batch_stats: dict[str, Any]) -> None:
    """All variables of a network as a safetensors file, which `load_pretrained` takes for its backbone.

    The backbone has its published names and PyTorch's layout, with the first look's batch statistics. All else is under
    `c2f.` and its path here, in the layout it has here: `c2f.params.head.kernel`, `c2f.batch_stats.fine.backbone...`.

    Args:
        path: of the file.
        params: of the network, {"backbone": ..., ...}.
        batch_stats: {"coarse": {"backbone": ..., ...}, "fine": ...} of it.
    """
    backbone = {"params": params["backbone"], "batch_stats": batch_stats["coarse"]["backbone"]}
    weights = {}
    for place, value in traverse_util.flatten_dict(backbone).items():
        value = np.asarray(value)
        if place[-1] == "kernel" and value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)  # HWIO to OIHW
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
    path = _download(source) if source.startswith("hf://") else storage.as_path("model.pretrained", source)
    if not storage.is_file(path):
        raise UserError(f"there is no file of weights {path}; give the path of a .safetensors file or hf://owner/name")
    try:
        return load(storage.read_bytes(path)) if storage.is_remote(path) else load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a dtype that NumPy lacks
        raise UserError(f"{path} cannot be read as safetensors of a NumPy dtype: {_one_line(error)}") from error


def _download(source: str) -> Path:
    """`hf://owner/name[@revision]` -> where its model.safetensors lies in the cache."""
    match = re.fullmatch(r"hf://([^/@\s]+/[^/@\s]+)(?:@(\S+))?", source)
    if match is None:
        raise UserError(f"weights on the hub are named hf://owner/name or hf://owner/name@revision; got {source!r}")
    name, revision = match.groups()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry; we tell of the failure
    try:
        return Path(hf_hub_download(name, "model.safetensors", revision=revision))
    except Exception as error:  # the library's errors have no common base
        raise UserError(
            f"cannot fetch {source} ({type(error).__name__}: {_one_line(error)}); "
            f"download model.safetensors of {name} by hand and give --config.model.pretrained=FILE"
        ) from error


def _torch_key(path: tuple[str, ...]) -> str:
    """("params", "layer2_0", "downsample_bn", "scale") -> "layer2.0.downsample.1.weight"."""
    collection, *modules, leaf = path
    names = [re.sub(r"_(\d+)", r".\1", module) for module in modules]
    names = [{"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(name, name) for name in names]
    return ".".join([*names, _LEAVES[collection, leaf]])


def _some(names: Iterable[str]) -> str:
    """The first few in order, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - _LISTED
    return ", ".join(ordered[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
