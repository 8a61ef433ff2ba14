"""What a bundle is measured against: the trained model with its own preprocessing and labels, and its known accuracy.

The trained model never sees what the bundle's preprocessing makes of an image: a bundle that was edited would mislead
both sides alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle, Preprocessing
from cpt_deploy.bundle.integrity.consistency import preprocessing_differences
from cpt_deploy.validation.accuracy.statistics import Proportion, wilson_interval
from cpt_deploy.validation.comparison import Logits

Inputs = npt.NDArray[np.float32]

TrainedModel = Callable[[Inputs], Logits]
"""Maps normalised images, float32 (N, C, H, W), to logits, float32 (N, K)."""

TRAINED_TEST = "trained_test"
"""The fact in a bundle's config.json that says on how many samples, of which content, its accuracy was measured."""

RECORDED_POINTS, RECORDED_SAMPLES = 0.5, 2
"""Points, or samples where they are more, by which a second measurement of the trained model may differ from the first.

Another device or batch size sums floats in another order, which moves some codes and with them a few labels.
"""


@dataclass(frozen=True)
class RecordedAccuracy:
    """The accuracy of a trained model as training measured it.

    Args:
        accuracy: Share of right labels, 0 to 1.
        samples: Of how many.
        dataset: Name of the data set.
        dataset_sha256: Digest of its content; `None` if it was not taken.
    """

    accuracy: float
    samples: int
    dataset: str
    dataset_sha256: str | None = None

    def is_of(self, dataset: str, sha256: str, samples: int) -> bool:
        """Return whether it was measured on the same samples."""
        same = dataset == self.dataset if self.dataset_sha256 is None else sha256 == self.dataset_sha256
        return same and samples == self.samples


@dataclass(frozen=True, eq=False)
class Reference:
    """A trained model.

    Args:
        model: From inputs to logits.
        preprocessing: From images to inputs, as the model was trained.
        classes: Names of its classes, in the order of its logits.
        source: Where these are from, for messages: "the run", say.
        recorded: Its known accuracy.
    """

    model: TrainedModel
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    source: str = "the run"
    recorded: RecordedAccuracy | None = None

    def differences(self, bundle: Bundle) -> list[str]:
        """Say in what a bundle is not what was trained, as sentences."""
        found = preprocessing_differences(bundle.preprocessing, self.preprocessing, self.source)
        if self.classes != bundle.labels:
            pairs = list(zip(bundle.labels, self.classes, strict=False))
            served, trained = next((pair for pair in pairs if pair[0] != pair[1]), (len(bundle.labels), len(pairs)))
            found.append(f"labels.txt is not as in {self.source}: {served!r} instead of {trained!r}")
        return found


def recorded_accuracy(bundle: Bundle) -> RecordedAccuracy | None:
    """Return the accuracy of the trained model as a bundle says it; `None` if it does not."""
    facts = bundle.facts
    try:
        test = facts[TRAINED_TEST]
        digest = test["sha256"]
        return RecordedAccuracy(
            float(facts["trained_accuracy"]),
            int(test["samples"]),
            str(facts["dataset"]),
            None if digest is None else str(digest),
        )
    except (KeyError, TypeError, ValueError):
        return None


def recorded_loss(recorded: RecordedAccuracy, served: Proportion) -> tuple[float, float]:
    """Return the interval of what was lost since a recorded accuracy, where single answers are not known any more.

    R. Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
    methods", Statistics in Medicine 17 (1998), 873-890, method 10. Answers to the same samples agree more than by
    chance, so the interval is wider than one of pairs would be.

    Args:
        recorded: Of the trained model.
        served: Of what is served.
    """
    before = wilson_interval(round(recorded.accuracy * recorded.samples), recorded.samples)
    loss = before.value - served.value
    low = loss - float(np.hypot(before.value - before.low, served.high - served.value))
    high = loss + float(np.hypot(before.high - before.value, served.value - served.low))
    return low, high


def differs_from_recorded(recorded: RecordedAccuracy, measured: Proportion) -> bool:
    """Return whether a second measurement of a trained model is not the first one, beyond what rounding can do."""
    allowed = max(RECORDED_POINTS / 100 * recorded.samples, RECORDED_SAMPLES)
    return abs(measured.successes - recorded.accuracy * recorded.samples) > allowed + 1e-6
