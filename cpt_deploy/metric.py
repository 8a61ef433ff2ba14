"""The metric by which a task judges its models: its name, which way is better, and how it is shown."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cpt_deploy import readable


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a model on held-out samples.

    Attributes:
        name: As the Hugging Face Hub spells it: "accuracy", "perplexity", "r_squared".
        higher_is_better: Whether the better of two models has the higher value.
        percent: Whether values are shares, shown in percent, and differences are points (hundredths).
    """

    name: str
    higher_is_better: bool = True
    percent: bool = False

    @property
    def title(self) -> str:
        """The name in words."""
        return _TITLES.get(self.name, self.name.replace("_", " "))

    @property
    def heading(self) -> str:
        """The name in words at the beginning of a sentence."""
        return self.title[:1].upper() + self.title[1:]

    @property
    def scale(self) -> float:
        """The factor from values to what plots show."""
        return 100.0 if self.percent else 1.0

    @property
    def axis(self) -> str:
        """Label of a plot's axis."""
        direction = "" if self.higher_is_better else ", lower is better"
        return f"{self.title} (%)" if self.percent else f"{self.title}{direction}"

    def text(self, value: float | None) -> str:
        """Return a value as text: a share in percent, other numbers with four digits or more."""
        if value is None:
            return "none"
        if self.percent:
            return readable.share(value)
        if self.name in _TITLES and value >= MOST_DECIBELS:
            return "equal"
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another one."""
        return value > other if self.higher_is_better else value < other

    def to_dict(self) -> dict[str, Any]:
        """Return the metric as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Metric":
        """Rebuild a metric from the result of `to_dict`."""
        return cls(str(values["name"]), bool(values["higher_is_better"]), bool(values["percent"]))


ACCURACY = Metric("accuracy", percent=True)
PERPLEXITY = Metric("perplexity", higher_is_better=False)
R_SQUARED = Metric("r_squared")
SQNR_DB = Metric("sqnr_db")
"""Signal to quantization noise against a float model."""
OWN_SQNR_DB = Metric("sqnr_of_own_file_db")
"""The same against the quantized file itself without optimizations, where no float model is given."""

MOST_DECIBELS = 200.0
"""Reported where there is no noise, since JSON has no infinity."""

_TITLES = {
    SQNR_DB.name: "SQNR in dB",
    OWN_SQNR_DB.name: "SQNR in dB against its own file without optimizations",
}


def perplexity_of(loss: float) -> float:
    """Return exp of a mean negative log-likelihood in nats; infinity if it overflows float64."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
