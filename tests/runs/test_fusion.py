"""What a run's end fits and stores, where there is a validation part and where there is none; and reading it back."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.errors import UserError
from c2f_jax.evaluation.fusion import Fusion, fit
from c2f_jax.evaluation.scores import Scores, joined
from c2f_jax.runs import fusion, none_of_these, outcome

NAMES = ["a", "=b", "c"]


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    values = {
        view: np.array(jax.nn.log_softmax(jnp.asarray(rng.normal(size=(count, 3)) + much * np.eye(3)[labels])))
        for view, much in (("coarse", 1.0), ("fine", 3.0))
    }
    return Scores(values | {"fused": np.logaddexp(values["coarse"], values["fine"]) - np.log(2.0)}, labels)


def test_with_a_validation_part(tmp_path):
    validation, test = drawn(200), drawn(300, seed=1)
    found = outcome.of_run(validation, test, groups=[f"g{i // 3}" for i in range(300)], step=7)
    assert found.results["intervals"]["by"] == "group" and found.results["intervals"]["units"] == 100
    assert set(found.results["gate"]) == {"validation", "test"} and found.results["fusion"]["fitted_on"] == "validation"
    found.write(tmp_path, NAMES)
    assert fusion.read(tmp_path, 7) == fit(validation) and fusion.read(tmp_path, 6) is None
    assert none_of_these.read_threshold(tmp_path, 7, fit(validation)) == found.unknown["threshold"]
    for name in ("confusion.csv", "per_class.csv"):
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["class"] for row in rows] == ["a", "'=b", "c"]
    assert sum(int(row["right"]) for row in rows) == round(300 * found.figures["calibrated/top_1_accuracy"])
    json.dumps(found.results, allow_nan=False)


def test_without_one_the_looks_are_averaged_and_it_says_so(tmp_path):
    test = drawn(30)
    found = outcome.of_run(joined([]), test, groups=None, step=7)
    assert found.figures == {} and "gate" not in found.results and found.unknown is None
    assert found.results["fusion"] == {
        **{"weight": 0.5, "temperature": 1.0, "coarse_temperature": 1.0, "fitted_on": "nothing", "images": 0}
    }
    assert "fused/top_1_accuracy" in found.results["intervals"]["of"]
    assert np.array_equal(found.answers, test.values["fused"].argmax(axis=-1))
    (line,) = found.told()
    assert "no validation part" in line
    found.write(tmp_path, NAMES)
    assert fusion.read(tmp_path, 7) is None and (tmp_path / "fusion.json").exists()
    assert not (tmp_path / "unknown.json").exists()


def test_of_one_look(tmp_path):
    both = drawn(100)
    one = Scores({"coarse": both.values["coarse"]}, both.labels)
    found = outcome.of_run(one, one, groups=None, step=1)
    assert "gate" not in found.results and {name.split("/")[0] for name in found.figures} == {"calibrated"}
    found.write(tmp_path, NAMES)
    how = fusion.read(tmp_path, 1)
    assert how.weight == 1.0
    assert none_of_these.read_threshold(tmp_path, 1, how, fast=True) == found.unknown["threshold"]


def test_a_threshold_of_other_probabilities_is_refused(tmp_path):
    scores = drawn(100)
    outcome.of_run(scores, scores, groups=None, step=1).write(tmp_path, NAMES)
    with pytest.raises(UserError, match="fitted for other probabilities"):
        none_of_these.read_threshold(tmp_path, 1, None)  # fusion.json is gone, say
    stored = json.loads((tmp_path / "unknown.json").read_text())
    old = {name: stored[name] for name in ("threshold", "step")} | {"view": "fused", "share": 0.95}
    (tmp_path / "unknown.json").write_text(json.dumps(old))  # of an earlier version
    assert none_of_these.read_threshold(tmp_path, 1, None) == stored["threshold"]
    for how in ({"fast": True}, {"gate": 0.5}):
        with pytest.raises(UserError, match="fitted for other probabilities"):
            none_of_these.read_threshold(tmp_path, 1, None, **how)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight": 0.5, "temperature": 0.0, "coarse_temperature": 1, "fitted_on": "validation", "step": 1}',
        '{"weight": 1.5, "temperature": 1.0, "coarse_temperature": 1, "fitted_on": "validation", "step": 1}',
        '{"weight": NaN, "temperature": 1.0, "coarse_temperature": 1, "fitted_on": "validation", "step": 1}',
        '{"weight": "x", "temperature": 1.0, "coarse_temperature": 1, "fitted_on": "validation", "step": 1}',
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "fusion.json").write_text(text)
    with pytest.raises(UserError, match=r"fusion\.json cannot be read .* the training command once more"):
        fusion.read(tmp_path, 1)


def test_the_default_is_the_plain_average():
    assert Fusion() == Fusion(0.5, 1.0, 1.0)
