"""Weight and temperature: against searches by hand, and sane where there is next to nothing to fit them on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2f_jax.evaluation.fusion import (
    COLDEST,
    HOTTEST,
    Fusion,
    calibrated,
    calibrated_scores,
    figures,
    fit,
    gate_curve,
    right_answers,
)
from c2f_jax.evaluation.scores import Scores, batch_scores, joined
from c2f_jax.models.two_looks import Look


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1))


def drawn(count, *, coarse=1.0, fine=3.0, scale=1.0, classes=6, seed=0):
    """Two looks that see so much of the true class; `scale` makes both surer than that is worth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    values = {
        name: log_softmax(scale * (rng.normal(size=(count, classes)) + strength * np.eye(classes)[labels]))
        for name, strength in (("coarse", coarse), ("fine", fine))
    }
    values["fused"] = np.logaddexp(values["coarse"], values["fine"]) - np.log(np.float32(2.0))
    return Scores(values, labels)


def likelihood(scores, fusion):
    return figures(calibrated_scores(scores, fusion)["calibrated"], scores.labels)["loss"]


def test_a_half_and_one_are_the_plain_average():
    scores = drawn(50)
    np.testing.assert_allclose(calibrated(scores.values, Fusion()), scores.values["fused"], atol=1e-6)
    np.testing.assert_allclose(
        calibrated({"coarse": scores.values["coarse"]}, Fusion()), scores.values["coarse"], atol=1e-6
    )


def test_by_the_formula():
    scores, fusion = drawn(20), Fusion(0.3, 1.7, 0.6)
    coarse, fine = (np.exp(scores.values[name].astype(np.float64)) for name in ("coarse", "fine"))
    expected = (0.3 * coarse + 0.7 * fine) ** (1 / 1.7)
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(calibrated(scores.values, fusion)), expected, rtol=1e-5)
    alone = coarse ** (1 / 0.6)
    alone /= alone.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(calibrated_scores(scores, fusion)["calibrated_coarse"]), alone, rtol=1e-5)
    for weight, view in ((1.0, "coarse"), (0.0, "fine")):
        np.testing.assert_allclose(calibrated(scores.values, Fusion(weight)), scores.values[view], atol=1e-6)


