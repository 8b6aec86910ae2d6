"""Writes `crop_goldens.npz`: what PyTorch's grid_sample and jax.image.scale_and_translate make of a few crops.

python -m tests.kernels.make_crop_goldens        # needs torch; the goldens in the repository: torch 2.13.0, jax 0.10.2

Per case: `<name>/values` [B, h, w, C], and for torch the gradients of sum(values * cotangent) in the image
(`<name>/image_gradient`) and in the boxes (`<name>/box_gradient`), all float64.
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("crop_goldens.npz")
TORCH_PADDINGS = {"edge": "border", "constant": "zeros", "symmetric": "reflection"}
SIZES = {"smaller": (3, 4), "taller": (9, 7)}


def image() -> np.ndarray:
    """[5, 7, 2] float64."""
    return np.random.default_rng(11).uniform(size=(5, 7, 2))


def boxes() -> np.ndarray:
    """[5, 4]: inside, mirrored, partly outside, tiny, outside; no sample on a pixel's centre."""
    return np.array(
        [
            [0.127, 0.311, 0.773, 0.831],
            [0.913, 0.853, 0.157, 0.233],
            [-0.413, 0.517, 0.597, 1.337],
            [0.437, 0.613, 0.4371, 0.6132],
            [1.313, 0.207, 1.911, 0.611],
        ]
    )


def cotangent(size: tuple[int, int]) -> np.ndarray:
    """[5, h, w, 2]."""
    return np.random.default_rng(12).standard_normal((len(boxes()), *size, 2))


def torch_goldens() -> dict[str, np.ndarray]:
    """From grid_sample on the grid of affine_grid."""
    import torch

    found = {}
    for size_name, (height, width) in SIZES.items():
        for padding, mode in TORCH_PADDINGS.items():
            pixels = torch.tensor(image(), requires_grad=True)
            places = torch.tensor(boxes(), requires_grad=True)
            ymin, xmin, ymax, xmax = places.unbind(-1)
            zero = torch.zeros_like(ymin)
            rows = [xmax - xmin, zero, xmin + xmax - 1.0, zero, ymax - ymin, ymin + ymax - 1.0]
            theta = torch.stack(rows, -1).reshape(-1, 2, 3)
            shape = (len(places), 2, height, width)
            grid = torch.nn.functional.affine_grid(theta, shape, align_corners=False)
            batch = pixels.permute(2, 0, 1).expand(len(places), -1, -1, -1)
            crops = torch.nn.functional.grid_sample(batch, grid, padding_mode=mode, align_corners=False)
            crops = crops.permute(0, 2, 3, 1)
            (crops * torch.tensor(cotangent((height, width)))).sum().backward()
            name = f"grid_sample/{padding}/{size_name}"
            found[f"{name}/values"] = crops.detach().numpy()
            found[f"{name}/image_gradient"] = pixels.grad.numpy()
            found[f"{name}/box_gradient"] = places.grad.numpy()
    return found


def jax_goldens() -> dict[str, np.ndarray]:
    """From scale_and_translate, for the two boxes inside the image that are not mirrored."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    found = {}
    for size_name, size in SIZES.items():
        for antialias in (False, True):
            crops = []
            for box in boxes()[[0, 3]]:
                scale = jnp.array(size) / ((box[2:] - box[:2]) * jnp.array(image().shape[:2]))
                translation = -box[:2] * jnp.array(image().shape[:2]) * scale
                crops.append(
                    jax.image.scale_and_translate(
                        jnp.array(image()), (*size, 2), (0, 1), scale, translation, "bilinear", antialias=antialias
                    )
                )
            found[f"scale_and_translate/{'antialias' if antialias else 'plain'}/{size_name}/values"] = np.stack(crops)
    return found


if __name__ == "__main__":
    np.savez_compressed(PATH, **torch_goldens(), **jax_goldens())
    print(f"{PATH}: {PATH.stat().st_size} bytes")
