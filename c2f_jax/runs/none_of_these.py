"""`unknown.json`: the probability of the best class below which a run's predictions are marked as none of its classes.

Fitted on the validation part, so that a stated share of it is kept; the test part only tells how that turned out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from c2f_jax import storage
from c2f_jax.errors import UserError
from c2f_jax.evaluation.confidence import SHARE, fit_threshold, kept
from c2f_jax.evaluation.fusion import Fusion, calibrated, right_answers
from c2f_jax.evaluation.scores import Scores
from c2f_jax.runs.workdir import write_json

FILE = "unknown.json"
BEFORE = Fusion()  # what a file that does not say was fitted with


def _sureness(values: np.ndarray) -> np.ndarray:
    return np.exp(values.max(axis=-1).astype(np.float64))


def confidence_and_right(scores: Scores, fusion: Fusion) -> tuple[np.ndarray, np.ndarray]:
    """Of each image, the probability of the answer's best class, and whether that is the true one."""
    answers = np.asarray(calibrated(scores.values, fusion))
    return _sureness(answers), right_answers(answers, scores.labels)


def fit(validation: Scores, test: Scores, *, fusion: Fusion, step: int) -> dict[str, Any]:
    """What `unknown.json` holds. fusion: what the probabilities are made with, for which alone the threshold is good.

    After two looks also the threshold of the first look alone, and how sure the validation images are by each of the
    two ways: what a threshold for answers of either kind, side by side, is fitted on when it is asked for.
    """
    confidence, right = confidence_and_right(validation, fusion)
    threshold = fit_threshold(confidence)
    fitted: dict[str, Any] = {"threshold": threshold, "share": SHARE, "step": step, **fusion._asdict()}
    fitted["validation"] = kept(confidence, right, threshold)
    fitted["test"] = kept(*confidence_and_right(test, fusion), threshold) if len(test) else {"images": 0}
    if "fine" in validation.values:
        coarse = _sureness(np.asarray(calibrated({"coarse": validation.values["coarse"]}, fusion)))
        fitted["coarse_threshold"] = fit_threshold(coarse)
        fitted["confidences"] = {"both": confidence.tolist(), "coarse": coarse.tolist()}
    return fitted


def write(workdir: Path, fitted: Mapping[str, Any]) -> None:
    """Stores what `fit` returned."""
    write_json(workdir / FILE, fitted)


def read_threshold(
    workdir: Path, step: int, fusion: Fusion | None, *, fast: bool = False, gate: float | None = None
) -> float:
    """The threshold that was fitted for the checkpoint of `step`, and for answers as they are made.

    Args:
        workdir: the run's.
        step: of the checkpoint.
        fusion: what the probabilities are made with; None for the plain average.
        fast: they are of the first look alone.
        gate: they are of the first look alone where that is at least so sure.

    Raises:
        UserError: if there is none, or it was fitted for other probabilities.
    """
    path = workdir / FILE
    anew = "the training command once more writes it anew"
    try:
        fitted = json.loads(storage.read_text(path))
        threshold, of = float(fitted["threshold"]), int(fitted["step"])
        made_with = Fusion(*(float(fitted.get(name, value)) for name, value in BEFORE._asdict().items()))
        two = "confidences" in fitted
        if fast and two:
            threshold = float(fitted["coarse_threshold"])
        elif gate is not None and two:
            coarse, both = (np.array(fitted["confidences"][name], float) for name in ("coarse", "both"))
            threshold = fit_threshold(np.where(coarse < gate, both, coarse))
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir} holds no threshold for unknown images ({FILE}), which the end of a training with a validation "
            "part writes; a finished run of an earlier version gets one by its training command once more"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); {anew}") from error
    if of != step:
        raise UserError(f"{path} is of step {of}, the last checkpoint of step {step}: let the training end")
    # Of an earlier version, which knew the plain average alone: the first look's own probabilities are not those.
    if made_with != (fusion or BEFORE) or (not two and "weight" not in fitted and (fast or gate is not None)):
        raise UserError(f"{path} was fitted for other probabilities than these; {anew}")
    return threshold


def told(figures: Mapping[str, float], threshold: float, what: str) -> str:
    """A line on how many images of a part are kept, and how many of those are right."""
    if not figures["images"]:
        return f"{what}: no images"
    right = f", of which {figures['accuracy_kept']:.2%} are right" if "accuracy_kept" in figures else ""
    return (
        f"{what}: at a probability of {threshold:.4f} or more {figures['share_kept']:.2%} of {figures['images']:.0f} "
        f"images are kept{right} (of all {figures['accuracy']:.2%}); the others are unknown"
    )
