"""The table that teaches is made once, and read by whoever goes on."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from c2f_jax.errors import UserError
from c2f_jax.models import backbones
from c2f_jax.models.convnext import ConvNeXt
from c2f_jax.runs import evidence
from c2f_jax.runs.build import build
from c2f_jax.runs.held_out import FILE, changed_parts, remember_parts
from c2f_jax.runs.loop import train_and_evaluate
from tests.tiny import tiny_config

TEACHING = {"region__side": 0.42, "region__teach": 1.0, "region__box_gradient": "mapping"}


def taught_at(workdir):
    """The steps up to which logged steps were taught, and those of all."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    return [line["step"] for line in steps if "teaching_loss" in line], [line["step"] for line in steps]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, finished):
    workdir = tmp_path_factory.mktemp("taught")
    config = tiny_config(init_from=str(finished[0]), **TEACHING)
    return config, workdir, train_and_evaluate(config, workdir)


def test_a_table_teaches_the_coarse_stage_and_second_looks_the_fine_one(taught):
    _, workdir, results = taught
    steps, of_all = taught_at(workdir)
    assert steps == of_all and results["box/mean_area"] == pytest.approx(0.42**2, rel=1e-4)
    table = np.load(workdir / evidence.FILE)
    assert table.shape == (80, evidence.GRID, evidence.GRID) and (table < 0).all() and table.std() > 0


def test_new_weights_can_tell_no_places(tmp_path):
    """From scratch there is no table: only second looks teach."""
    train_and_evaluate(tiny_config(**TEACHING), tmp_path)
    steps, of_all = taught_at(tmp_path)
    assert steps == [step for step in of_all if step > 10] and not (tmp_path / evidence.FILE).exists()


def test_its_table_must_stay(taught, tmp_path):
    """A run that goes on reads it; made anew it would be another."""
    config, workdir, _ = taught
    run = build(config)
    table = evidence.evidence_of(run, workdir, None)
    with pytest.raises(UserError, match="No such file .* restore it, or start another, with another --workdir"):
        evidence.evidence_of(run, tmp_path, None)
    (tmp_path / evidence.FILE).write_bytes((workdir / evidence.FILE).read_bytes()[:-8])
    with pytest.raises(UserError, match=f"{evidence.FILE} cannot be read"):
        evidence.evidence_of(run, tmp_path, None)
    np.save(tmp_path / evidence.FILE, table[1:])
    with pytest.raises(UserError, match="79, 12, 12"):
        evidence.evidence_of(run, tmp_path, None)


def test_whoever_begins_makes_it(tmp_path, monkeypatch):
    """Of the weights that are there, whatever another beginning has left; a backbone without statistics can, too."""
    monkeypatch.setitem(backbones._CONSTRUCTORS, "convnext_tiny", (partial(ConvNeXt, (1, 1), (8, 16)), {8: {}}))
    run = build(tiny_config(model__backbone="convnext_tiny", **TEACHING))
    np.save(tmp_path / evidence.FILE, np.zeros((3, 12, 12), np.float32))
    table = evidence.evidence_of(run, tmp_path, run.create_state())
    assert table.shape == (80, 12, 12) and table.std() > 0
    np.testing.assert_array_equal(evidence.evidence_of(run, tmp_path, None), table)


