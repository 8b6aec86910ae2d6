"""A new run from the parameters of another one: what is taken is theirs to the bit, what is new is said."""

import json
import shutil

import jax
import numpy as np
import pytest

from c2f_jax import cli
from c2f_jax.errors import UserError
from c2f_jax.models.pretrained import save_weights
from c2f_jax.runs import loop
from c2f_jax.runs.build import build
from c2f_jax.runs.checkpoint import Checkpoints, latest_step, read, read_latest
from c2f_jax.runs.loop import train_and_evaluate
from c2f_jax.runs.workdir import check_workdir, read_class_names, read_config
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture
def source(finished):
    """(workdir, its config, the state of its last checkpoint)."""
    workdir = finished[0]
    run = build(tiny_config())
    return workdir, jax.device_get(read(workdir, 20, run.abstract_state(20)))


def started(source, capsys, **overrides):
    """(the new run's first state, what was said)."""
    state = build(tiny_config(init_from=str(source[0]), seed=5, **overrides)).create_state()
    (line,) = capsys.readouterr().out.splitlines()
    return jax.device_get(state), line


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_all_of_it(source, capsys):
    """With other stages, learning rate, optimiser and view size."""
    other = {"optimizer__name": "sgd", "stages__coarse_epochs": 0.0, "optimizer__learning_rate": 1e-4}
    state, line = started(source, capsys, **other, model__view_size=40)
    assert same(state.params, source[1].params) and same(state.batch_stats, source[1].batch_stats)
    assert same(state.centers, source[1].centers) and np.any(state.centers) and state.step == 0
    assert line == (f"from checkpoint 20 of {source[0]}: attention, backbone, head, inverse_mapping; new: nothing")


def test_other_classes_get_a_new_head(source, capsys, tmp_path):
    names = list(read_class_names(source[0]))
    for classes, said in ((names[:-1], "15 classes there, 16 here"), (names[::-1], "other classes")):
        there = tmp_path / str(len(classes))
        shutil.copytree(source[0], there, dirs_exist_ok=True)
        (there / "class_names.json").write_text(json.dumps(classes))
        if len(classes) < len(names):
            continue_from = _with_fewer_classes(there, source[1], len(classes))
            assert continue_from == 20
        state, line = started((there, None), capsys)
        assert line.endswith(f"attention, backbone, inverse_mapping; new: head ({said})")
        fresh = jax.device_get(build(tiny_config(seed=5)).create_state())
        assert same(state.params["head"], fresh.params["head"]) and not np.any(state.centers)
        for name in ("backbone", "attention", "inverse_mapping"):
            assert same(state.params[name], source[1].params[name])


def _with_fewer_classes(workdir, state, count):
    """Rewrites the last checkpoint as a run over `count` classes would have left it."""
    shutil.rmtree(workdir / "checkpoints")
    head = jax.tree.map(lambda leaf: leaf[..., :count], state.params["head"])
    state = state.replace(params={**state.params, "head": head}, centers=state.centers[:count])
    with Checkpoints(workdir, every_steps=1, at_steps=()) as checkpoints:
        checkpoints.save(20, state, {"seconds": 1.0})
    return latest_step(workdir)


@pytest.mark.parametrize(
    ("overrides", "new"),
    [
        ({"model__num_maps": 6}, "attention, head, inverse_mapping"),
        ({"method": "baseline"}, "head"),
        ({"model__feature_channels": 16}, "attention, head, inverse_mapping, project"),
    ],
)
def test_what_has_other_shapes_is_new(source, capsys, overrides, new):
    state, line = started(source, capsys, **overrides)
    assert f"; new: {new}" in line and same(state.params["backbone"], source[1].params["backbone"])
    assert same(state.batch_stats["fine"]["backbone"], source[1].batch_stats["fine"]["backbone"])


def test_it_goes_before_published_weights(source, capsys):
    state, _ = started(source, capsys, model__pretrained="nowhere.safetensors")
    assert same(state.params["backbone"], source[1].params["backbone"])


