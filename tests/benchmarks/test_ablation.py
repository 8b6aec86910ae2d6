"""The ablation's bookkeeping and its report from lines made up here; one row trained and measured, on paper birds."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import ablation
from benchmarks.ablation_report import (
    LATER,
    Contrast,
    Group,
    Shown,
    _contrast,
    difference,
    of_row,
    read_records,
    write_report,
)
from benchmarks.ablation_row import (
    CENTRAL,
    OF_BOXES,
    RESIZED,
    Part,
    first_look,
    looks_of,
    measure,
    share_statistics,
    train_and_measure,
    views_of,
)
from benchmarks.lines import unpack
from benchmarks.over_seeds import SEEDS_OF_A_CLAIM, Difference, paired_bootstrap, reading, t_interval
from c2f_jax.kernels import area
from c2f_jax.runs.build import build
from configs import cub50_lite0
from tests.tiny import tiny_config

IMAGES = 21


def line(name, seed, *, coarse, fused=None, boxes=None, overrides=None):
    """A line of results; coarse, fused: which of the images are right; boxes: what is known of them, by image."""

    def region(views):
        metrics = {}
        for view, right in views.items():
            metrics[f"{view}/top_1_accuracy"] = float(np.mean(right))
            metrics |= {f"{view}/{name}": 0.5 for name in ("mean_per_class_accuracy", "top_5_accuracy")}
            metrics |= {f"{view}/calibration_error": 0.25, f"{view}/loss": 1.5}
        return Part(metrics, views, boxes or {}, None, None).line()

    looks = {"coarse": coarse} if fused is None else {"coarse": coarse, "fine": ~coarse, "fused": fused}
    twice = {"coarse": coarse, "fine": coarse, "fused": coarse}
    return {
        **{"name": name, "seed": seed, "overrides": overrides or {}, "commit": "0123456789abcdef", "clean": True},
        **{"device": "cpu", "device_count": 1, "versions": {"jax": "1.2.3"}},
        **{"train_images": 80, "test_images": IMAGES, "view_size": 128, "epochs": 12.0, "steps": 100},
        **{"train_seconds": 600.0, "seconds": 700.0, "train_views": 20.0, "parameters": 3_000_000},
        "kappa": None if fused is None else 2.0,
        **{"max_box_accuracy": None, "overlap_at_start": None if fused is None else 0.75},
        "history": {
            "train": [{"step": step, "gradient/attention_by_class": 0.5 * step} for step in (10, 20)],
            "validation": [{"step": step, "box/mean_area": 0.4, "box/mean_iou": 0.5} for step in (10, 20)],
        },
        "validation": {},
        "regions": {"own": region(looks), "central": {"side": 0.7, **region(twice)}, "object": None},
    }


def right(count):
    return np.arange(IMAGES) < count


def test_right_answers_go_through_the_lines():
    views = {"coarse": np.random.default_rng(0).random(IMAGES) > 0.5}
    packed = Part({}, views, {}, None, None).line()
    np.testing.assert_array_equal(unpack(packed["right"]["coarse"], IMAGES), views["coarse"])
    packed = Part(
        {}, {"a": np.array([True, False, False, True])}, {"iou": np.array([0.0, 1.0, 0.2])}, None, None
    ).line()
    assert packed == {"metrics": {}, "right": {"a": "90"}, "iou": "00ff33"}


def test_bootstrap_by_hand():
    # Two images, one seed: the mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4; two seeds alike.
    assert paired_bootstrap(np.array([[0.0, 1.0]]), resamples=500) == (0.0, 1.0)
    assert paired_bootstrap(np.array([[0.0, 0.0], [1.0, 1.0]]), resamples=500) == (0.0, 1.0)
    assert paired_bootstrap(np.full((3, 5), 0.25), resamples=50) == (0.25, 0.25)
    # Over 400 images half right the mean has a standard deviation of 1/40.
    low, high = paired_bootstrap(np.arange(400).reshape(1, 400) % 2.0, resamples=4000)
    assert (low, high) == pytest.approx((0.5 - 1.96 / 40, 0.5 + 1.96 / 40), abs=0.004)


def test_t_interval_by_hand():
    """Of 1 to 5: mean 3, standard error sqrt(2.5 / 5); the table's t for 4 degrees of freedom is 2.776."""
    half = 2.776445 * np.sqrt(0.5)
    assert t_interval(np.arange(1.0, 6.0)) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert t_interval(np.array([0.25, 0.25])) == (0.25, 0.25)


