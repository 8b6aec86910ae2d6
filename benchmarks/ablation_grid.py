"""The first grid of the ablation: 128 px views of 256 px photos; and what grids are made of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.ablation_report import Contrast, Group, Shown

CONTRASTED = (0, 1, 2, 3, 4)  # seeds that a claimed contrast needs

# What the grid began with. Every row says it, so that a row means the same whatever the shipped config says later.
BASE: dict[str, Any] = {
    "region.floor": 0.0,
    "region.background": 0.0,
    "region.kappa": 2.0,
    "loss.drop_view": False,
    "stages.coarse_epochs": 4.0,
    "stages.fine_epochs": 8.0,
}
ONE_LOOK: dict[str, Any] = {"method": "attention", "stages.coarse_epochs": 12.0}
WSDAN: dict[str, Any] = {"method": "wsdan", "stages.coarse_epochs": 12.0}
_BASELINE: dict[str, Any] = {
    **{"method": "baseline", "stages.coarse_epochs": 20.0, "augment.min_side": 0.875, "augment.max_side": 0.875},
    **{"optimizer.head_factor": 10.0, "optimizer.clip_norm": 0.0},
}
# As many views as WS-DAN's, of the same kinds but for the second look's region.
_DROP: dict[str, Any] = {"loss.drop_view": True, "stages.coarse_epochs": 0.0, "stages.fine_epochs": 12.0}
# What is fainter than a tenth of the maximum is no region; on two networks trained without, kappa by the fused loss on
# the validation part, of 2.2, 2.6 and 3.
_FLOOR: dict[str, Any] = {"region.floor": 0.1, "region.kappa": 2.6}
SHIPPED = {**_DROP, **_FLOOR}
# A background that is the same all over the view grows with training until a share of the maximum no longer holds it
# back; the mean grows with it. Kappa by the fused loss on the validation part, of the five runs with a floor.
_ABOVE_MEAN: dict[str, Any] = {"region.background": 1.0, "region.kappa": 2.9}
# Maps of 4 x 4 cells spread wider: with kappa 2 the second view is no closer than the first.
_SMALL: dict[str, Any] = {"model.view_size": 64, "region.kappa": 1.6}


class Row(NamedTuple):
    """A run per seed: `configs/cub50_lite0.py` with `BASE` and, over it, `changes`."""

    name: str
    changes: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def overrides(self) -> dict[str, Any]:
        """All that is set in the config."""
        return {**BASE, **self.changes}


class Grid(NamedTuple):
    """Rows and contrasts that make a report of their own.

    Attributes:
        rows: to be trained.
        contrasts: to be tested on them.
        stem: of the report's files below `docs/`.
        lines: name of the file with their lines below `benchmarks/results/`.
    """

    rows: Sequence[Row]
    contrasts: Sequence[Group]
    stem: str
    lines: str


# What neither `BASE` nor the row says is the config's: coarse2fine, box_gradient none, 16 maps. First what the claims
# are made of, then what explains them, then what the design came from.
ROWS = [
    Row("coarse2fine_drop_floor", SHIPPED, CONTRASTED),
    Row("attention_floor", {**ONE_LOOK, **_FLOOR}, CONTRASTED),
    Row("wsdan_floor", {**WSDAN, **_FLOOR}, CONTRASTED),  # trained as `wsdan`, tested with our box too
    Row("coarse2fine_above_mean", {**_DROP, **_ABOVE_MEAN}, CONTRASTED),
    Row("attention_above_mean", {**ONE_LOOK, **_ABOVE_MEAN}, CONTRASTED),
    Row("attention_above_mean_36", {**ONE_LOOK, "stages.coarse_epochs": 36.0, **_ABOVE_MEAN}, CONTRASTED),
    Row("maps_8_above_mean", {**_DROP, "model.num_maps": 8, **_ABOVE_MEAN}, CONTRASTED),
    # As many training views as 12 x 3 epochs of two looks and a drop view, or of WS-DAN.
    Row("attention_floor_36", {**ONE_LOOK, "stages.coarse_epochs": 36.0, **_FLOOR}, CONTRASTED),
    # About twice the work per view of 128 px: what the second look costs, spent on the first.
    Row("attention_wide", {**ONE_LOOK, "model.view_size": 176}, CONTRASTED),
    Row("random_box_drop_floor", {"method": "random_box", **SHIPPED}, CONTRASTED),
    Row("baseline", {**_BASELINE, "model.output_stride": 32}),
    Row("baseline_s16", {**_BASELINE, "model.output_stride": 16}),
    # As many views without drop views; then fewer, in two stages.
    Row("coarse2fine_floor_18", {"stages.coarse_epochs": 0.0, "stages.fine_epochs": 18.0, **_FLOOR}, CONTRASTED),
    Row("coarse2fine_floor", _FLOOR, CONTRASTED),
    Row("coarse2fine_drop", _DROP, CONTRASTED),
    # One change each to coarse2fine_drop_floor.
    *(
        Row(name, {**SHIPPED, **change})
        for name, change in (
            ("mapping", {"region.box_gradient": "mapping"}),
            ("all", {"region.box_gradient": "all"}),
            ("lecun_normal", {"model.attention_init": "lecun_normal"}),
            ("channels_64", {"model.feature_channels": 64}),
            ("no_center_loss", {"loss.center_weight": 0.0}),
            ("raw_128", {"dataset.raw_size": 128}),
            ("stages_6_10", {"stages.coarse_epochs": 6.0, "stages.fine_epochs": 10.0}),  # as many views
            ("maps_8", {"model.num_maps": 8}),
            ("maps_32", {"model.num_maps": 32}),
            ("kappa_2", {"region.kappa": 2.0}),
            ("max_side_07", {"region.max_side": 0.7}),  # no second look is less than 1.4 times as close
            ("channel_drop", {"model.channel_drop": 0.05}),  # the share that its authors' program has for this measure
        )
    ),
    # Before floors and drop views.
    Row("coarse2fine_none", {}, CONTRASTED),
    Row("attention", ONE_LOOK, CONTRASTED),
    Row("wsdan", WSDAN, CONTRASTED),
    # Views a quarter as long as the photos, as 448 px are to a camera's: more detail for a second look to add.
    *(
        Row(f"{name}_64", {**overrides, **_SMALL}, CONTRASTED)
        for name, overrides in (
            ("coarse2fine", {}),
            ("attention", ONE_LOOK),
            ("random_box", {"method": "random_box"}),
            ("wsdan", WSDAN),
            ("coarse2fine_drop", _DROP),
            ("random_box_drop", {"method": "random_box", **_DROP}),
        )
    ),
    # As many training views as 4 + 2 x 8 epochs of two looks.
    Row("attention_64_20", {**ONE_LOOK, "stages.coarse_epochs": 20.0, **_SMALL}, CONTRASTED),
    # As many as 12 x 3 epochs with drop views, or WS-DAN's.
    Row("attention_64_36", {**ONE_LOOK, "stages.coarse_epochs": 36.0, **_SMALL}, CONTRASTED),
    # No coarse stage, so no second start of the learning rate; as many views as attention_64_36.
    Row("coarse2fine_64_0_18", {"stages.coarse_epochs": 0.0, "stages.fine_epochs": 18.0, **_SMALL}, CONTRASTED),
    # Sixty views: when one look has learned all it can.
    Row("coarse2fine_drop_64_20", {**_DROP, "stages.fine_epochs": 20.0, **_SMALL}, CONTRASTED),
    Row("wsdan_64_20", {**WSDAN, "stages.coarse_epochs": 20.0, **_SMALL}, CONTRASTED),
    Row("coarse2fine_64_40", {"stages.coarse_epochs": 20.0, "stages.fine_epochs": 20.0, **_SMALL}, CONTRASTED),
    Row("attention_64_60", {**ONE_LOOK, "stages.coarse_epochs": 60.0, **_SMALL}, CONTRASTED),
    Row("attention_64_lecun", {**ONE_LOOK, "model.attention_init": "lecun_normal", **_SMALL}, CONTRASTED),
    Row("attention_96", {**ONE_LOOK, "model.view_size": 96}, CONTRASTED),  # a little more work than two of 64 px
]


def fused(row: str, region: str = "own") -> Shown:
    return Shown(row, region, "fused")


def coarse(row: str) -> Shown:
    return Shown(row, "own", "coarse")


def _box(name: str, shown: str, region: str = "own") -> Contrast:
    """Of the trained box and the untrained one."""
    return Contrast(name, Shown("coarse2fine_drop_floor", region, shown), Shown("attention_floor", region, shown))


_OURS = fused("coarse2fine_drop_floor")
_BEFORE = fused("coarse2fine_none")

CONTRASTS = [
    Group(
        "What was to be shown",
        "Of `coarse2fine_drop_floor`, which `configs/cub50_lite0.py` shipped then: more than (a) by 1.5 points and "
        "than WS-DAN by 1, and a better box than the untrained one. (b) to (d) whichever way they fall. **The design "
        "was not chosen blind**: floor and kappa were chosen on the validation part, but five designs of two looks "
        "(without either, drop views, a floor too, and two that are gone) were kept or dropped with their test figures "
        "at seed 0 in view, where WS-DAN and one look had one setting each; seeds 1 to 4 came after, and so did the "
        "rows that change one thing, which changed nothing in it.",
        [
            Contrast("(a) one look trained, second look through its untrained box", _OURS, fused("attention_floor")),
            Contrast("(a) the same, trained for as many views", _OURS, fused("attention_floor_36")),
            Contrast("(a) the same, its box above the mean", _OURS, fused("attention_above_mean_36")),
            Contrast("WS-DAN", _OURS, fused("wsdan_floor")),
            _box("the box, or the untrained one: overlap with the bird", "iou"),
            _box("the box, or the untrained one: visible parts inside", "parts_inside"),
            _box("the box, or the untrained one: its share of the image", "area"),
            _box("the box, or the untrained one, whatever their sizes: overlap", "iou", "resized"),
            Contrast("(b) one look trained, second at a central box", _OURS, fused("attention_floor", "central")),
            Contrast("(c) one look at a wide view, less work", _OURS, coarse("attention_wide")),
            Contrast("(d) trained at random boxes", _OURS, fused("random_box_drop_floor")),
        ],
    ),
    Group(
        "What the difference is made of",
        "Explored, and there are many: of twenty that are no difference, one is expected outside of its interval.",
        [
            Contrast("WS-DAN, looking where Coarse2Fine does", _OURS, fused("wsdan_floor", "attention")),
            Contrast(
                "WS-DAN, both looking at the bird's annotated box",
                fused("coarse2fine_drop_floor", "object"),
                fused("wsdan_floor", "object"),
            ),
            Contrast("our box, or WS-DAN's, in WS-DAN", fused("wsdan_floor", "attention"), fused("wsdan_floor")),
            Contrast("the second look in tests", _OURS, coarse("coarse2fine_drop_floor")),
            Contrast("(a) by the first look alone", coarse("coarse2fine_drop_floor"), coarse("attention_floor")),
            Contrast("the first look alone, or WS-DAN's", coarse("coarse2fine_drop_floor"), coarse("wsdan_floor")),
            Contrast("as many views without drop views", _OURS, fused("coarse2fine_floor_18")),
            Contrast("a floor by the maximum, or by the mean", _OURS, fused("coarse2fine_above_mean")),
            Contrast(
                "by the mean: two looks trained, or one",
                fused("coarse2fine_above_mean"),
                fused("attention_above_mean"),
            ),
            Contrast("a floor, with drop views", _OURS, fused("coarse2fine_drop")),
            Contrast("a floor, without drop views", fused("coarse2fine_floor"), _BEFORE),
            Contrast(
                "one look, trained for three times the views", fused("attention_floor_36"), fused("attention_floor")
            ),
            Contrast("by the mean: the same", fused("attention_above_mean_36"), fused("attention_above_mean")),
            Contrast("a perfect second box in tests", fused("coarse2fine_drop_floor", "object"), _OURS),
            Contrast(
                "running statistics for each kind of view, or shared ones",
                _OURS,
                fused("coarse2fine_drop_floor", "shared"),
            ),
            Contrast("photos of 256 px, or no larger than the views", _OURS, fused("raw_128")),
            Contrast("box gradient mapping, or none", fused("mapping"), _OURS),
            Contrast("box gradient all, or none", fused("all"), _OURS),
            Contrast("attention initialised orthogonal, or LeCun normal", _OURS, fused("lecun_normal")),
            Contrast("all 1,280 features, or projected to 64", _OURS, fused("channels_64")),
            Contrast("centre loss, or none", _OURS, fused("no_center_loss")),
            Contrast("two looks from the first step on, or after 6 epochs of one", _OURS, fused("stages_6_10")),
            Contrast("16 maps, or 8", _OURS, fused("maps_8")),
            Contrast("8 maps: by the mean, or a floor", fused("maps_8_above_mean"), fused("maps_8")),
            Contrast("8 maps by the mean, or what is shipped", fused("maps_8_above_mean"), _OURS),
            Contrast("16 maps, or 32", _OURS, fused("maps_32")),
            Contrast("kappa 2.6, or 2", _OURS, fused("kappa_2")),
            Contrast("sides of up to 1, or up to 0.7", _OURS, fused("max_side_07")),
            Contrast("correlated channels dropped in training, or none", fused("channel_drop"), _OURS),
        ],
    ),
    Group(
        "Before floors and drop views",
        "What the design came from; explored likewise.",
        [
            Contrast("(a) one look trained, second through its untrained box", _BEFORE, fused("attention")),
            Contrast("(b) one look trained, second at a central box", _BEFORE, fused("attention", "central")),
            Contrast("(c) one look at a wide view, about the same work", _BEFORE, coarse("attention_wide")),
            Contrast("WS-DAN", _BEFORE, fused("wsdan")),
            Contrast("with drop views, or WS-DAN", fused("coarse2fine_drop"), fused("wsdan")),
            Contrast("64 px: two looks trained, or one", fused("coarse2fine_64"), fused("attention_64")),
            Contrast("64 px: two looks, or one for as many views", fused("coarse2fine_64"), fused("attention_64_20")),
            Contrast("64 px: without a coarse stage", fused("coarse2fine_64_0_18"), fused("attention_64_36")),
            Contrast("64 px, sixty views: two looks, or one", fused("coarse2fine_64_40"), fused("attention_64_60")),
            Contrast("64 px, sixty: with drop views", fused("coarse2fine_drop_64_20"), fused("attention_64_60")),
            Contrast("64 px, sixty: with drop views", fused("coarse2fine_drop_64_20"), fused("wsdan_64_20")),
            Contrast("64 px: the attention's boxes, or random", fused("coarse2fine_64"), fused("random_box_64")),
            Contrast("64 px: two looks, or WS-DAN", fused("coarse2fine_64"), fused("wsdan_64")),
            Contrast("64 px, with drop views, or WS-DAN", fused("coarse2fine_drop_64"), fused("wsdan_64")),
            Contrast("64 px, with drop views, or one look", fused("coarse2fine_drop_64"), fused("attention_64_36")),
            Contrast(
                "64 px, with drop views, or random boxes", fused("coarse2fine_drop_64"), fused("random_box_drop_64")
            ),
            Contrast("64 px: one look, orthogonal or LeCun", fused("attention_64"), fused("attention_64_lecun")),
            Contrast("two looks of 64 px, or one of 96 px", fused("coarse2fine_64"), coarse("attention_96")),
        ],
    ),
]


GRID = Grid(ROWS, CONTRASTS, "results", "ablation.jsonl")
