"""The reference of a validation: the trained model with its own samples, and its recorded metric.

The trained model never reads inputs from the bundle's processor: an edited bundle would then affect both sides alike
and go unnoticed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cpt_deploy.bundle import Bundle, Processor
from cpt_deploy.validation.accuracy.samples import Runtime, Samples

TRAINED_TEST = "trained_test"
"""Key in a bundle's config.json of the metric of the trained model, with number and digest of the samples."""


@dataclass(frozen=True)
class Recorded:
    """The metric of a trained model as measured in training.

    Args:
        value: The metric.
        samples: Number of samples.
        dataset: Name of the data set.
        sha256: Digest of its content; `None` if it was not recorded.
    """

    value: float
    samples: int
    dataset: str
    sha256: str | None = None

    def is_of(self, samples: Samples) -> bool:
        """Return whether it was measured on the same samples, all of their split."""
        if samples.count != samples.size:
            return False
        if self.sha256 is None:
            return samples.name == self.dataset and samples.count == self.samples
        return samples.sha256 == self.sha256

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {"value": self.value, "samples": self.samples, "sha256": self.sha256}


@dataclass(frozen=True, eq=False)
class Reference:
    """A trained model.

    Args:
        model: The model at max_bits.
        processor: The processor of its own inputs.
        samples: The samples of the validation as inputs of its own processor.
        source: Origin of these, for messages, such as "the run".
        recorded: Its recorded metric.
        again: Measures that metric again as training measured it; `None` if the validation itself does so.
    """

    model: Runtime
    processor: Processor
    samples: Samples
    source: str = "the run"
    recorded: Recorded | None = None
    again: Callable[[], float] | None = None


def recorded_metric(bundle: Bundle) -> Recorded | None:
    """Return the metric of the trained model recorded in a bundle; `None` if there is none."""
    try:
        test = bundle.facts[TRAINED_TEST]
        digest = test["sha256"]
        return Recorded(
            float(test["value"]),
            int(test["samples"]),
            str(bundle.facts["dataset"]),
            None if digest is None else str(digest),
        )
    except (KeyError, TypeError, ValueError):
        return None


def processor_differences(served: Processor, trained: Processor, source: str) -> list[str]:
    """Return the differences of a bundle's processor from the trained model's, as sentences.

    Args:
        served: The processor of the bundle.
        trained: The processor of the trained model.
        source: Where that is from.
    """
    ours, theirs = served.files(), trained.files()
    found = [
        _difference(name, ours.get(name, b""), theirs.get(name, b""), source)
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if not found and served.facts() != trained.facts():
        found.append(f"config.json is not as in {source}: {_differing_keys(served.facts(), trained.facts())}")
    return found


def _difference(name: str, ours: bytes, theirs: bytes, source: str) -> str:
    if name.endswith(".json"):
        one, other = (_own_section(content) for content in (ours, theirs))
        if one is not None and other is not None:
            return f"{name} is not as in {source}: {_differing_keys(one, other)}"
    if name.endswith(".txt"):
        lines = [content.decode(errors="replace").splitlines() for content in (ours, theirs)]
        pairs = list(zip(*lines, strict=False))
        lengths = tuple(f"{len(each)} lines" for each in lines)
        ours_first, theirs_first = next((pair for pair in pairs if pair[0] != pair[1]), lengths)
        return f"{name} is not as in {source}: {ours_first!r} instead of {theirs_first!r}"
    return f"{name} is not that of {source}"


def _own_section(content: bytes) -> Mapping[str, Any] | None:
    """Return the section "cpt" of a JSON file; `None` if it has none."""
    try:
        values = json.loads(content)["cpt"]
    except (ValueError, KeyError, TypeError):
        return None
    return values if isinstance(values, dict) else None


def _differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key} is {ours.get(key)} instead of {theirs.get(key)}" for key in keys)