def test_a_contrast_takes_the_seeds_in_common():
    records = {("a", seed): line("a", seed, coarse=right(9), fused=right(12)) for seed in range(3)}
    records |= {("b", seed): line("b", seed, coarse=right(9 if seed == 1 else 6)) for seed in (1, 2, 4)}
    got = difference(records, Contrast("", Shown("a", "own", "fused"), Shown("b", "central", "coarse")), resamples=200)
    assert got.seeds == 2 and got.mean == pytest.approx((3 + 6) / 2 / IMAGES)
    assert got.by_seed == pytest.approx(t_interval(np.array([3, 6]) / IMAGES))
    assert difference(records, Contrast("", Shown("a", "own", "fused"), Shown("c", "own", "fused"))) is None


def test_a_contrast_of_boxes():
    """On the lines that hold them: lines of before do not, nor do rows without a box."""
    shared = np.linspace(0.0, 0.8, IMAGES)
    records = {("a", seed): line("a", seed, coarse=right(9), boxes={"iou": shared + 0.2}) for seed in range(3)}
    records |= {("b", seed): line("b", seed, coarse=right(9), boxes={"iou": shared}) for seed in (0, 1)}
    records["b", 2] = line("b", 2, coarse=right(9), boxes={"area": shared})
    del records["b", 1]["regions"]["own"]["iou"]
    contrast = Contrast("", Shown("a", "own", "iou"), Shown("b", "own", "iou"))
    # Each image's is kept to a 255th.
    got = difference(records, contrast, resamples=50)
    assert (got.seeds, got.by_seed) == (1, None)
    assert (got.mean, *got.by_image) == pytest.approx((0.2, 0.2, 0.2), abs=1 / 255)


def test_a_contrast_of_parts_counts_parts():
    """As `box/parts_inside` does; where a line is too old to say how many there were, images, and says so."""
    inside, visible = np.where(right(7), 1.0, 0.2), np.where(right(7), 1, 3) * ~(np.arange(IMAGES) == 20)

    def contrasted(*known):
        records = {("a", seed): line("a", seed, coarse=right(9), boxes={"parts_inside": inside}) for seed in (0, 1)}
        records |= {
            ("b", seed): line("b", seed, coarse=right(9), boxes={"parts_inside": 0 * inside}) for seed in (0, 1)
        }
        for key in known:
            records[key]["parts_visible"] = visible.astype(np.uint8).tobytes().hex()
        contrast = Contrast("", Shown("a", "own", "parts_inside"), Shown("b", "own", "parts_inside"))
        return contrast, difference(records, contrast, resamples=400)

    contrast, got = contrasted(("a", 0), ("a", 1), ("b", 0), ("b", 1))
    assert got.mean == pytest.approx((7 + 13 * 3 * 0.2) / (7 + 13 * 3)) and got.by_seed == pytest.approx(
        (got.mean,) * 2
    )
    assert got.by_image[0] < got.mean < got.by_image[1] and "mean of images" not in "".join(_contrast(contrast, got))
    contrast, got = contrasted(("a", 0), ("a", 1), ("b", 0))
    assert got.mean == pytest.approx((7 + 14 * 0.2) / IMAGES)
    assert "parts inside (mean of images)" in _contrast(contrast, got)[1]


@pytest.mark.parametrize(
    ("seeds", "by_image", "by_seed", "said"),
    [
        (4, (0.05, 0.15), (0.05, 0.15), "no claim: 4 of 5 seeds"),
        (5, (0.05, 0.15), (0.01, 0.19), "higher"),
        (5, (-0.2, -0.05), (-0.2, -0.05), "lower"),
        (5, (-0.05, 0.25), (0.05, 0.15), "not told apart"),
        (5, (0.05, 0.15), (-0.05, 0.25), "not told apart"),
        (5, (-0.15, -0.05), (-0.25, 0.05), "not told apart"),
    ],
)
def test_what_is_claimed(seeds, by_image, by_seed, said):
    assert reading(Difference(0.1, seeds, by_image, by_seed)) == said


