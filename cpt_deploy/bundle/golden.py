"""The golden sample: a few inputs with the integer executor's outputs for them at export.

Outputs that are quantized must be the same everywhere. Those that are computed in float, whose last digits differ
between processors, have a tolerance.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cpt_deploy.errors import BundleError
from cpt_deploy.signature import OUTPUT_NAME

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by the names of a model's inputs or outputs."""

_INPUT, _OUTPUT, _SCALE, _TOLERANCE = "inputs.", "outputs.", "scale.", "tolerance."
_MOST_STEPS = 255


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs and the outputs that every runtime has to reproduce.

    A quantized output is stored as the real values that a runtime returns: dequantizing is strictly monotone, so equal
    float32 values mean equal integers.

    Args:
        inputs: Inputs by name, (N, ...); states that are missing are the initial ones.
        outputs: The executor's outputs by name, (N, ...).
        scales: Scales of those outputs that are quantized, by name.
        tolerances: Maximum differences of those outputs that are computed in float, by name. Outputs with neither (such
            as integers) have to be equal.

    Raises:
        ValueError: If there are no inputs, outputs or values, a number is not finite, or scales and tolerances are not
            of outputs.
    """

    inputs: Arrays
    outputs: Arrays
    scales: Mapping[str, float] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {**self.inputs, **self.outputs}
        if not self.inputs or not self.outputs or not all(array.size for array in arrays.values()):
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"Expected golden inputs and outputs with values, but got the shapes {shapes}")
        unfit = [name for name, values in arrays.items() if values.dtype.kind not in "fiub" or not _is_finite(values)]
        if unfit:
            raise ValueError(f"Expected golden tensors of finite numbers, but {', '.join(unfit)} has others")
        known = {**self.scales, **self.tolerances}
        if not known.keys() <= self.outputs.keys() or self.scales.keys() & self.tolerances.keys():
            raise ValueError(
                f"Expected a scale or a tolerance of the outputs {', '.join(self.outputs)}, but got {', '.join(known)}"
            )
        for name, number in known.items():
            if not (np.isfinite(number) and (number > 0 or (number == 0 and name in self.tolerances))):
                raise ValueError(f"Expected a finite, positive scale or tolerance of {name}, but got {number}")

    @property
    def tolerance(self) -> float | None:
        """The largest tolerance; `None` if all outputs have to be equal."""
        return max(self.tolerances.values(), default=None)

    def to_bytes(self) -> bytes:
        """Return the sample as a safetensors file."""
        # not ascontiguousarray, which gives numbers a dimension
        tensors = {f"{_INPUT}{name}": np.asarray(array, order="C") for name, array in self.inputs.items()}
        tensors |= {f"{_OUTPUT}{name}": np.asarray(array, order="C") for name, array in self.outputs.items()}
        tensors |= {f"{_SCALE}{name}": np.array([scale], np.float32) for name, scale in self.scales.items()}
        tensors |= {f"{_TOLERANCE}{name}": np.array([most], np.float64) for name, most in self.tolerances.items()}
        return save(tensors)


def read_golden(data: bytes) -> Golden:
    """Read a golden sample from the bytes of `Golden.to_bytes`.

    Raises:
        BundleError: If the bytes are not a golden sample.
    """
    try:
        tensors = load(data)
        inputs, outputs, scales, tolerances = (
            {name.removeprefix(kind): array for name, array in tensors.items() if name.startswith(kind)}
            for kind in (_INPUT, _OUTPUT, _SCALE, _TOLERANCE)
        )
        numbers = ({name: float(array[0]) for name, array in each.items()} for each in (scales, tolerances))
        return Golden(inputs, outputs, *numbers)
    except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
        raise BundleError(f"Expected golden.safetensors to hold a golden sample, but got: {error}") from error


@dataclass(frozen=True)
class GoldenCheck:
    """The comparison of a runtime's outputs with those of a golden sample.

    Args:
        values: Number of values compared.
        mismatches: Number of values that are not equal, or differ by more than their tolerance.
        worst_difference: The largest difference of quantized outputs, in quantized values.
        same_labels: Whether the largest of the logits is the same in each row; without logits, whether the sample is
            reproduced.
        worst: The largest difference of a real value; infinite if one is not finite.
        tolerance: The largest tolerance of an output; `None` if all have to be equal.
    """

    values: int
    mismatches: int
    worst_difference: int
    same_labels: bool
    worst: float = 0.0
    tolerance: float | None = None

    @property
    def reproduced(self) -> bool:
        """Whether every value is equal or within its tolerance."""
        return self.mismatches == 0

    @property
    def what(self) -> str:
        """The kind of values that were compared, for messages."""
        return compared_values(self.tolerance)


def compared_values(tolerance: float | None) -> str:
    """Return the kind of values in a golden sample, for messages."""
    return "output integers" if tolerance is None else f"outputs (±{tolerance:.2g})"


def compare_golden(golden: Golden, outputs: Arrays) -> GoldenCheck:
    """Compare a runtime's outputs for `golden.inputs` with those of the sample; other outputs are ignored.

    Raises:
        ValueError: If an output is missing or its shape differs.
    """
    values = mismatches = steps = 0
    worst = 0.0
    for name, expected in golden.outputs.items():
        got = outputs.get(name)
        if got is None or got.shape != expected.shape:
            raise ValueError(
                f"Expected the output {name} of shape {expected.shape}, but got {'none' if got is None else got.shape}"
            )
        differences = np.nan_to_num(np.abs(got.astype(np.float64) - expected), nan=np.inf)
        values += expected.size
        mismatches += int(np.count_nonzero(differences > golden.tolerances.get(name, 0)))
        worst = max(worst, float(differences.max()))
        if name in golden.scales:
            # NaN and infinity count as differing by the whole range of quantized values.
            scaled = differences.max() / np.float64(np.float32(golden.scales[name]))
            steps = max(steps, int(np.rint(np.minimum(scaled, _MOST_STEPS))))
    same = mismatches == 0
    if OUTPUT_NAME in golden.outputs:
        best, found = golden.outputs[OUTPUT_NAME].argmax(axis=-1), outputs[OUTPUT_NAME].argmax(axis=-1)
        same = bool((best == found).all())
    return GoldenCheck(values, mismatches, steps, same, worst, golden.tolerance)


def _is_finite(values: npt.NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())
