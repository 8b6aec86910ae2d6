"""Makes `backbone_goldens.npz`: what timm's models say of two images, with weights anybody can draw again.

    pip install torch torchvision timm transformers && python -m tests.models.make_backbone_goldens

The networks are timm's own classes with fewer and narrower blocks. Stored are the names and shapes of each state dict,
and for each image size every so many-th number of the feature maps and of the logits. Weights are drawn by their name
(`make_resnet50_golden.draw_weights`), so a weight in the wrong place is another weight. `FOREIGN` are the same networks
as torchvision and transformers have them, by the names that their files of weights have.
"""

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from c2f_jax.models.convnext import ConvNeXt
from c2f_jax.models.efficientnet_lite import EfficientNetLite
from c2f_jax.models.inception import InceptionV3
from c2f_jax.models.resnet import Bottleneck, ResNet
from c2f_jax.models.vit import VisionTransformer
from tests.models.make_resnet50_golden import draw_weights

GOLDENS = Path(__file__).with_name("backbone_goldens.npz")
KEPT = 128  # numbers of a feature map
CLASSES = 10


class Case(NamedTuple):
    """A network: `ours` (module), `theirs` (timm's name), `settings` of theirs, and the sizes of its two images.

    Attributes:
        ours: a backbone of ours.
        theirs: timm's name of it.
        settings: what makes theirs as small as ours.
        sizes: (height, width); the first is what position embeddings are made for.
        logits: how a classifier is put on: "mean", "mean_norm" (layer norm after the mean) or "token".
        change: what is done to theirs, by name: "last" at stride 1, features "Mixed_6e".
    """

    ours: object
    theirs: str
    settings: dict
    sizes: tuple
    logits: str
    change: str = ""


