"""`fusion.json`: how much each of a run's two looks counts, and the temperatures, for what reads the run.

Written once at the end of a training, from the validation part; evaluation and prediction apply it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2f_jax import storage
from c2f_jax.errors import UserError
from c2f_jax.evaluation.fusion import Fusion, calibrated_scores, figures, fit
from c2f_jax.evaluation.scores import Scores
from c2f_jax.runs.workdir import write_json

FILE = "fusion.json"
NOTHING = "nothing"  # in the place of a part's name

# Of the stored figures: what temperature and weight are for, and the accuracy, which a weight may change.
TOLD = ("top_1_accuracy", "loss", "calibration_error")


def fitted(validation: Scores, *, step: int) -> dict[str, Any]:
    """What `fusion.json` holds.

    Args:
        validation: of the validation part; without an image the looks count the same and stay as they are.
        step: of the parameters.
    """
    if not len(validation):
        return {**Fusion()._asdict(), "fitted_on": NOTHING, "images": 0, "step": step}
    fusion = fit(validation)
    answers = calibrated_scores(validation, fusion)
    views = {view: values for view, values in validation.values.items() if view != "fine"} | answers
    return {
        **fusion._asdict(),
        "fitted_on": "validation",
        "images": len(validation),
        "step": step,
        "validation": {
            view: {name: value for name, value in figures(values, validation.labels).items() if name in TOLD}
            for view, values in views.items()
        },
    }


def answers_of(found: Mapping[str, Any]) -> Fusion | None:
    """What `fitted` returned, as it is applied; None if there was nothing to fit it on."""
    return None if found["fitted_on"] == NOTHING else Fusion(*(float(found[name]) for name in Fusion._fields))


def write(workdir: Path, found: Mapping[str, Any]) -> None:
    """Stores what `fitted` returned."""
    write_json(workdir / FILE, found)


def read(workdir: Path, step: int) -> Fusion | None:
    """What was fitted for the checkpoint of `step`; None if nothing was.

    That is: a run of an earlier version, one that has not ended or had no validation part, or a checkpoint that is not
    the last. The looks' average is then taken as it is.

    Raises:
        UserError: if the file cannot be read, or holds other things.
    """
    path = workdir / FILE
    try:
        stored = json.loads(storage.read_text(path))
        fusion, of = answers_of(stored), int(stored["step"])
        if fusion and not (0.0 <= fusion.weight <= 1.0 and all(0.0 < value < math.inf for value in fusion[1:])):
            raise ValueError("a weight from 0 to 1 and temperatures above 0 are needed")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); the training command once more writes it anew") from error
    return fusion if of == step else None


def told(found: Mapping[str, Any]) -> str:
    """A line on what `fitted` returned."""
    if found["fitted_on"] == NOTHING:
        return "no validation part to fit weight and temperature on: the looks' average is taken as it is"
    temperature = f"temperature {found['temperature']:.3g}"
    if "calibrated_coarse" in found["validation"]:
        temperature = (
            f"weights {found['weight']:.2f} of the first look and {1.0 - found['weight']:.2f} of the second, "
            f"{temperature}; first look alone {found['coarse_temperature']:.3g}"
        )
    return f"fitted on {found['images']} validation images: {temperature}"
