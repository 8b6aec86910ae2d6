"""How much each look counts and how sure to be: a weight and temperatures, fitted on images that were not trained on.

The two looks' probabilities are averaged with a weight, and the average is sharpened or softened by a temperature:
``p ~ (w p_coarse + (1 - w) p_fine)^(1 / T)``, normalised. With w = 1/2 and T = 1 that is the plain average. The first
look alone has a temperature of its own.

References: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599 (temperature); Platt, Probabilistic
Outputs for Support Vector Machines, 1999, section 2.2 (targets that are not quite 0 and 1, against overfitting).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from c2f_jax.evaluation.classification import classification_sums
from c2f_jax.evaluation.metrics import finalise
from c2f_jax.evaluation.scores import Scores

COLDEST, HOTTEST = 0.05, 20.0  # limits of a temperature: reached where no image is right, or as good as all by far
MOST = 20_000  # images to fit three numbers on; of more, evenly spaced ones
CURVE = 20  # steps of the gate's curve


class Fusion(NamedTuple):
    """What makes the answer of what the looks say.

    Attributes:
        weight: of the first look, 0 to 1; 1 where there is no second.
        temperature: of both together; below 1 sharpens.
        coarse_temperature: of the first look alone.
    """

    weight: float = 0.5
    temperature: float = 1.0
    coarse_temperature: float = 1.0


def calibrated(values: dict[str, Any], fusion: Fusion) -> jax.Array:
    """The answer's log probabilities, of both looks or, where `values` hold no "fine", of the first alone.

    Args:
        values: log probabilities [..., C] by view.
        fusion: weight and temperatures.

    Returns:
        [..., C].
    """
    if "fine" not in values:
        return jax.nn.log_softmax(values["coarse"] / fusion.coarse_temperature, axis=-1)
    coarse, fine = (math.log(weight) if weight > 0.0 else -math.inf for weight in (fusion.weight, 1.0 - fusion.weight))
    mixed = jnp.logaddexp(values["coarse"] + coarse, values["fine"] + fine)
    return jax.nn.log_softmax(mixed / fusion.temperature, axis=-1)


def fit(scores: Scores) -> Fusion:
    """The least negative log likelihood, in float64, guarded where images are few.

    The true class is not taken for certain: of n images it counts (n + 1) / (n + 2), the likeliest other class the
    rest, as if two more images had been seen, one of them wrong. So sure of being right as n right images make one is
    as sure as it gets, and the temperature of a network that makes no mistake stays finite. Likewise the weight has two
    more images, one that only the first look sees and one that only the second sees: it is never 0 or 1.

    Args:
        scores: of one image or more, that the network was not trained on.
    """
    labels, rows = scores.labels, np.unique(np.linspace(0, len(scores) - 1, min(len(scores), MOST)).astype(int))
    labels = labels[rows]
    coarse = scores.values["coarse"][rows].astype(np.float64)
    coarse_temperature = _temperature(coarse, labels)
    if "fine" not in scores.values:
        return Fusion(1.0, coarse_temperature, coarse_temperature)
    fine = scores.values["fine"][rows].astype(np.float64)

    def loss(free: np.ndarray) -> float:
        weight, temperature = special.expit(free[0]), np.exp(free[1])
        mixed = np.logaddexp(coarse + special.log_expit(free[0]), fine + special.log_expit(-free[0]))
        return _loss(mixed, labels, temperature) - (np.log(weight) + np.log1p(-weight)) / len(labels)

    # Not convex in both together: from the best of several weights.
    starts = [np.array([special.logit(weight), 0.0]) for weight in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)]
    bounds = [(-20.0, 20.0), (np.log(COLDEST), np.log(HOTTEST))]
    found = optimize.minimize(loss, min(starts, key=loss), method="L-BFGS-B", bounds=bounds)
    return Fusion(float(special.expit(found.x[0])), float(np.exp(found.x[1])), coarse_temperature)


def _temperature(values: np.ndarray, labels: np.ndarray) -> float:
    found = optimize.minimize_scalar(
        lambda log: _loss(values, labels, np.exp(log)),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _loss(values: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Mean over images, of log probabilities [N, C] at a temperature against targets that are not quite certain."""
    count = len(labels)
    true = values[np.arange(count), labels]
    others = values.copy()
    others[np.arange(count), labels] = -np.inf
    target = (true * (count + 1) + others.max(axis=-1)) / (count + 2)
    return float(np.mean(special.logsumexp(values / temperature, axis=-1) - target / temperature))


def figures(values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`classification_sums` of log probabilities [N, C] as figures, e.g. `top_1_accuracy`; nothing of no image."""
    if not len(labels):
        return {}
    return finalise(classification_sums(jnp.asarray(values), jnp.asarray(labels), jnp.ones(len(labels), jnp.float32)))


def calibrated_scores(scores: Scores, fusion: Fusion) -> dict[str, np.ndarray]:
    """`calibrated` of all that was seen, the last, and after two looks `calibrated_coarse`, of the first; [N, C]."""
    result = {}
    if "fine" in scores.values:
        result["calibrated_coarse"] = np.asarray(calibrated({"coarse": scores.values["coarse"]}, fusion))
    return result | {"calibrated": np.asarray(calibrated(scores.values, fusion))}


def gate_curve(scores: Scores, fusion: Fusion) -> list[dict[str, float]]:
    """What a second look only for the images that the first is unsure of comes to.

    Args:
        scores: of two looks.
        fusion: what the answers are made with.

    Returns:
        From none to all of the images (but those of which the first look is as sure as can be): `gate`, the probability
        of its best class below which an image is looked at again; `second_looks`, the share of those;
        `top_1_accuracy` of the answers.
    """
    answers = calibrated_scores(scores, fusion)
    sure = np.exp(answers["calibrated_coarse"].max(axis=-1).astype(np.float64))
    right = {name: right_answers(values, scores.labels) for name, values in answers.items()}
    curve = []
    last = min(1.0, np.nextafter(sure.max(), 2.0))
    for gate in np.unique([0.0, *np.quantile(sure, np.linspace(0, 1, CURVE + 1)[1:-1]), last]):
        again = sure < gate
        accuracy = float(np.mean(np.where(again, right["calibrated"], right["calibrated_coarse"])))
        curve.append({"gate": float(gate), "second_looks": float(np.mean(again)), "top_1_accuracy": accuracy})
    return curve


def right_answers(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the true class alone is the likeliest, bool [N], of log probabilities [N, C]; not where one is NaN."""
    true = np.take_along_axis(values, labels[:, None], axis=-1)
    return (np.sum(values >= true, axis=-1) == 1) & ~np.isnan(values).any(axis=-1)
