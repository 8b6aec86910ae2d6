"""A training whose numbers stop being finite: how that is told, and which of its checkpoints are still good.

Parameters become huge before they become infinite, and a checkpoint may be saved in between. What is saved at step c
has the parameters that the loss of step c is computed with: it is good if that loss was of a usual size. And while
losses are not, nothing is saved, since it would take the place of what is good.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2f_jax import program
from c2f_jax.runs.checkpoint import Checkpoints

# Times the cross-entropy of a guess, log(classes). Networks begin with up to 5; one that explodes has thousands.
USUAL = 30.0


class Watch:
    """Looks at the loss of every step.

    Attributes:
        calm: the last step whose loss was of a usual size; before there is one, that before the start.
    """

    def __init__(self, config: Any, workdir: Path, checkpoints: Checkpoints, *, classes: int, start: int):
        """checkpoints: of the run in `workdir`; classes: how many; start: the step that it begins or goes on at."""
        self.calm = start - 1
        self._wild = False
        self._config, self._workdir, self._checkpoints = config, workdir, checkpoints
        self._bound = USUAL * math.log(max(2, classes))

    def means(self, window: Sequence[dict[str, jax.Array]], last_step: int) -> dict[str, float]:
        """Of the metrics over the steps of a logging window that ends before `last_step`.

        Raises:
            FloatingPointError: if a term of the loss is not finite in any of its steps.
        """
        rows = jax.device_get(list(window))
        first_step = last_step - len(rows)
        for step, row in enumerate(rows, first_step):
            terms = [name for name, value in row.items() if not np.isfinite(value)]
            if terms:
                raise FloatingPointError(
                    f"the loss is not finite at step {step} "
                    f"(of the interval {first_step} to {last_step - 1}): {', '.join(terms)}{self.remedy()}"
                )
            if max(float(value) for name, value in row.items() if name.endswith("/loss")) <= self._bound:
                self.calm = step
            else:
                self._wild = True
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def settled(self) -> bool:
        """Whether all losses since the last call were of a usual size: then a checkpoint is worth its place."""
        wild, self._wild = self._wild, False
        return not wild

    def remedy(self) -> str:
        """What to do now; checkpoints that are no longer good are set aside first. All processes call it."""
        aside = self._checkpoints.set_aside_after(self.calm)
        optimizer = self._config.optimizer
        smaller = f"--config.optimizer.learning_rate={optimizer.learning_rate / 4:g}"
        there = program.flag("workdir", f"{self._workdir}_2")
        if self._checkpoints.latest_step() is None:
            return (
                f"{aside}; start again in another folder, with smaller steps: {there} {smaller} "
                f"(or --config.optimizer.clip_norm={optimizer.clip_norm / 4 if optimizer.clip_norm else 5.0:g})"
            )
        start = program.flag("config.init_from", self._workdir)
        return f"{aside}; from its last checkpoint, in another folder, with smaller steps: {start} {there} {smaller}"
