"""Pure functions on arrays, differentiable, that need JAX alone: the crop, box arithmetic and attention pooling.

Conventions, the same everywhere:

- images are ``[..., H, W, C]``, maps ``[..., h, w]`` or ``[..., h, w, M]``;
- boxes are ``[..., 4]``: ``[ymin, xmin, ymax, xmax]``, fractions of the image measured at pixel edges, so
  ``[0, 0, 1, 1]`` is all of it. Boxes are *oriented*: ``xmin > xmax`` mirrors the view, ``ymin > ymax`` turns it over;
- coordinates, sums and norms are computed in float32, or in float64 where that goes in.
"""

from c2f_jax.kernels.align import roi_align
from c2f_jax.kernels.attention import (
    bilinear_attention_pooling,
    center_loss,
    drop_mask,
    resize_maps,
    sample_attention_map,
    update_centers,
)
from c2f_jax.kernels.boxes import (
    area,
    box_iou,
    compose,
    contains,
    flip_horizontal,
    flip_vertical,
    from_aligned_corners,
    from_pixels,
    from_xyxy,
    giou_loss,
    invert,
    iou,
    ordered,
    region_distribution,
    soft_box,
    threshold_box,
)
from c2f_jax.kernels.crop import crop_and_resize
from c2f_jax.kernels.views import crop_with_wide_gradient, outside_mask, paste

__all__ = [
    "area",
    "bilinear_attention_pooling",
    "box_iou",
    "center_loss",
    "compose",
    "contains",
    "crop_and_resize",
    "crop_with_wide_gradient",
    "drop_mask",
    "flip_horizontal",
    "flip_vertical",
    "from_aligned_corners",
    "from_pixels",
    "from_xyxy",
    "giou_loss",
    "invert",
    "iou",
    "ordered",
    "outside_mask",
    "paste",
    "region_distribution",
    "resize_maps",
    "roi_align",
    "sample_attention_map",
    "soft_box",
    "threshold_box",
    "update_centers",
]
