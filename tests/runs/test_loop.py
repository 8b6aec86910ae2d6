"""End to end, from the shipped config shrunk: what a run leaves, and that it is what the run measured."""

import json

import numpy as np
import pytest
from PIL import Image

from c2f_jax import cli
from c2f_jax.runs import evaluation, methods
from c2f_jax.runs.evaluation import evaluate_checkpoint
from c2f_jax.runs.loop import train_and_evaluate
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow

VIEW_METRICS = ("top_1_accuracy", "top_5_accuracy", "mean_per_class_accuracy", "calibration_error", "loss")
PLACE_METRICS = (
    *("box/mean_iou", "box/whole_image_iou", "box/mean_area", "box/share_of_view", "box/middle_inside"),
    "box/parts_inside",
    *("attention/overlap", "attention/part_hit"),
)


def events(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves(finished):
    workdir, results = finished
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints",
        "class_names.json",
        "config.json",
        "confusion.csv",
        "fusion.json",
        "metrics.jsonl",
        "per_class.csv",
        "results.json",
        "samples.png",
        "train.lock",
        "unknown.json",
    }
    assert json.loads((workdir / "results.json").read_text()) == results
    for view in ("coarse", "fine", "fused"):
        for name in VIEW_METRICS:
            assert 0.0 <= results[f"{view}/{name}"] <= (1.0 if name != "loss" else 10.0)
    for name in PLACE_METRICS:
        assert 0.0 <= results[name] <= 1.0
    assert results["seconds"] > 0 and results["images_per_second"] > 0 and results["versions"]["jax"]
    with Image.open(workdir / "samples.png") as sheet:
        assert min(sheet.size) > 400 and len(sheet.convert("L").getcolors() or range(257)) > 100


def test_the_story_in_the_log(finished):
    workdir, results = finished
    told = events(workdir)
    train = [event for event in told if event["split"] == "train"]
    # 20 steps in two stages; a window closes every 4 steps, and where an evaluation or a save waits for the device.
    assert [(e["step"], e["stage"]) for e in train if e["step"] in (10, 20)] == [(10, "coarse"), (20, "fine")]
    assert {"loss", "coarse/loss", "coarse/top_1_accuracy", "center_loss", "learning_rate"} <= train[0].keys()
    assert "fine/loss" not in train[0] and {"fine/loss", "gradient/attention_by_box"} <= train[-1].keys()
    assert all(0.0 <= e["input_wait"] <= 1.0 for e in train)
    assert all(np.isfinite(value) for e in train for value in e.values() if not isinstance(value, str))
    validation = [(e["step"], e["stage"]) for e in told if e["split"] == "validation"]
    assert validation == [(5, "coarse"), (10, "coarse"), (15, "fine"), (20, "fine")]
    (test,) = [event for event in told if event["split"] == "test"]
    assert test["fused/loss"] == results["fused/loss"]


def test_evaluating_the_checkpoint_gives_the_same(finished, capsys):
    workdir, results = finished
    again = evaluate_checkpoint(tiny_config(), workdir)
    assert again == {name: results[name] for name in again} and len(again) == 33
    before = sorted(path.name for path in workdir.iterdir())
    assert cli.main(["--mode=eval", f"--workdir={workdir}"]) == 0
    assert "fused" in capsys.readouterr().out
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_a_second_look_that_sees_the_first_one_again_is_told(finished, capsys):
    workdir, _ = finished
    evaluate_checkpoint(tiny_config(), workdir)  # whose sides are at most 0.48 of the first look's
    assert "covers" not in capsys.readouterr().out
    wide = {"region__min_side": 0.99, "region__max_side": 1.0}
    share = evaluate_checkpoint(tiny_config(**wide), workdir)["box/share_of_view"]
    assert 0.98 <= share <= 1.0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith(f"the second look covers {share:.0%} of the first") and "background=1.0" in told
    evaluate_checkpoint(tiny_config(**wide, region__background=1.0), workdir)
    assert capsys.readouterr().out.splitlines()[-1].endswith("train with --config.region.max_side=0.7")
    evaluation.tell_test(tiny_config(region__side=0.95), "test", {"box/share_of_view": 0.95})
    assert capsys.readouterr().out.splitlines()[-1].endswith("train with --config.region.side=0.4")


def test_a_finished_run_is_not_trained_again(finished):
    workdir, results = finished
    before = events(workdir)
    again = train_and_evaluate(tiny_config(), workdir)
    assert again["fused/loss"] == results["fused/loss"]
    assert events(workdir) == before


@pytest.mark.parametrize("method", ["baseline", "attention", "wsdan"])
def test_other_methods(method, tmp_path):
    results = train_and_evaluate(tiny_config(method=method, stages__coarse_epochs=0.5), tmp_path / method)
    assert np.isfinite(results["coarse/loss"]) and results["step"] == 5
    assert ("fused/loss" in results) == (method != "baseline")


def test_pmap_leaves_what_jit_leaves(finished, tmp_path):
    """End to end; that the numbers agree is shown in test_devices.py."""
    _, results = finished
    config = tiny_config(method="attention", parallel__backend="pmap", stages__coarse_epochs=0.5)
    other = train_and_evaluate(config, tmp_path / "pmap")
    assert other.keys() == results.keys() and np.isfinite(other["fused/loss"])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys, monkeypatch):
    config = tiny_config(optimizer__name="sgd", optimizer__clip_norm=0.0)
    monkeypatch.setattr(cli, "load_config", lambda path: config)
    # More than a config may ask for.
    monkeypatch.setattr(methods, "make_schedule", lambda *args, **settings: lambda step: 1e30)
    assert cli.main([f"--workdir={tmp_path / 'run'}"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "not finite at step" in line and "of the interval 0 to" in line and "coarse/loss" in line
    assert "--config.optimizer.learning_rate" in line
    assert not (tmp_path / "run" / "results.json").exists()
