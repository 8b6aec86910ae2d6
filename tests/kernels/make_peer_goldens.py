"""Writes `peer_goldens.npz`: what other people's crops make of the inputs below.

python -m tests.kernels.make_peer_goldens     # needs torchvision and kornia, or tensorflow: adds what is installed

The goldens in the repository: torchvision 0.29.1, kornia 0.9.0, tensorflow 2.21.0.
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("peer_goldens.npz")
ROI_CASES = [(aligned, ratio, size) for aligned in (True, False) for ratio in (1, 2, 3) for size in ((3, 3), (2, 4))]
CORNER_SIZES = [(3, 4), (1, 5), (7, 6)]


def features() -> np.ndarray:
    """[3, 9, 11, 2]."""
    return np.random.default_rng(21).standard_normal((3, 9, 11, 2)).astype(np.float32)


def rois() -> tuple[np.ndarray, np.ndarray]:
    """(boxes [12, 4] xyxy in pixels of 36 x 44, their images [12]): inside, beyond, a point, turned over."""
    rng = np.random.default_rng(22)
    corners = np.sort(rng.uniform(-8, 45, (12, 2, 2)), axis=1).reshape(12, 4)
    corners[9], corners[10], corners[11] = [8, 8, 8, 8], [0, 0, 44, 36], [30, 20, 10, 25]
    return corners.astype(np.float32), rng.integers(0, 3, 12).astype(np.int32)


def corner_boxes() -> np.ndarray:
    """[3, 4]: fractions of (size - 1), inside the image."""
    return np.array([[0.0, 0.0, 1.0, 1.0], [0.13, 0.21, 0.77, 0.94], [0.4, 0.1, 0.5, 0.9]], np.float32)


def torchvision_goldens() -> dict[str, np.ndarray]:
    import torch
    import torchvision

    boxes, indices = rois()
    rows = torch.tensor(np.concatenate([indices[:, None].astype(np.float32), boxes], axis=1))
    images, found = torch.tensor(features()).permute(0, 3, 1, 2), {}
    for aligned, ratio, size in ROI_CASES:
        out = torchvision.ops.roi_align(images, rows, size, 0.25, ratio, aligned)
        found[f"roi_align/{aligned}/{ratio}/{size}"] = out.permute(0, 2, 3, 1).numpy()
    a, b = torch.tensor(rois()[0][:8]), torch.tensor(rois()[0][1:9])
    found["box_iou"] = torchvision.ops.box_iou(a, b).numpy()
    found["giou_loss"] = torchvision.ops.generalized_box_iou_loss(a, b).numpy()
    return found


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
        f"tensorflow/{method}/{size}": tf.image.crop_and_resize(
            features(), corner_boxes(), [0, 1, 2], size, method=method
        ).numpy()
        for size in CORNER_SIZES
        for method in ("bilinear", "nearest")
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