def of_photos(folder, **settings):
    """A config that teaches two classes of 12 photos each in `folder`."""
    for name in ("owl", "wren"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.full((40, 40, 3), 10 * i + (name == "owl"), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"b{i // 3}_{i}.png")
    config = tiny_config(train__batch_size=4, train__eval_batch_size=4, **TEACHING)
    settings |= {"name": "folder", "path": str(folder / "photos"), "cache_dir": str(folder)}
    config.dataset.update(settings | {"train_size": None, "test_size": None})
    return config


def test_a_table_of_other_photos_teaches_nothing(tmp_path):
    """As many of the same classes, one of them another: its row would tell where to look in a photo that is gone."""
    config = of_photos(tmp_path)
    run = build(config)
    remember_parts(tmp_path, run.splits, run.photos)
    np.save(tmp_path / evidence.FILE, np.zeros((len(run.labels), 12, 12), np.float32))
    assert evidence.evidence_of(run, tmp_path, None).shape == (len(run.labels), 12, 12)
    one = tmp_path / "photos" / run.splits.train[0]["name"]
    one.rename(one.with_name("another.png"))
    with pytest.raises(UserError, match="training photos have changed since .* put them back .* another --workdir"):
        evidence.evidence_of(build(config), tmp_path, None)
    told = changed_parts(tmp_path, run.splits, run.photos), changed_parts(tmp_path, run.splits, build(config).photos)
    assert told[0] == "" and "training photos have changed" in told[1]
    (tmp_path / FILE).unlink()  # a run of an earlier version has not told which they were
    assert evidence.evidence_of(run, tmp_path, None).shape == (len(run.labels), 12, 12)


def test_groups_that_no_split_divides_reach_it(tmp_path, monkeypatch):
    run, given = build(of_photos(tmp_path, group_by=r"\w+/b\d")), {}
    assert len(run.groups) == len(run.labels) and all(run.groups.count(one) == 3 for one in run.groups)

    def held_out(features, labels, **settings):
        given.update(settings)
        return np.zeros((len(labels), evidence.GRID**2))

    monkeypatch.setattr(evidence, "held_out", held_out)
    monkeypatch.setattr(evidence, "features_of", lambda run, state: None)
    evidence.evidence_of(run, tmp_path, object())
    assert given == {"classes": 2, "groups": run.groups}


def test_a_table_without_numbers_is_not_written(tmp_path):
    with pytest.raises(UserError, match="is not finite, and teaches nothing: take other weights"):
        evidence._write(tmp_path / evidence.FILE, np.full((2, 12, 12), np.nan, np.float32))
    assert not list(tmp_path.iterdir())


def test_features_beyond_the_room_are_asked_for_again():
    values, asked = np.arange(60, dtype=np.float16).reshape(10, 3, 2), []

    def features(photos):
        asked.append(len(photos))
        return (values[photos[begin : begin + 4]] for begin in range(0, len(photos), 4))

    every, few = np.arange(10), np.array([7, 1, 2, 8, 0])
    for room, times in ((values.nbytes, [10]), (values.nbytes - 1, [10, 5, 10])):
        kept = evidence.Kept(features, 10, room=room)
        for photos in (every, few, every):
            np.testing.assert_array_equal(np.concatenate(list(kept(photos))), values[photos])
        assert asked == times
        asked.clear()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"region__side": 0.0}, r"region.side=0\.4, or set --config.region.teach=0\.0"),
        ({"region__box_gradient": "none"}, "mapping or all"),
        ({"region__box_gradient": "mapping", "optimizer__region_factor": 0.0}, "leaves region.teach nothing to teach"),
        ({"stages__fine_epochs": 0.0}, "new weights can tell no places in the coarse stage"),
        ({"model__backbone": "vit_small_patch16"}, "views of one size only"),
        ({"augment__mixup": 0.2}, "two photos in one"),
    ],
)
def test_what_cannot_be_taught_is_refused(tmp_path, overrides, message):
    config = tiny_config(**{"region__side": 0.4, "region__teach": 1.0, **overrides})
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path / "run")


@pytest.mark.parametrize("method", ["baseline", "attention", "wsdan", "random_box"])
def test_other_methods_have_nothing_to_teach(method):
    """So what a shipped config says of it is no obstacle to them."""
    build(tiny_config(method=method, region__side=0.4, region__teach=1.0, augment__mixup=0.2))
    build(tiny_config(method=method, region__side=0.4, region__teach=1.0, region__box_gradient="none"))
    build(tiny_config(method=method, region__side=0.0, region__teach=1.0))