SMALL_VIT = {"width": 48, "depth": 2, "heads": 3}
SMALL_TIMM_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "dynamic_img_size": True, "global_pool": "token"}
SMALL_CONVNEXT = {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
SMALL_TIMM_CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
CONV, GRID16, GRID14 = ((64, 64), (77, 53)), ((64, 64), (48, 96)), ((56, 56), (28, 70))

vit = functools.partial(VisionTransformer, **SMALL_VIT)
CASES = {
    "efficientnet_lite2": Case(EfficientNetLite(1.1, 1.2), "tf_efficientnet_lite2", {}, CONV, "mean"),
    "resnext": Case(
        ResNet(Bottleneck, (1, 1, 2, 1), widths=(16, 32, 48, 64), groups=32, width_per_group=4),
        "resnext50_32x4d",
        {"layers": (1, 1, 2, 1), "channels": (16, 32, 48, 64)},
        CONV,
        "mean",
    ),
    "inception_v3": Case(InceptionV3(), "inception_v3", {}, ((96, 96), (107, 75)), "mean"),
    "inception_v3_6e": Case(InceptionV3("Mixed_6e"), "inception_v3", {}, ((107, 75),), "", "Mixed_6e"),
    "convnext": Case(ConvNeXt(**SMALL_CONVNEXT), "convnext_tiny", SMALL_TIMM_CONVNEXT, CONV, "mean_norm"),
    "convnext_16": Case(
        ConvNeXt(**SMALL_CONVNEXT, output_stride=16),
        "convnext_tiny",
        SMALL_TIMM_CONVNEXT,
        CONV[1:],
        "mean_norm",
        "last",
    ),
    "convnextv2": Case(
        ConvNeXt(**SMALL_CONVNEXT, version=2), "convnextv2_tiny", SMALL_TIMM_CONVNEXT, CONV, "mean_norm"
    ),
    "vit": Case(vit(patch=16), "vit_small_patch16_224", {**SMALL_TIMM_VIT, "img_size": 64}, GRID16, "token"),
    "dinov2": Case(
        vit(patch=14, layer_scale=1e-5),
        "vit_small_patch14_dinov2",
        {**SMALL_TIMM_VIT, "img_size": 56},
        GRID14,
        "token",
    ),
    "dinov2_reg4": Case(
        vit(patch=14, layer_scale=1e-5, registers=4, positions="patches"),
        "vit_small_patch14_reg4_dinov2",
        {**SMALL_TIMM_VIT, "img_size": 56},
        GRID14,
        "token",
    ),
    "dinov3": Case(
        vit(patch=16, layer_scale=1e-5, registers=4, positions="rotary", qkv_bias=False, epsilon=1e-5),
        "vit_small_patch16_dinov3",
        {**SMALL_TIMM_VIT, "img_size": 64},
        GRID16,
        "token",
    ),
    "clip": Case(
        vit(patch=16, pre_norm=True, epsilon=1e-5),
        "vit_base_patch16_clip_224",
        {**SMALL_TIMM_VIT, "img_size": 64},
        GRID16,
        "token",
    ),
    "clip_quickgelu": Case(
        vit(patch=16, pre_norm=True, epsilon=1e-5, quick_gelu=True),
        "vit_base_patch16_clip_quickgelu_224",
        {**SMALL_TIMM_VIT, "img_size": 64},
        GRID16,
        "token",
    ),
}


TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
TINY_TRANSFORMER = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
# Name -> (ours, the side of an image).
FOREIGN = {
    "torchvision_convnext": (ConvNeXt(**SMALL_CONVNEXT), 64),
    "torchvision_vit": (vit(patch=16), 64),
    "transformers_convnext": (ConvNeXt(**SMALL_CONVNEXT), 64),
    "transformers_convnextv2": (ConvNeXt(**SMALL_CONVNEXT, version=2), 64),
    "transformers_vit": (vit(patch=16, epsilon=1e-12), 64),
    "transformers_dinov2": (vit(patch=14, layer_scale=1.0), 56),
    "transformers_dinov2_reg4": (vit(patch=14, layer_scale=1.0, registers=4, positions="patches"), 56),
    "transformers_dinov3": (
        vit(patch=16, layer_scale=1.0, registers=4, positions="rotary", qkv_bias=False, epsilon=1e-5),
        64,
    ),
}


def draw_image(size):
    """One normalised image [1, height, width, 3]."""
    return np.random.default_rng(size).standard_normal((1, *size, 3), np.float32)


def sample(values):
    """Every so many-th number of an array, about `KEPT` of them."""
    flat = np.asarray(values).reshape(-1)
    return flat[:: max(1, flat.size // KEPT)]


def timm_model(case):
    """timm's model with its drawn weights, ready to evaluate, and the shapes of its state dict."""
    import timm
    import torch

    model = timm.create_model(case.theirs, num_classes=CLASSES, **case.settings)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in draw_weights(shapes).items()})
    if case.change == "last":
        down = model.stages[-1].downsample
        down[1].stride = (1, 1)
        down[1].register_forward_pre_hook(lambda _, inputs: torch.nn.functional.pad(inputs[0], (0, 1, 0, 1)))
    return model.eval(), shapes


def evaluate(model, case, image):
    """(feature maps [1, h, w, N], logits [1, classes]) of an image [1, H, W, 3]."""
    import torch

    x = torch.from_numpy(image).permute(0, 3, 1, 2)
    with torch.inference_mode():
        if case.change == "Mixed_6e":
            features = model.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
            return features.permute(0, 2, 3, 1).numpy(), None
        features = model.forward_features(x)
        logits = model.forward_head(features).numpy()
    if features.ndim == 4:
        return features.permute(0, 2, 3, 1).numpy(), logits
    patch = case.ours.patch
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    return features[:, model.num_prefix_tokens :].reshape(1, *grid, -1).numpy(), logits


def foreign_model(name):
    """(torchvision's or transformers' model with its drawn weights, these by the names of its file of weights)."""
    import torch
    import torchvision
    import transformers

    if name.startswith("torchvision"):
        if name.endswith("convnext"):
            from torchvision.models.convnext import CNBlockConfig

            widths = (*SMALL_CONVNEXT["widths"], None)
            blocks = [CNBlockConfig(widths[i], widths[i + 1], 1) for i in range(4)]
            model = torchvision.models.ConvNeXt(blocks)
        else:
            model = torchvision.models.VisionTransformer(64, 16, 2, 3, 48, 192, num_classes=CLASSES)
        weights = draw_weights({name: value.shape for name, value in model.state_dict().items()})
        model.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in weights.items()})
        return model.eval(), weights
    kinds = {
        "convnext": ("ConvNextConfig", "ConvNextForImageClassification", TINY_CONVNEXT),
        "convnextv2": ("ConvNextV2Config", "ConvNextV2ForImageClassification", TINY_CONVNEXT),
        "vit": ("ViTConfig", "ViTModel", {"image_size": 64, "patch_size": 16, "intermediate_size": 192}),
        "dinov2": ("Dinov2Config", "Dinov2Model", {"image_size": 56, "patch_size": 14}),
        "dinov2_reg4": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"image_size": 56, "patch_size": 14}),
        "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {"image_size": 64, "intermediate_size": 192}),
    }
    config, kind, settings = kinds[name.removeprefix("transformers_")]
    settings = settings if "convnext" in name else {**TINY_TRANSFORMER, **settings}
    if name.endswith("dinov3"):
        settings |= {"num_register_tokens": 4}
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        weights = draw_weights({key: value.shape for key, value in load_file(file).items()})
        # Published biases of DINOv3's queries and values are zero.
        zero = name.endswith("dinov3")
        weights |= {k: 0 * v for k, v in weights.items() if zero and re.search(r"[qv]_proj\.bias", k)}
        save_file(weights, file, metadata={"format": "pt"})
        return getattr(transformers, kind).from_pretrained(folder).eval(), weights


