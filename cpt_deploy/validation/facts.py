"""The parts of a report: samples, graph, golden sample, recorded metric, float parts, and what is required."""

from dataclasses import dataclass

from cpt_deploy.validation.integers.comparison import TensorResult


@dataclass(frozen=True)
class DatasetFacts:
    """The samples that were measured.

    Args:
        name: Name of the data set.
        split: Its part.
        sha256: Digest of its whole content.
        size: Number of its samples.
        samples: Number of measured samples.
        unit: Name of the samples, in the plural.
    """

    name: str
    split: str
    sha256: str
    size: int
    samples: int
    unit: str = "samples"


@dataclass(frozen=True)
class GraphFacts:
    """The operators that onnxruntime executes.

    Args:
        operators: Operators of the optimized graph, counted by name.
        float_operators: Operators that compute in float.
        unannounced: Operators that compute in float without being announced by export.
    """

    operators: dict[str, int]
    float_operators: dict[str, int]
    unannounced: dict[str, int]


@dataclass(frozen=True)
class RecordedFacts:
    """The metric of the trained model as recorded in training, on the samples of the validation.

    Args:
        value: The recorded value.
        samples: Number of samples.
        again: The value of the same model measured here; `None` without the trained model.
        differs: Whether the two differ by more than rounding explains, or without the trained model whether the served
            model certainly lost more than is allowed.
        lost: Without the trained model, the interval of that loss.
    """

    value: float
    samples: int
    again: float | None
    differs: bool
    lost: tuple[float, float] | None = None


@dataclass(frozen=True)
class FloatFacts:
    """The parts of a network that compute in float.

    Args:
        operators: Number of operators that compute in float, by PyTorch's name.
        integer_macs: Multiply-accumulates per input that run on integers.
        float_macs: Multiply-accumulates per input in float.
        reason: Why the network is not integer from end to end.
        free_running: Integers of the free-running executor, which computes the float parts itself, against
            onnxruntime's; these may differ. `None` if they were not compared.
        boundaries: Integers behind each float part, which the executor computes from onnxruntime's integers before it,
            against onnxruntime's: those differ that are more than 2 apart. `None` if they were not compared.
    """

    operators: dict[str, int]
    integer_macs: int
    float_macs: int
    reason: str
    free_running: tuple[TensorResult, ...] | None
    boundaries: tuple[TensorResult, ...] | None = None

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates that run on integers, 0 to 1."""
        return self.integer_macs / max(1, self.integer_macs + self.float_macs)

    @property
    def other_codes(self) -> tuple[int, int] | None:
        """Number of differing integers of the free-running executor, and number of all its integers."""
        if self.free_running is None:
            return None
        return sum(tensor.mismatches for tensor in self.free_running), sum(
            tensor.values for tensor in self.free_running
        )


@dataclass(frozen=True)
class Gate:
    """The requirements on a bundle.

    Args:
        max_drop: Max drop from the trained model to onnxruntime, in the unit of the report; `None` judges no drop.
        require_exact: Whether every compared integer must agree.
        allow_undecided: Whether a bundle also passes if these samples cannot decide on the drop.
    """

    max_drop: float | None
    require_exact: bool
    allow_undecided: bool = False
