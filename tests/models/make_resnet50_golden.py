"""Makes `resnet50_golden.npz`: what torchvision's ResNet-50 says of two images, with weights anybody can draw again.

    pip install torch torchvision && python -m tests.models.make_resnet50_golden

Stored are the names and shapes of the model's state dict, and for each image size the logits and two pixels of the
last feature map. Weights are drawn by their name, so a weight in the wrong place is another weight.
"""

import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("resnet50_golden.npz")
SIZES = (224, 197)


def draw_weights(shapes):
    """Weights of a state dict from its names and shapes: float32, and signals neither die nor explode."""
    return {name: _draw(name, tuple(shape)) for name, shape in shapes.items()}


def _draw(name, shape):
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) == 3:  # tokens and position embeddings
        return noise
    if len(shape) > 1:
        return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if name.endswith("running_var"):
        return 1 + 0.2 * np.abs(noise)
    if name.endswith("weight"):
        # The last norm of a block is added to its shortcut: sixteen of those at full size would be too much.
        return (0.3 if "bn3" in name else 1) * (1 + 0.2 * noise)
    return 0.1 * noise


def draw_image(size):
    """One normalised image [1, size, size, 3]."""
    return np.random.default_rng(size).standard_normal((1, size, size, 3), np.float32)


def corners(feature_maps):
    """First and last pixel of a feature map [1, h, w, N] -> [2, N]."""
    return np.stack([feature_maps[0, 0, 0], feature_maps[0, -1, -1]])


def torchvision_resnet50():
    """torchvision's model with its drawn weights, ready to evaluate."""
    import torch
    import torchvision

    model = torchvision.models.resnet50(weights=None)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in draw_weights(shapes).items()})
    return model.eval(), shapes


def evaluate(model, image):
    """(feature maps [1, h, w, N], logits [1, 1000]) of an image [1, H, W, 3]."""
    import torch

    seen = []
    hook = model.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        logits = model(torch.from_numpy(image).permute(0, 3, 1, 2))
    hook.remove()
    return seen[0].permute(0, 2, 3, 1).numpy(), logits.numpy()


def main():
    model, shapes = torchvision_resnet50()
    arrays = {"shapes": np.frombuffer(json.dumps(shapes).encode(), np.uint8)}
    for size in SIZES:
        feature_maps, logits = evaluate(model, draw_image(size))
        print(
            size, feature_maps.shape, f"features up to {feature_maps.max():.3g}, logits to {np.abs(logits).max():.3g}"
        )
        arrays[f"logits_{size}"] = logits[0]
        arrays[f"corners_{size}"] = corners(feature_maps)[:, ::8]
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
