"""Where the fine view and the attention lie, against known boxes and parts.

Positions, distances and areas are fractions of the photo, whose axes are scaled each on its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from c2f_jax.evaluation.metrics import Sums, masked
from c2f_jax.kernels import area, contains, iou
from c2f_jax.models.two_looks import Look, central_boxes

HIT_RADIUS = 0.1  # of the root of the object's box area (ours)
IOU_LEVELS = (0.3, 0.5, 0.7)  # MaxBoxAccV2
THRESHOLDS = tuple(i / 20 for i in range(1, 20))  # shares of a map's maximum


def localization_sums(boxes: jax.Array, views: jax.Array, batch: dict[str, jax.Array]) -> Sums:
    """Metrics of the fine views' boxes, as (sum, count) pairs.

    Args:
        boxes: the fine views, [B, 4] in the photo's coordinates.
        views: the coarse ones that they lie in, likewise.
        batch: `mask` [B]; where known `box` [B, 4], and `parts` [B, P, 2] (y, x) with `part_visible` [B, P].

    Returns:
        Pairs under `box/mean_area` and `box/share_of_view`, of the image and of the coarse view; with boxes
        `box/mean_iou` and, to compare, `box/whole_image_iou` (what a box of the whole image would get), and
        `box/middle_inside`, the share of fine views that hold the middle of the object's box; with parts
        `box/parts_inside`, the share of visible parts inside the fine view.
    """
    mask = batch["mask"]
    sums = {
        "box/mean_area": masked(area(boxes), mask),
        "box/share_of_view": masked(area(boxes) / area(views), mask),
    }
    if "box" in batch:
        sums["box/mean_iou"] = masked(iou(boxes, batch["box"]), mask)
        whole = central_boxes(jnp.ones_like(boxes[:, :2]))
        sums["box/whole_image_iou"] = masked(iou(whole, batch["box"]), mask)
        middle = 0.5 * (batch["box"][:, None, :2] + batch["box"][:, None, 2:])
        sums["box/middle_inside"] = masked(contains(boxes, middle)[:, 0].astype(mask.dtype), mask)
    if "parts" in batch:
        inside = contains(boxes, batch["parts"]).astype(mask.dtype)
        sums["box/parts_inside"] = masked(inside, batch["part_visible"] * mask[:, None])
    return sums


def attention_sums(coarse: Look, batch: dict[str, jax.Array]) -> Sums:
    """Metrics of the coarse look's attention maps, as (sum, count) pairs.

    Args:
        coarse: a look whose outputs hold `attention_maps` [B, h, w, M].
        batch: as for `localization_sums`.

    Returns:
        Pairs under `attention/overlap`, the mean cosine between two maps of an image, over all pairs of maps that are
        not zero everywhere (left out for a single map); with boxes and parts `attention/part_hit`, the share of images
        with a visible part whose mean map has its peak near one: the middle of the peak's cell within `HIT_RADIUS`
        times the root of the object's box area.
    """
    maps, mask = coarse.out["attention_maps"].astype(jnp.float32), batch["mask"]
    sums = {}
    if maps.shape[-1] > 1:
        lengths = jnp.sqrt(jnp.sum(maps * maps, axis=(1, 2), keepdims=True))
        live = jnp.sum(lengths > 0, axis=(1, 2, 3)).astype(mask.dtype)
        # The squared length of the sum of M unit vectors is M and the cosines of all ordered pairs.
        joint = jnp.sum(maps / jnp.where(lengths > 0, lengths, 1.0), axis=-1)
        cosines = jnp.sum(joint * joint, axis=(1, 2)) - live
        pairs = live * (live - 1)
        sums["attention/overlap"] = (masked(cosines, mask)[0], masked(pairs, mask)[0])
    if "box" in batch and "parts" in batch:
        height, width = maps.shape[1:3]
        peak = jnp.argmax(jnp.mean(maps, axis=-1).reshape(-1, height * width), axis=-1)
        place = jnp.stack([(peak // width + 0.5) / height, (peak % width + 0.5) / width], axis=-1)
        start, end = coarse.box[:, :2], coarse.box[:, 2:]
        distance = jnp.linalg.norm(batch["parts"] - (start + place * (end - start))[:, None], axis=-1)
        visible = batch["part_visible"] > 0
        near = visible & (distance <= HIT_RADIUS * jnp.sqrt(area(batch["box"]))[:, None])
        counted = mask * jnp.any(visible, axis=-1).astype(mask.dtype)
        sums["attention/part_hit"] = masked(jnp.any(near, axis=-1).astype(mask.dtype), counted)
    return sums


def best_ious(maps: np.ndarray, boxes: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """Overlap of each map's best box with the object's, by threshold; on the host.

    A threshold's boxes are those around the connected components (diagonal neighbours count) of the cells that reach
    this share of the map's maximum; of several the best match counts.

    Args:
        maps: over the whole image, [B, h, w], not negative. All-zero maps have no boxes.
        boxes: the objects', [B, 4], not mirrored.
        thresholds: T shares of a map's maximum.

    Returns:
        IoU [B, T], 0 without a box.
    """
    cells = np.array(maps.shape[1:])
    result = np.zeros((len(maps), len(thresholds)))
    for i, (values, box) in enumerate(zip(maps, boxes, strict=True)):
        peak = values.max()
        for j, threshold in enumerate(thresholds if peak > 0 else ()):
            components, _ = ndimage.label(values >= threshold * peak, structure=np.ones((3, 3)))
            places = ndimage.find_objects(components)
            found = np.array([[y.start, x.start, y.stop, x.stop] for y, x in places]) / np.tile(cells, 2)
            sides = np.minimum(found[:, 2:], box[2:]) - np.maximum(found[:, :2], box[:2])
            shared = np.prod(np.maximum(sides, 0.0), axis=-1)
            union = np.prod(found[:, 2:] - found[:, :2], axis=-1) + np.prod(box[2:] - box[:2]) - shared
            result[i, j] = np.max(shared / union)
    return result


class BoxAccuracy(NamedTuple):
    """`value`: the mean over `IOU_LEVELS` of the box accuracies; `levels`, `thresholds`: each level's, and where."""

    value: float
    levels: tuple[float, ...]
    thresholds: tuple[float, ...]


def max_box_accuracy(validation: np.ndarray, test: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> BoxAccuracy:
    """MaxBoxAccV2 with thresholds that the test part did not choose.

    For each of `IOU_LEVELS` the threshold under which most validation images have a box that overlaps so much (the
    lowest of equals) is applied to the test part.

    Args:
        validation, test: IoU by image and threshold, [N, T] of `best_ious`.
        thresholds: T.

    References:
        Choe et al. 2020, arXiv:2001.07437, whose V2 takes the best threshold on the part that is measured.
    """
    chosen = [int(np.argmax(np.mean(validation >= level, axis=0))) for level in IOU_LEVELS]
    levels = [float(np.mean(test[:, j] >= level)) for level, j in zip(IOU_LEVELS, chosen, strict=True)]
    return BoxAccuracy(float(np.mean(levels)), tuple(levels), tuple(thresholds[j] for j in chosen))
