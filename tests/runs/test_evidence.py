"""The table that teaches is made once, and read by whoever goes on."""

import json

import numpy as np
import pytest

from c2f_jax.errors import UserError
from c2f_jax.runs import evidence
from c2f_jax.runs.build import build
from c2f_jax.runs.loop import train_and_evaluate
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("taught")
    config = tiny_config(region__side=0.42, region__teach=1.0, region__box_gradient="mapping")
    return config, workdir, train_and_evaluate(config, workdir)


def test_a_run_is_taught_from_the_fine_stage_on(taught):
    config, workdir, results = taught
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    taught_at = [line["step"] for line in lines if "teaching_loss" in line]
    assert taught_at and min(taught_at) > 10 and results["box/mean_area"] == pytest.approx(0.42**2, rel=1e-4)
    table = np.load(workdir / evidence.FILE)
    assert table.shape == (80, evidence.GRID, evidence.GRID) and (table < 0).all() and table.std() > 0


def test_its_table_must_stay(taught, tmp_path):
    """A run that goes on reads it; made anew it would be another."""
    config, workdir, _ = taught
    run = build(config)
    table = evidence.evidence_of(run, workdir, None)
    with pytest.raises(UserError, match="start another, with another --workdir"):
        evidence.evidence_of(run, tmp_path, None)
    (tmp_path / evidence.FILE).write_bytes((workdir / evidence.FILE).read_bytes()[:-8])
    with pytest.raises(UserError, match=f"{evidence.FILE} cannot be read"):
        evidence.evidence_of(run, tmp_path, None)
    np.save(tmp_path / evidence.FILE, table[1:])
    with pytest.raises(UserError, match="79, 12, 12"):
        evidence.evidence_of(run, tmp_path, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"region__side": 0.0}, r"region.side=0\.4"),
        ({"region__box_gradient": "none"}, "mapping or all"),
        ({"model__backbone": "vit_small_patch16"}, "views of one size only"),
        ({"augment__mixup": 0.2}, "two photos in one"),
    ],
)
def test_what_cannot_be_taught_is_refused(tmp_path, overrides, message):
    config = tiny_config(**{"region__side": 0.4, "region__teach": 1.0, **overrides})
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path / "run")
