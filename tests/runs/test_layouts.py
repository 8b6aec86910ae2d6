"""Runs that earlier versions of the program made stay usable, and give the figures those versions gave.

`earlier/run` is a finished run of two stages, trained by the first version that had a command line (2eb2fb2; 10 steps,
32 px views). Each later version that changed what a config holds had its own `--mode=eval` look at this checkpoint
under a config of its own, with its new field at another value than the default where evaluation heeds it.
`layouts.json` has these configs as they were written, the figures, and the commit. Whoever adds or takes away a field
adds an entry.
"""

import json
import shutil
from pathlib import Path

import jax
import pytest

from c2f_jax.errors import UserError
from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import read
from c2f_jax.runs.evaluation import evaluate_checkpoint
from c2f_jax.runs.loop import train_and_evaluate
from c2f_jax.runs.workdir import BEFORE, FIELDS, GONE, check_workdir, read_class_names, read_config
from configs import default

EARLIER = Path(__file__).parent / "earlier"
LAYOUTS = json.loads((EARLIER / "layouts.json").read_text())


def fields(config):
    flat = {}
    for name, value in config.items():
        flat |= {f"{name}.{field}": v for field, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


@pytest.fixture(params=LAYOUTS)
def workdir(request, tmp_path):
    """(the run under an earlier version's config, the figures that version gave)."""
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    layout = LAYOUTS[request.param]
    (tmp_path / "run" / "config.json").write_text(json.dumps(layout["config"]))
    return tmp_path / "run", layout["figures"]


def test_each_gives_the_figures_of_its_own_version(workdir):
    folder, figures = workdir
    found = evaluate_checkpoint(read_config(folder), folder)
    assert len(figures) >= 16 and {name: found[name] for name in figures} == pytest.approx(figures, abs=2e-5)


def test_each_can_be_gone_on_with(workdir):
    """By the config that says today what the program did then, and by no other."""
    folder, _ = workdir
    config = default.get_config()
    for name, value in fields(read_config(folder).to_dict()).items():
        group, _, field = name.rpartition(".")
        if name not in GONE:
            (config[group] if group else config)[field] = value
    assert check_workdir(folder, config, read_class_names(folder)) == ()
    config.region.floor += 0.05
    with pytest.raises(UserError, match=r"region.floor: [\d.]+ there, [\d.]+ now"):
        check_workdir(folder, config, read_class_names(folder))


def test_the_oldest_state_goes_on(tmp_path):
    """All of it is restored, the optimiser's too, and the test part measured as that version did."""
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    layout = LAYOUTS["01_first"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(layout["config"]))
    config = read_config(tmp_path / "run")
    run = build(config)
    state = read(tmp_path / "run", 10, run.abstract_state(10))
    assert int(state.step) == 10 and len(jax.tree.leaves(state.opt_state)) == 42
    results = train_and_evaluate(config, tmp_path / "run")
    assert {name: results[name] for name in layout["figures"]} == pytest.approx(layout["figures"], abs=2e-5)


def test_a_value_of_a_field_that_is_gone_is_not_trained_on(tmp_path):
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    layout = LAYOUTS["09_jitter"]["config"]
    assert layout["region"]["jitter"] == 0.0
    layout["region"]["jitter"] = 0.5
    (tmp_path / "run" / "config.json").write_text(json.dumps(layout))
    config = read_config(tmp_path / "run")
    del config.region.jitter
    with pytest.raises(UserError, match=r"region.jitter: 0.5 there, 0.0 now"):
        check_workdir(tmp_path / "run", config, read_class_names(tmp_path / "run"))


def test_every_field_says_what_was_before_it():
    """All versions together have had these fields; the first one's need no word, all others have one."""
    first = set(fields(LAYOUTS["01_first"]["config"]))
    now = {f"{group}.{name}" if group else name for group, names in FIELDS.items() for name in names}
    assert set(BEFORE) == now - first
    assert set(GONE) == {name for layout in LAYOUTS.values() for name in fields(layout["config"])} - now
    assert now == set(fields(default.get_config().to_dict()))
    assert set(fields(LAYOUTS[max(LAYOUTS)]["config"])) == now, "a field was added or taken away: add its layout"
