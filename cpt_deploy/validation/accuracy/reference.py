"""The reference of a validation: the trained model with its own preprocessing and labels, and its recorded accuracy.

The trained model never reads inputs from the bundle's preprocessing: an edited bundle would then affect both sides
alike and go unnoticed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle, ImageProcessor, Preprocessing
from cpt_deploy.bundle.processors.image_processor import preprocessing_differences
from cpt_deploy.validation.accuracy.statistics import Proportion, wilson_interval
from cpt_deploy.validation.comparison import Logits

Inputs = npt.NDArray[np.float32]

TrainedModel = Callable[[Inputs], Logits]
"""Maps normalised images, float32 (N, C, H, W), to logits, float32 (N, K)."""

TRAINED_TEST = "trained_test"
"""Key in a bundle's config.json of the number and digest of the samples on which its accuracy was measured."""

RECORDED_POINTS, RECORDED_SAMPLES = 0.5, 2
"""Points, or samples if that is more, by which a second measurement of the trained model may differ from the first.

Another device or batch size sums floats in another order, which changes some quantized values and with them a few
labels.
"""


@dataclass(frozen=True)
class RecordedAccuracy:
    """The accuracy of a trained model as measured in training.

    Args:
        accuracy: Share of correct labels, 0 to 1.
        samples: Number of samples.
        dataset: Name of the data set.
        dataset_sha256: Digest of its content; `None` if it was not recorded.
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
        model: Maps inputs to logits.
        preprocessing: Maps images to inputs, as in training.
        classes: Names of its classes, in the order of its logits.
        source: Origin of these, for messages, such as "the run".
        recorded: Its recorded accuracy.
    """

    model: TrainedModel
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    source: str = "the run"
    recorded: RecordedAccuracy | None = None

    def differences(self, bundle: Bundle) -> list[str]:
        """Return the differences between a bundle and the trained model, as sentences."""
        processor = bundle.expect_processor(ImageProcessor)
        labels = processor.labels
        found = preprocessing_differences(processor.preprocessing, self.preprocessing, self.source)
        if self.classes != labels:
            pairs = list(zip(labels, self.classes, strict=False))
            served, trained = next((pair for pair in pairs if pair[0] != pair[1]), (len(labels), len(pairs)))
            found.append(f"labels.txt is not as in {self.source}: {served!r} instead of {trained!r}")
        return found


def recorded_accuracy(bundle: Bundle) -> RecordedAccuracy | None:
    """Return the accuracy of the trained model recorded in a bundle; `None` if there is none."""
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
    """Return the interval of the loss against a recorded accuracy, without the answers to single samples.

    R. Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
    methods", Statistics in Medicine 17 (1998), 873-890, method 10. Answers to the same samples agree more than by
    chance, so the interval is wider than that of pairs.

    Args:
        recorded: Accuracy of the trained model.
        served: Accuracy of the served model.
    """
    before = wilson_interval(round(recorded.accuracy * recorded.samples), recorded.samples)
    loss = before.value - served.value
    low = loss - float(np.hypot(before.value - before.low, served.high - served.value))
    high = loss + float(np.hypot(before.high - before.value, served.value - served.low))
    return low, high


def differs_from_recorded(recorded: RecordedAccuracy, measured: Proportion) -> bool:
    """Return whether a second measurement of a trained model differs from the first by more than rounding explains."""
    allowed = max(RECORDED_POINTS / 100 * recorded.samples, RECORDED_SAMPLES)
    return abs(measured.successes - recorded.accuracy * recorded.samples) > allowed + 1e-6