@pytest.mark.parametrize("coarse", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_nothing_on_a_grid_is_more_likely(coarse, scale):
    scores = drawn(2000, coarse=coarse, scale=scale)
    fusion = fit(scores)
    best = min(
        likelihood(scores, Fusion(weight, temperature))
        for weight in np.linspace(0.02, 0.98, 9)
        for temperature in np.geomspace(0.1, 10.0, 17)
    )
    assert likelihood(scores, fusion) <= best + 2e-3  # the guard's price, of 2000 images
    alone = {"coarse": scores.values["coarse"]}
    best = min(
        likelihood(Scores(alone, scores.labels), Fusion(1.0, 1.0, temperature))
        for temperature in np.geomspace(0.1, 15.0, 25)
    )
    assert likelihood(Scores(alone, scores.labels), fusion) <= best + 2e-3


def test_a_blind_first_look_hardly_counts_and_calibration_gets_better_on_other_images():
    scores, others = drawn(1000, coarse=0.0, fine=4.0), drawn(4000, coarse=0.0, fine=4.0, seed=1)
    fusion = fit(scores)
    assert fusion.weight < 0.1
    plain = figures(others.values["fused"], others.labels)
    fitted = figures(calibrated_scores(others, fusion)["calibrated"], others.labels)
    assert plain["calibration_error"] > 0.2 > 0.05 > fitted["calibration_error"]
    assert fitted["loss"] < plain["loss"] - 0.2 and fitted["top_1_accuracy"] >= plain["top_1_accuracy"]


@pytest.mark.parametrize("count", [1, 2, 5, 27, 1000])
@pytest.mark.parametrize("kind", ["right", "wrong", "even", "far"])
def test_it_stays_sane(count, kind):
    """No mistake, nothing right, nothing known, or as sure as float32 goes: numbers that can be used."""
    labels = np.arange(count) % 3
    logits = {
        "right": 3.0 * np.eye(3)[labels],
        "wrong": 3.0 * np.eye(3)[(labels + 1) % 3],
        "even": np.zeros((count, 3)),
        "far": 1e4 * np.eye(3)[labels],
    }[kind]
    values = log_softmax(logits)
    fusion = fit(Scores({"coarse": values, "fine": values}, labels))
    assert 0.0 < fusion.weight < 1.0 and fusion.weight == pytest.approx(0.5, abs=1e-3)  # nothing tells the looks apart
    assert COLDEST <= fusion.temperature <= HOTTEST
    answers = np.exp(calibrated({"coarse": values, "fine": values}, fusion))
    assert np.all(np.isfinite(answers))
    if kind == "right":
        # As sure as so many right answers make one: Laplace's rule of succession.
        assert answers[0, labels[0]] == pytest.approx((count + 1) / (count + 2), abs=1e-3 / count)
    if kind == "wrong":
        assert fusion.temperature == pytest.approx(HOTTEST, rel=1e-3)


def test_one_look_has_a_temperature_alone():
    scores = drawn(300, scale=5.0)
    fusion = fit(Scores({"coarse": scores.values["coarse"]}, scores.labels))
    assert fusion.weight == 1.0 and fusion.temperature == fusion.coarse_temperature == fit(scores).coarse_temperature
    assert fusion.temperature > 2.0
    assert list(calibrated_scores(Scores({"coarse": scores.values["coarse"]}, scores.labels), fusion)) == ["calibrated"]


def test_the_gate_goes_from_no_second_look_to_all():
    scores = drawn(400)
    fusion = fit(scores)
    curve, answers = gate_curve(scores, fusion), calibrated_scores(scores, fusion)
    assert curve[0]["second_looks"] == 0.0 and curve[-1]["second_looks"] == 1.0
    shares = [point["second_looks"] for point in curve]
    np.testing.assert_allclose(shares[1:-1], np.arange(1, 20) / 20, atol=0.005)
    for point, view in ((curve[0], "calibrated_coarse"), (curve[-1], "calibrated")):
        assert point["top_1_accuracy"] == pytest.approx(figures(answers[view], scores.labels)["top_1_accuracy"])
    sure = np.exp(answers["calibrated_coarse"].max(axis=-1))
    middle = curve[10]
    assert np.mean(sure < middle["gate"]) == middle["second_looks"]
    rows = np.where((sure < middle["gate"])[:, None], answers["calibrated"], answers["calibrated_coarse"])
    assert middle["top_1_accuracy"] == np.mean(rows.argmax(axis=-1) == scores.labels)
    # All equally sure: one or the other.
    even = Scores({name: np.zeros_like(value) - np.log(6) for name, value in scores.values.items()}, scores.labels)
    assert [point["second_looks"] for point in gate_curve(even, fusion)] in ([0.0, 1.0], [0.0, 0.0, 1.0])


def test_right_means_likelier_than_all_others():
    values = np.log(np.array([[0.5, 0.5], [0.4, 0.6], [0.4, 0.6], [np.nan, 0.5]], np.float32))
    assert right_answers(values, np.array([0, 1, 0, 1])).tolist() == [False, True, False, False]


def test_scores_of_batches_are_joined_without_filling():
    def look(probabilities):
        return Look(None, None, jnp.log(jnp.asarray(probabilities)), {}, None)

    looks = {"coarse": look([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]]), "fine": look([[0.2, 0.8], [0.1, 0.9], [0.9, 0.1]])}
    batch = {"label": jnp.array([0, 1, 0]), "mask": jnp.array([1.0, 1.0, 0.0])}
    scores = joined([batch_scores(looks, batch)] * 2)
    np.testing.assert_allclose(np.exp(scores.values["fused"])[:, 0], [0.55, 0.3, 0.55, 0.3], atol=1e-6)
    assert scores.labels.tolist() == [0, 1, 0, 1] and len(scores) == 4
    assert len(joined([])) == 0
