"""The second grid: 224 px views of photos of up to 448 px, at which ImageNet networks are used; for an accelerator.

Each row fits into one command of a few minutes there. All start from the same weights; Coarse2Fine is what
`configs/cub50_lite0.py` ships, but for the sizes. Kappa and floor were chosen at 128 px, not here.
"""

from typing import Any

from benchmarks.ablation_grid import CONTRASTED, ONE_LOOK, SHIPPED, WSDAN, Grid, Row, coarse, fused
from benchmarks.ablation_report import Contrast, Group, Shown

_SIZES: dict[str, Any] = {"model.view_size": 224, "dataset.raw_size": 448}
_REGION = {name: value for name, value in SHIPPED.items() if name.startswith("region.")}

ROWS = [
    Row("coarse2fine_224", {**SHIPPED, **_SIZES}, CONTRASTED),
    # As many training views as 12 x 3 epochs of two looks and a drop view, or of WS-DAN.
    Row("attention_224", {**ONE_LOOK, "stages.coarse_epochs": 36.0, **_REGION, **_SIZES}, CONTRASTED),
    # Twice the work per view: a test costs what two looks do, and so does training, by half as many views.
    Row(
        "attention_316",
        {**ONE_LOOK, "stages.coarse_epochs": 18.0, **_REGION, **_SIZES, "model.view_size": 316},
        CONTRASTED,
    ),
    Row("wsdan_224", {**WSDAN, **_REGION, **_SIZES}, CONTRASTED),  # tested with our box too
]

_OURS = fused("coarse2fine_224")

CONTRASTS = [
    Group(
        "What is to be shown",
        "Of `coarse2fine_224`, whichever way they fall; declared before any of the rows was run. At equal cost in "
        "tests, one look is one of 316 px.",
        [
            Contrast("one look at the cost of two", _OURS, coarse("attention_316")),
            Contrast("one look trained, second look through its untrained box", _OURS, fused("attention_224")),
            Contrast("WS-DAN", _OURS, fused("wsdan_224")),
            Contrast("WS-DAN, looking where Coarse2Fine does", _OURS, fused("wsdan_224", "attention")),
            Contrast("the second look in tests", _OURS, coarse("coarse2fine_224")),
            Contrast(
                "the box, or the untrained one: overlap with the bird",
                Shown("coarse2fine_224", "own", "iou"),
                Shown("attention_224", "own", "iou"),
            ),
        ],
    )
]

GRID_224 = Grid(ROWS, CONTRASTS, "results_224", "ablation_224.jsonl")