def test_a_whole_run_and_how_it_goes_on(source, tmp_path, capsys):
    """Going on needs the same command, and not the source."""
    there = tmp_path / "there"
    shutil.copytree(source[0], there)
    settings = {"stages__coarse_epochs": 0.5, "stages__fine_epochs": 0.0, "seed": 3}
    config = tiny_config(init_from=str(there), **settings)
    train_and_evaluate(config, tmp_path / "new")
    assert f"from checkpoint 20 of {there}" in capsys.readouterr().out
    shutil.rmtree(there)
    train_and_evaluate(config, tmp_path / "new")
    assert "from checkpoint 20 of" not in capsys.readouterr().out
    assert read_config(tmp_path / "new").init_from == str(there)
    with pytest.raises(UserError, match="init_from: .*there there,  now"):
        check_workdir(tmp_path / "new", tiny_config(**settings), read_class_names(tmp_path / "new"))


def test_a_broken_run_whose_last_parameters_are_no_numbers(source, tmp_path, capsys):
    """As versions before this one could leave it: the checkpoint before is used, and named."""
    there = tmp_path / "there"
    shutil.copytree(source[0], there)
    steps = sorted(int(path.name) for path in (there / "checkpoints").iterdir())
    state = read(there, steps[-1], build(tiny_config()).abstract_state(steps[-1]))
    broken = state.replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))
    shutil.rmtree(there / "checkpoints" / str(steps[-1]))
    with pytest.MonkeyPatch.context() as patch, Checkpoints(there, every_steps=1, at_steps=()) as checkpoints:
        patch.setattr("c2f_jax.runs.checkpoint.is_finite", lambda tree: True)
        checkpoints.save(steps[-1], broken, {"seconds": 1.0})
    new = build(tiny_config(init_from=str(there))).create_state()
    said = capsys.readouterr()
    assert f"from checkpoint {steps[0]} of" in said.out and "not finite" in said.err
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.device_get(new.params)))


@pytest.mark.parametrize(
    ("path", "overrides", "words"),
    [
        ("nowhere", {}, "nowhere holds no run"),
        ("~nobody_of_that_name", {}, "no home folder"),
        (None, {"model__backbone": "resnet18"}, "has the backbone resnet10_small, this run resnet18"),
    ],
)
def test_runs_that_cannot_be_begun_from(source, path, overrides, words, tmp_path, monkeypatch):
    config = tiny_config(init_from=str(source[0]) if path is None else path, **overrides)
    monkeypatch.setattr(loop, "build", lambda config: pytest.fail("data were asked for"))
    with pytest.raises(UserError, match=words):
        train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_of_another_backbone_are_told_before_data_are_asked_for(source, tmp_path, monkeypatch):
    model = source[1]
    save_weights(tmp_path / "w.safetensors", model.params, model.batch_stats)
    config = tiny_config(model__backbone="resnet18", model__pretrained=str(tmp_path / "w.safetensors"))
    monkeypatch.setattr(loop, "build", lambda config: pytest.fail("data were asked for"))
    with pytest.raises(UserError, match="are not those of resnet18"):
        train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_advice_of_a_run_that_broke_can_be_followed(tmp_path, capsys, monkeypatch):
    """To the letter, as it is printed."""
    sgd = {"optimizer__name": "sgd", "optimizer__clip_norm": 0.0, "optimizer__warmup_epochs": 0.0}
    config = tiny_config(**sgd, optimizer__learning_rate=1e-4, train__checkpoint_every_steps=2)
    workdir = tmp_path / "run"
    monkeypatch.setattr(cli, "load_config", lambda path: config.copy_and_resolve_references())
    from c2f_jax.runs import methods as methods

    ordinary = methods.make_schedule
    # A rate that is no number after five steps.
    nan = jax.numpy.nan
    monkeypatch.setattr(
        methods, "make_schedule", lambda *a, **k: lambda step: jax.numpy.where(step > 4, nan, ordinary(*a, **k)(step))
    )
    assert cli.main([f"--workdir={workdir}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not finite" in line and read_latest(workdir, build(config).abstract_model, finite=True)[0] >= 4
    monkeypatch.setattr(methods, "make_schedule", ordinary)
    flags = [word.rstrip(",;.") for word in line.split() if word.startswith("--")]
    assert len(flags) == 3 and cli.main([*flags, "--config.stages.fine_epochs=0"]) == 0
    said = capsys.readouterr().out
    assert f"from checkpoint {latest_step(workdir)} of {workdir}" in said
    assert read_config(tmp_path / "run_2").optimizer.learning_rate == pytest.approx(2.5e-5)