def foreign_features(name, model, image):
    """Feature maps [1, h, w, N] of an image [1, H, W, 3]."""
    import torch

    ours, x = FOREIGN[name][0], torch.from_numpy(image).permute(0, 3, 1, 2)
    with torch.inference_mode():
        if "convnext" in name:
            if name.startswith("torchvision"):
                features = model.features(x)
            else:
                trunk = getattr(model, name.removeprefix("transformers_"))
                features = trunk(x).last_hidden_state
            return features.permute(0, 2, 3, 1).numpy()
        if name.startswith("torchvision"):
            tokens = model._process_input(x)
            tokens = model.encoder(torch.cat([model.class_token, tokens], dim=1))
        else:
            tokens = model(pixel_values=x).last_hidden_state
    side = image.shape[1] // ours.patch
    return tokens[:, 1 + ours.registers :].reshape(1, side, side, -1).numpy()


def main():
    arrays = {}
    for name, case in CASES.items():
        model, shapes = timm_model(case)
        arrays[f"{name}/shapes"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
        for number, size in enumerate(case.sizes):
            features, logits = evaluate(model, case, draw_image(size))
            said = "" if logits is None else f", logits to {np.abs(logits).max():.3g}"
            print(f"{name} {size}: {features.shape}, features to {np.abs(features).max():.3g}{said}")
            arrays[f"{name}/features_{number}"] = sample(features)
            arrays[f"{name}/shape_{number}"] = np.array(features.shape)
            if logits is not None:
                arrays[f"{name}/logits_{number}"] = logits[0]
    for name, (_, side) in FOREIGN.items():
        model, weights = foreign_model(name)
        features = foreign_features(name, model, draw_image((side, side)))
        print(f"{name}: {features.shape}, features to {np.abs(features).max():.3g}")
        arrays[f"{name}/shapes"] = np.frombuffer(
            json.dumps({key: list(value.shape) for key, value in weights.items()}).encode(), np.uint8
        )
        arrays[f"{name}/features"] = sample(features)
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == "__main__":
    main()
