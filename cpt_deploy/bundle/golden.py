"""The golden sample: a few inputs with the integer executor's outputs for them at export.

For a network that is integer from end to end, the outputs are integers, which must be the same everywhere. If parts of
it are computed in float, whose last digits differ between processors, the outputs are logits with a tolerance.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cpt_deploy.errors import BundleError

_CODE_TYPES = (np.dtype(np.uint8), np.dtype(np.int8))


@dataclass(frozen=True, eq=False)
class GoldenSample:
    """Inputs and the quantized logits that every runtime must reproduce.

    Args:
        inputs: Normalised inputs, float32 (N, C, H, W).
        logit_codes: The executor's quantized logits, uint8 or int8 (N, K).
        logit_scale: Scale of the quantized logits.
        logit_zero_point: Zero point of the quantized logits.

    Raises:
        ValueError: If dtypes, shapes or quantization parameters are invalid.
    """

    inputs: npt.NDArray[np.float32]
    logit_codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    logit_scale: float
    logit_zero_point: int

    def __post_init__(self) -> None:
        inputs, codes = self.inputs, self.logit_codes
        _check_inputs(inputs)
        if codes.dtype not in _CODE_TYPES or codes.ndim != 2 or len(codes) != len(inputs) or codes.size == 0:
            raise ValueError(
                f"Expected golden logits to be uint8 or int8 ({len(inputs)}, K), but got {codes.dtype} {codes.shape}"
            )
        most = 0 if codes.dtype == np.int8 else 255  # signed values are centred on 0
        if not (np.isfinite(self.logit_scale) and self.logit_scale > 0 and 0 <= self.logit_zero_point <= most):
            raise ValueError(
                f"Expected a positive scale and a zero point in 0..{most}, but got {self.logit_scale} "
                f"and {self.logit_zero_point}"
            )

    @cached_property
    def logits(self) -> npt.NDArray[np.float32]:
        """The logits, dequantized as by ONNX DequantizeLinear, float32 (N, K).

        That map is strictly monotone, so equal float32 logits mean equal integers.
        """
        centred = self.logit_codes.astype(np.int32) - self.logit_zero_point
        return centred.astype(np.float32) * np.float32(self.logit_scale)

    def to_bytes(self) -> bytes:
        """Return the sample as a safetensors file."""
        return save(
            {
                "inputs": np.ascontiguousarray(self.inputs),
                "logit_codes": np.ascontiguousarray(self.logit_codes),
                "logit_scale": np.array([self.logit_scale], np.float32),
                "logit_zero_point": np.array([self.logit_zero_point], np.uint8),
            }
        )


@dataclass(frozen=True, eq=False)
class GoldenLogits:
    """Inputs and the logits of a network with operations in float.

    Args:
        inputs: Normalised inputs, float32 (N, C, H, W).
        logits: The executor's logits, float32 (N, K).
        tolerance: Maximum difference of a logit.

    Raises:
        ValueError: If dtypes or shapes are invalid, or a number is not finite.
    """

    inputs: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    tolerance: float

    def __post_init__(self) -> None:
        _check_inputs(self.inputs)
        logits = self.logits
        if logits.dtype != np.float32 or logits.ndim != 2 or len(logits) != len(self.inputs) or logits.size == 0:
            raise ValueError(
                f"Expected golden logits to be float32 ({len(self.inputs)}, K), but got {logits.dtype} {logits.shape}"
            )
        if not (np.isfinite(logits).all() and np.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError("Expected finite golden logits and a tolerance of at least 0, but got others")

    def to_bytes(self) -> bytes:
        """Return the sample as a safetensors file."""
        return save(
            {
                "inputs": np.ascontiguousarray(self.inputs),
                "logits": np.ascontiguousarray(self.logits),
                "tolerance": np.array([self.tolerance], np.float64),
            }
        )


Golden = GoldenSample | GoldenLogits
"""The outputs that every runtime has to reproduce: integers, or logits up to a tolerance."""


def read_golden(data: bytes) -> Golden:
    """Read a golden sample of either kind from the bytes of `to_bytes`.

    Raises:
        BundleError: If the bytes are not a golden sample.
    """
    try:
        tensors = load(data)
        if "tolerance" in tensors:
            return GoldenLogits(tensors["inputs"], tensors["logits"], float(tensors["tolerance"][0]))
        return GoldenSample(
            inputs=tensors["inputs"],
            logit_codes=tensors["logit_codes"],
            logit_scale=float(tensors["logit_scale"][0]),
            logit_zero_point=int(tensors["logit_zero_point"][0]),
        )
    except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
        raise BundleError(f"Expected golden.safetensors to hold a golden sample, but got: {error}") from error


def _check_inputs(inputs: npt.NDArray[np.float32]) -> None:
    if inputs.dtype != np.float32 or inputs.ndim != 4:
        raise ValueError(f"Expected golden inputs to be float32 (N, C, H, W), but got {inputs.dtype} {inputs.shape}")


@dataclass(frozen=True)
class GoldenCheck:
    """The comparison of a runtime's logits with those of a golden sample.

    Args:
        values: Number of logits compared.
        mismatches: Number of logits whose integer differs, or that differ by more than the tolerance.
        worst_codes: The largest difference, in quantized values; 0 if there is a tolerance instead.
        same_labels: Whether each sample's top class is the same.
        worst_logit: The largest difference of a logit; infinite if one is not finite.
        tolerance: Maximum difference of a logit; `None` if the integers have to be the same.
    """

    values: int
    mismatches: int
    worst_codes: int
    same_labels: bool
    worst_logit: float = 0.0
    tolerance: float | None = None

    @property
    def reproduced(self) -> bool:
        """Whether every integer is the same, or every logit within the tolerance."""
        return self.mismatches == 0

    @property
    def what(self) -> str:
        """The kind of values that were compared, for messages."""
        return compared_values(self.tolerance)


def compared_values(tolerance: float | None) -> str:
    """Return the kind of values in a golden sample, for messages."""
    return "output integers" if tolerance is None else f"logits (±{tolerance:.2g})"


def compare_golden(golden: Golden, logits: npt.NDArray[np.float32]) -> GoldenCheck:
    """Compare a runtime's logits for `golden.inputs`, float32 (N, K), with those of the sample.

    Raises:
        ValueError: If the shapes differ.
    """
    if logits.shape != golden.logits.shape:
        raise ValueError(f"Expected logits of shape {golden.logits.shape}, but got {logits.shape}")
    differences = np.nan_to_num(np.abs(logits.astype(np.float64) - golden.logits), nan=np.inf)
    same_labels = bool((logits.argmax(axis=1) == golden.logits.argmax(axis=1)).all())
    worst = float(differences.max())
    if isinstance(golden, GoldenLogits):
        mismatches = int(np.count_nonzero(differences > golden.tolerance))
        return GoldenCheck(logits.size, mismatches, 0, same_labels, worst, golden.tolerance)
    # NaN and infinity count as differing by the whole range of quantized values.
    codes = np.rint(np.minimum(differences / np.float64(np.float32(golden.logit_scale)), 255))
    return GoldenCheck(
        values=logits.size,
        mismatches=int(np.count_nonzero(logits != golden.logits)),
        worst_codes=int(codes.max()),
        same_labels=same_labels,
        worst_logit=worst,
    )
