"""How outputs of a model whose task is not known are scored: against those of its float form."""

from collections.abc import Mapping
from math import log10
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.errors import UsageError
from cpt_deploy.metric import MOST_DECIBELS, OWN_SQNR_DB, SQNR_DB
from cpt_deploy.validation.accuracy.agreement import Agreement, reals
from cpt_deploy.validation.accuracy.noninferiority import NonInferiority
from cpt_deploy.validation.accuracy.samples import Arrays, Scores
from cpt_deploy.validation.accuracy.scoring import Scoring


class SignalToNoise(Scoring):
    """Signal to quantization noise of all outputs of a model.

    The score is the squared error of a row, summed over its values, or that of a whole call if rows are not joined. An
    output of another shape than the float model's counts as if it were zeros. Targets are the numbers of the batches.

    Args:
        output: Name of an output, whose values are shown.
        truth: The outputs of the float model by the number of their batch, filled in while the samples are read.
        own: Whether these are the outputs of the quantized file itself, since no float model is given.
    """

    unit = "dB"

    def __init__(self, output: str, truth: Mapping[int, Arrays], *, own: bool) -> None:
        self.output, self.truth, self.own = output, truth, own
        self.metric = OWN_SQNR_DB if own else SQNR_DB
        self.agreement = None if own else Agreement()

    def scores(self, outputs: Arrays, targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the squared error of each row, float64 (N,)."""
        errors = np.zeros(len(targets))
        for name, wanted in self.truth[int(targets[0])].items():
            got = outputs[name]
            error = reals(wanted) - (reals(got) if got.shape == wanted.shape else 0.0)
            errors += np.square(error).reshape(len(targets), -1).sum(axis=1)
        return errors

    def value(self, scores: Scores) -> float:
        """Return the ratio in decibels, 200 at most."""
        outputs = [values for targets in scores.targets for values in self.truth[int(targets[0])].values()]
        signal, noise = sum(float(np.square(reals(values)).sum()) for values in outputs), float(scores.flat().sum())
        return MOST_DECIBELS if noise == 0 else min(MOST_DECIBELS, 10 * log10(max(signal, 1e-300) / noise))

    def see(self, served: Arrays, targets: npt.NDArray[Any]) -> None:
        """See `Scoring`: the agreement of each output."""
        if self.agreement is not None:
            self.agreement.add(self.truth[int(targets[0])], served)

    def judge(self, trained: Scores, served: Scores, allowed: float) -> NonInferiority:
        """Refuse to judge: how much noise matters is not known without a task.

        Raises:
            UsageError: Always.
        """
        raise UsageError("Expected no --max-drop for a model without a task, but got it")