def test_the_report(tmp_path):
    results = tmp_path / "lines.jsonl"
    lines = [line("two", seed, coarse=right(9), fused=right(12 + seed)) for seed in (0, 1, 2)]
    lines.append(line("one", 0, coarse=right(7), overrides={"method": "baseline"}))
    results.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    contrast = Contrast("two against one", Shown("two", "own", "fused"), Shown("one", "own", "coarse"))
    groups = [Group("Twice", "Of two rows.", [contrast])]
    write_report(read_records(results), ["two", "one", "three"], groups, tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "first 50 classes of CUB-200-2011" in page and "two 3, one 1" in page and "not run yet: three" in page
    assert "| `two` | 3 | 42.9 ± 0.0 | 57.1 ± 0.0 | 61.9 ± 4.8 | 42.9 ± 0.0 | 0.7, 0.7, 0.7 | – |" in page
    assert "| `one` | 1 | 33.3 | – | – | 33.3 | 0.7 | – |" in page
    # Coarse: 9 of 21 right; fine: the others; fused: 12 to 14.
    assert "| `two` | 3 | 19.0 ± 4.8 | 0.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 |" in page
    assert "| `one` | 1 | – | – | – | – |" in page
    assert "## Twice\n\nOf two rows.\n" in page
    assert "| two against one | `two` fused | `one` coarse | +23.8 |" in page and "no claim: 1 of 5 seeds" in page
    assert "`--config.method=baseline` | 0 | 0123456789 |" in page
    for name in ("results.png", "results_training.png"):
        with Image.open(tmp_path / name) as plot:
            assert min(plot.size) > 100
    again = page
    write_report(read_records(results), ["two"], groups, tmp_path, stem="second", lines="more.jsonl", flag=" --grid 2")
    second = (tmp_path / "second.md").read_text()
    assert "`python -m benchmarks.ablation report --grid 2` from `benchmarks/results/more.jsonl`" in second
    assert "(second.png)" in second and "(second_training.png)" in second and "| `two` | 3 | 42.9" in second
    write_report(read_records(results), ["two", "one", "three"], groups, tmp_path)
    assert (tmp_path / "results.md").read_text() == again


def test_lines_that_do_not_belong_together(tmp_path):
    results = tmp_path / "lines.jsonl"
    entry = json.dumps(line("one", 0, coarse=right(7)))
    results.write_text(f"{entry}\n{entry}\n")
    with pytest.raises(ValueError, match="one, seed 0 twice"):
        read_records(results)
    records = {("one", seed): line("one", seed, coarse=right(7), overrides={"seed": seed}) for seed in (0, 1)}
    with pytest.raises(ValueError, match="different overrides"):
        write_report(records, ["one"], [], tmp_path)
    # A line from before there was a field belongs with one that has it as the program was then, and with no other.
    old, same = (line("one", seed, coarse=right(7), overrides=of) for seed, of in enumerate(({}, dict(LATER))))
    assert len(of_row({("one", 0): old, ("one", 1): same}, "one")) == 2
    other = line("one", 1, coarse=right(7), overrides={"region.background": 1.0})
    with pytest.raises(ValueError, match="different overrides"):
        of_row({("one", 0): old, ("one", 1): other}, "one")


def test_rows_are_run_once_seed_by_seed(tmp_path):
    results, started = tmp_path / "lines.jsonl", []
    rows = [ablation.Row("a", {}, (0, 1)), ablation.Row("b", {}, (0, 1, 2))]

    def start(row, seed):
        started.append((row.name, seed))
        if (row.name, seed) != ("b", 0):  # which fails: no line
            with results.open("a") as file:
                file.write(json.dumps(line(row.name, seed, coarse=right(7))) + "\n")

    ablation.run(rows, [0, 1], results, start)
    assert started == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    started.clear()
    ablation.run(rows, None, results, start)
    assert started == [("b", 0), ("b", 2)]


def test_a_row_that_fails_is_told_in_one_line(tmp_path, capsys):
    places = {"data": str(tmp_path / "nowhere"), "weights": str(tmp_path / "none"), "runs": tmp_path / "runs"}
    ablation.start_process(ablation.Row("no such row", {}), 0, **places)
    _, told = capsys.readouterr().out.splitlines()
    assert told.startswith("no such row, seed 0: failed with exit code 2: ") and "invalid choice" in told


def test_every_row_is_a_config():
    names = [row.name for grid in ablation.GRIDS.values() for row in grid.rows]
    assert len(set(names)) == len(names)  # `row NAME` says by itself of which grid
    for grid in ablation.GRIDS.values():
        rows = {row.name: row for row in grid.rows}
        for row in grid.rows:
            config = ablation.config_of(row, 3, data="DIR", weights="FILE")
            assert (config.seed, config.dataset.path, config.model.pretrained) == (3, "DIR", "FILE")
            assert config.dataset.validation_fraction > 0
        for contrast in (contrast for group in grid.contrasts for contrast in group.contrasts):
            assert {shown.row for shown in contrast[1:]} <= set(rows)
        for contrast in grid.contrasts[0].contrasts:
            for shown in contrast[1:]:
                assert len(rows[shown.row].seeds) >= SEEDS_OF_A_CLAIM
    with pytest.raises(KeyError):
        ablation.config_of(ablation.Row("misspelt", {"stages.coarse_epoch": 1.0}), 0, data="", weights="")


def test_the_shipped_config_is_the_row_that_won():
    (row,) = (row for row in ablation.GRID.rows if row.name == "coarse2fine_drop_floor")
    assert ablation.config_of(row, 0, data="", weights="").to_dict() == cub50_lite0.get_config().to_dict()


def test_the_second_grid_is_the_shipped_config_at_its_sizes():
    """And one look costs there what two do: in tests by its pixels, in training by its views and their pixels."""
    configs = {row.name: ablation.config_of(row, 0, data="", weights="") for row in ablation.GRIDS["224"].rows}
    shipped = cub50_lite0.get_config()
    shipped.model.view_size, shipped.dataset.raw_size = 224, 448
    assert configs["coarse2fine_224"].to_dict() == shipped.to_dict()

    def training(config):
        views = views_of(
            "fine" if config.method == "coarse2fine" else "wsdan" if config.method == "wsdan" else "coarse", config
        )
        epochs = config.stages.coarse_epochs + (config.stages.fine_epochs if config.method == "coarse2fine" else 0.0)
        return views * epochs * config.model.view_size**2

    costs = {name: training(config) for name, config in configs.items()}
    assert all(cost == pytest.approx(costs["coarse2fine_224"], rel=0.01) for cost in costs.values())
    assert configs["attention_316"].model.view_size ** 2 == pytest.approx(2 * 224**2, rel=0.01)


def test_wsdan_can_look_where_coarse2fine_does():
    """With the same parameters, and not where it looks itself."""
    wsdan, ours = build(tiny_config(method="wsdan")), build(tiny_config())
    state = wsdan.create_state()
    batch = next(iter(wsdan.evaluation_batches(wsdan.splits.test)))
    theirs, mine = (
        jax.jit(partial(first_look, run.task))(state.params, state.batch_stats, batch) for run in (wsdan, ours)
    )
    np.testing.assert_allclose(theirs.boxes["attention"], mine.boxes["own"], atol=1e-6)
    assert np.max(np.abs(theirs.boxes["attention"] - theirs.boxes["own"])) > 0.01


def test_shared_statistics_by_hand():
    kinds = {"coarse": {"norm": {"mean": np.array([1.0, 2.0])}}, "fine": {"norm": {"mean": np.array([3.0, 0.0])}}}
    shared = share_statistics(kinds)
    assert shared.keys() == kinds.keys()
    for stats in shared.values():
        np.testing.assert_array_equal(stats["norm"]["mean"], [2.0, 1.0])


def test_kappa_alone_sizes_the_box():
    """The network's own gives its own box, half of it a smaller one."""
    kappa = 3.2
    run = build(tiny_config(region__kappa=kappa, region__max_side=1.0))
    state = run.create_state()
    batch = next(iter(run.evaluation_batches(run.splits.test)))
    boxes = jax.jit(partial(first_look, run.task))(state.params, state.batch_stats, batch).boxes
    np.testing.assert_allclose(boxes[RESIZED[kappa]], boxes["own"], atol=1e-6)
    assert np.all(area(boxes[RESIZED[1.7]]) < area(boxes["own"]) - 0.01)


def test_a_line_says_how_many_parts_each_image_shows():
    run = build(tiny_config())
    state = run.create_state()
    looks = looks_of(run.task, state.params)

    def step(batch):
        hidden = np.arange(batch["part_visible"].size).reshape(batch["part_visible"].shape) % 7 < 3
        batch = batch | {"part_visible": batch["part_visible"] * ~hidden}
        return looks(state.batch_stats, batch, [CENTRAL[0.7]])

    (part,) = measure(run.evaluation_batches(run.splits.test), step).values()
    inside = part.boxes["parts_inside"]
    expected = np.sum(inside * part.visible) / np.sum(part.visible)
    assert part.metrics["box/parts_inside"] == pytest.approx(expected, rel=1e-6)
    assert abs(np.mean(inside) - expected) > 1e-3 and len(set(part.visible)) > 1


@pytest.mark.slow
def test_a_finished_run_is_measured(finished, tmp_path):
    """A workdir with all its steps is only measured; what is told agrees with what the run found itself."""
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "run")
    got = train_and_measure(tiny_config(), tmp_path / "run", root=ablation.ROOT)
    json.dumps(got, allow_nan=False)
    assert (got["steps"], got["test_images"], got["kappa"] > 0) == (20, IMAGES, True)
    # 10 steps of one look and 10 of two, 8 images each, over 80.
    assert (got["epochs"], got["train_views"]) == (2.0, 3.0)
    own, central = got["regions"]["own"], got["regions"]["central"]
    assert own["metrics"] == pytest.approx({name: results[name] for name in own["metrics"]}, rel=1e-6)
    for region in (own, central):
        for view, packed in region["right"].items():
            accuracy = np.mean(unpack(packed, IMAGES))
            assert accuracy == pytest.approx(region["metrics"][f"{view}/top_1_accuracy"])
    assert own["right"]["coarse"] == central["right"]["coarse"]
    for region in got["regions"].values():
        if region is not None:
            known = {name: np.frombuffer(bytes.fromhex(region[name]), np.uint8) / 255 for name in OF_BOXES}
            assert {len(values) for values in known.values()} == {IMAGES}
            # All of a paper bird's parts are visible, so the mean over images is that over parts.
            for name, metric in (("area", "mean_area"), ("iou", "mean_iou"), ("parts_inside", "parts_inside")):
                assert np.mean(known[name]) == pytest.approx(region["metrics"][f"box/{metric}"], abs=1 / 255)
    sides = central["validation_by_side"]
    assert len(sides) == len(CENTRAL) == 7 and sides[str(central["side"])] == max(sides.values())
    assert 0.0 < got["overlap_at_start"] <= 1.0
    validation = got["history"]["validation"]
    assert [entry["step"] for entry in validation] == [5, 10, 15, 20] and 0 < validation[-1]["box/mean_iou"] < 1
    assert [entry["step"] for entry in got["history"]["train"]][-1] == 20
    # The birds' own boxes: seen by the second look, they are as large as drawn, and overlap with themselves entirely.
    assert got["regions"]["object"]["metrics"]["box/mean_iou"] == pytest.approx(1.0, abs=1e-5)
    assert got["regions"]["object"]["metrics"]["box/parts_inside"] > 0.9
    assert got["regions"]["attention"] is None  # its own box is that already
    assert set(bytes.fromhex(got["parts_visible"])) == {4}
    assert got["regions"]["shared"]["metrics"] != own["metrics"]
    resized = got["regions"]["resized"]
    overlaps = resized["validation_by_kappa"]
    assert len(overlaps) == len(RESIZED) and overlaps[str(resized["kappa"])] == max(overlaps.values())
    # A central box of side s in the coarse view, which is the whole image here.
    assert central["metrics"]["box/mean_area"] == pytest.approx(central["side"] ** 2, abs=1e-5)
    assert 0.0 <= got["max_box_accuracy"]["value"] <= 1.0
