"""The golden sample: a few inputs with what the integer executor computed for them at export.

A network that is integer from end to end gives codes, which have to be the same everywhere. Where parts of it compute
in float, whose last places differ between processors, it gives logits and how far from them others may lie.
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
    """Inputs and the output codes that every runtime must reproduce.

    Args:
        inputs: Normalised inputs, float32 (N, C, H, W).
        logit_codes: The executor's output codes, uint8 or int8 (N, K).
        logit_scale: Scale of the output's quantizer.
        logit_zero_point: Its zero point.

    Raises:
        ValueError: If dtypes or shapes are not these.
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
                f"Expected golden codes to be uint8 or int8 ({len(inputs)}, K), but got {codes.dtype} {codes.shape}"
            )
        most = 0 if codes.dtype == np.int8 else 255  # signed codes lie around 0
        if not (np.isfinite(self.logit_scale) and self.logit_scale > 0 and 0 <= self.logit_zero_point <= most):
            raise ValueError(
                f"Expected a positive scale and a zero point in 0..{most}, but got {self.logit_scale} "
                f"and {self.logit_zero_point}"
            )

    @cached_property
    def logits(self) -> npt.NDArray[np.float32]:
        """The codes as ONNX DequantizeLinear turns them into float32 (N, K).

        That map is strictly monotone, so equal float32 logits mean equal codes.
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
    """Inputs and the logits of a network that computes in float between its integers.

    Args:
        inputs: Normalised inputs, float32 (N, C, H, W).
        logits: The executor's logits, float32 (N, K).
        tolerance: Most that a logit may differ by.

    Raises:
        ValueError: If dtypes or shapes are not these, or a number is not finite.
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
"""What every runtime has to reproduce: codes, or logits up to a tolerance."""


def read_golden(data: bytes) -> Golden:
    """Read what `to_bytes` of either kind wrote.

    Raises:
        BundleError: If the bytes hold no golden sample.
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
    """How logits compare with those of a golden sample.

    Args:
        values: Number of logits compared.
        mismatches: How many of them have another code, or differ by more than the tolerance.
        worst_codes: The greatest difference, in codes; 0 where there is a tolerance instead.
        same_labels: Whether each sample's top class is the same.
        worst_logit: The greatest difference of a logit; infinite if one is not finite.
        tolerance: Most that a logit may differ by; `None` where codes have to be the same.
    """

    values: int
    mismatches: int
    worst_codes: int
    same_labels: bool
    worst_logit: float = 0.0
    tolerance: float | None = None

    @property
    def reproduced(self) -> bool:
        """Whether every code is the same, or every logit within the tolerance."""
        return self.mismatches == 0

    @property
    def what(self) -> str:
        """What was compared, for messages."""
        return compared_values(self.tolerance)


def compared_values(tolerance: float | None) -> str:
    """Return what a golden sample consists of, for messages."""
    return "output codes" if tolerance is None else f"logits (±{tolerance:.2g})"


def compare_golden(golden: Golden, logits: npt.NDArray[np.float32]) -> GoldenCheck:
    """Compare the logits that a runtime computed for `golden.inputs`, float32 (N, K), with the sample's own.

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
    # NaN and infinity count as differing by the whole range of codes.
    codes = np.rint(np.minimum(differences / np.float64(np.float32(golden.logit_scale)), 255))
    return GoldenCheck(
        values=logits.size,
        mismatches=int(np.count_nonzero(logits != golden.logits)),
        worst_codes=int(codes.max()),
        same_labels=same_labels,
        worst_logit=worst,
    )
