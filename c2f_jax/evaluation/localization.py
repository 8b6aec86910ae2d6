"""Where the fine view lies, against known boxes and parts, as (sum, count) pairs."""

import jax
import jax.numpy as jnp

from c2f_jax.kernels import area, contains, iou
from c2f_jax.models.two_looks import central_boxes
from c2f_jax.training.metrics import Sums, masked


def localization_sums(boxes: jax.Array, batch: dict[str, jax.Array]) -> Sums:
    """Metrics of the fine views' boxes.

    Args:
        boxes: the fine views, [B, 4] in raw coordinates.
        batch: `mask` [B]; where known `box` [B, 4], and `parts` [B, P, 2] (y, x) with `part_visible` [B, P].

    Returns:
        Pairs under `box/mean_area`; with boxes `box/mean_iou` and, to compare, `box/whole_image_iou` (what a box of
        the whole image would get); with parts `box/parts_inside`, the share of visible parts inside the fine view.
    """
    mask = batch["mask"]
    sums = {"box/mean_area": masked(area(boxes), mask)}
    if "box" in batch:
        sums["box/mean_iou"] = masked(iou(boxes, batch["box"]), mask)
        whole = central_boxes(jnp.ones_like(boxes[:, :2]))
        sums["box/whole_image_iou"] = masked(iou(whole, batch["box"]), mask)
    if "parts" in batch:
        inside = contains(boxes, batch["parts"]).astype(mask.dtype)
        sums["box/parts_inside"] = masked(inside, batch["part_visible"] * mask[:, None])
    return sums
