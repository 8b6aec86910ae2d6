"""Writes `peer_goldens.npz`: what other people's crops and boxes make of the inputs below.

python -m tests.kernels.make_peer_goldens     # needs torchvision and kornia, or tensorflow: adds what is installed

The goldens in the repository: torchvision 0.29.1, kornia 0.9.0, tensorflow 2.21.0.
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("peer_goldens.npz")
ROI_ALIGN = {
    "plain": {"output_size": (3, 4), "spatial_scale": 0.3, "sampling_ratio": 2, "aligned": True},
    "older": {"output_size": (2, 2), "spatial_scale": 0.25, "sampling_ratio": 3, "aligned": False},
    "one sample": {"output_size": (5, 1), "spatial_scale": 0.5, "sampling_ratio": 1, "aligned": True},
}
CORNER_SIZES = [(3, 4), (1, 5), (7, 6)]


def features() -> np.ndarray:
    """[3, 9, 11, 2]."""
    return np.random.default_rng(21).standard_normal((3, 9, 11, 2)).astype(np.float32)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Boxes [8, 4] and [8, 4] in pixels: that meet, lie in each other or apart."""
    corners = np.sort(np.random.default_rng(22).uniform(-8, 45, (12, 2, 2)), axis=1).reshape(12, 4).astype(np.float32)
    return corners[:8], corners[1:9]


def corner_boxes() -> np.ndarray:
    """[3, 4]: fractions of (size - 1), inside the image."""
    return np.array([[0.0, 0.0, 1.0, 1.0], [0.13, 0.21, 0.77, 0.94], [0.4, 0.1, 0.5, 0.9]], np.float32)


def torchvision_goldens() -> dict[str, np.ndarray]:
    import torch
    import torchvision

    a, b = (torch.tensor(boxes) for boxes in pairs())
    maps, boxes = torch.tensor(features()).permute(0, 3, 1, 2).double(), torch.tensor(a.numpy()).double()
    indices = torch.arange(len(boxes)).double()[:, None] % len(maps)
    aligned = {
        f"roi_align/{case}": torchvision.ops.roi_align(maps, torch.cat([indices, boxes], 1), **settings)
        .permute(0, 2, 3, 1)
        .numpy()
        for case, settings in ROI_ALIGN.items()
    }
    return aligned | {
        "box_iou": torchvision.ops.box_iou(a, b).numpy(),
        "giou_loss": torchvision.ops.generalized_box_iou_loss(a, b).numpy(),
    }


def kornia_goldens() -> dict[str, np.ndarray]:
    import kornia
    import torch

    scale = np.array([8, 10, 8, 10], np.float32)  # size - 1
    found, images = {}, torch.tensor(features()).permute(0, 3, 1, 2)
    ymin, xmin, ymax, xmax = torch.tensor(corner_boxes() * scale).unbind(-1)
    corners = torch.stack([xmin, ymin, xmax, ymin, xmax, ymax, xmin, ymax], -1).reshape(-1, 4, 2)
    for size in CORNER_SIZES:
        if min(size) > 1:
            out = kornia.geometry.transform.crop_and_resize(images, corners, size)
            found[f"kornia/{size}"] = out.permute(0, 2, 3, 1).numpy()
    return found


def tensorflow_goldens() -> dict[str, np.ndarray]:
    import tensorflow as tf

    return {
        f"tensorflow/{size}": tf.image.crop_and_resize(features(), corner_boxes(), [0, 1, 2], size).numpy()
        for size in CORNER_SIZES
    }


if __name__ == "__main__":
    goldens = dict(np.load(PATH)) if PATH.exists() else {}
    for make in (torchvision_goldens, kornia_goldens, tensorflow_goldens):
        try:
            goldens |= make()
        except ImportError as error:
            print(f"{make.__name__}: {error}")
    np.savez_compressed(PATH, **goldens)
    print(f"{PATH.name}: {len(goldens)} arrays, {PATH.stat().st_size} bytes")
