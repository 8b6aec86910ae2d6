"""`unknown.json`: the probability of the best class below which a run's predictions are marked as none of its classes.

Fitted on the validation part, so that a stated share of it is kept; the test part only tells how that turned out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from c2f_jax.errors import UserError
from c2f_jax.evaluation.confidence import SHARE, fit_threshold, kept
from c2f_jax.runs.workdir import write_json

FILE = "unknown.json"

Known = tuple[np.ndarray, np.ndarray]  # confidence and right, of `confidence.joined`


def fit(validation: Known, test: Known, *, view: str, step: int) -> dict[str, Any]:
    """What `unknown.json` holds. view: whose probability it is."""
    threshold = fit_threshold(validation[0])
    parts = {name: kept(*part, threshold) for name, part in (("validation", validation), ("test", test))}
    return {"threshold": threshold, "view": view, "share": SHARE, "step": step, **parts}


def write(workdir: Path, fitted: Mapping[str, Any]) -> None:
    """Stores what `fit` returned."""
    write_json(workdir / FILE, fitted)


def read_threshold(workdir: Path, step: int) -> float:
    """The threshold that was fitted for the checkpoint of `step`.

    Raises:
        UserError: if there is none.
    """
    path = workdir / FILE
    try:
        fitted = json.loads(path.read_text())
        threshold, of = float(fitted["threshold"]), int(fitted["step"])
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir} holds no threshold for unknown images ({FILE}), which the end of a training with a validation "
            "part writes; a finished run of an earlier version gets one by its training command once more"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); the training command once more writes it anew") from error
    if of != step:
        raise UserError(f"{path} is of step {of}, the last checkpoint of step {step}: let the training end")
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
