"""The golden sample of a language model: a few tokens with the logits that follow them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cpt_deploy.errors import BundleError


@dataclass(frozen=True, eq=False)
class GoldenText:
    """Tokens and the logits after the last of them.

    The gates of an LSTM and the softmax of attention are float operations between the integers, whose last digits
    differ between runtimes and processors; the sample has a tolerance for their effect on the logits.

    Args:
        tokens: int64 (N, T).
        logits: float32 (N, V), from the exact integer arithmetic at export.
        tolerance: Maximum difference of a logit.

    Raises:
        ValueError: If dtypes or shapes are invalid, or a number is not finite.
    """

    tokens: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    tolerance: float

    def __post_init__(self) -> None:
        tokens, logits = self.tokens, self.logits
        if tokens.dtype != np.int64 or tokens.ndim != 2 or tokens.size == 0:
            raise ValueError(f"Expected golden tokens to be int64 (N, T), but got {tokens.dtype} {tokens.shape}")
        if logits.dtype != np.float32 or logits.ndim != 2 or len(logits) != len(tokens):
            raise ValueError(
                f"Expected golden logits to be float32 ({len(tokens)}, V), but got {logits.dtype} {logits.shape}"
            )
        if not (np.isfinite(logits).all() and np.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError("Expected finite golden logits and a tolerance, but got others")

    def to_bytes(self) -> bytes:
        """Return the sample as a safetensors file."""
        return save(
            {
                "tokens": np.ascontiguousarray(self.tokens),
                "logits": np.ascontiguousarray(self.logits),
                "tolerance": np.array([self.tolerance], np.float64),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "GoldenText":
        """Read a golden sample from the bytes of `to_bytes`.

        Raises:
            BundleError: If the bytes are not a golden sample.
        """
        try:
            tensors = load(data)
            return cls(tensors["tokens"], tensors["logits"], float(tensors["tolerance"][0]))
        except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
            raise BundleError(f"Expected golden.safetensors to hold golden tokens, but got: {error}") from error


@dataclass(frozen=True)
class GoldenTextCheck:
    """The comparison of a runtime's logits with those of a golden sample.

    Args:
        worst: The largest difference.
        within: Whether it is within the sample's tolerance.
        same_tokens: Whether the most probable token of each row is the same.
    """

    worst: float
    within: bool
    same_tokens: bool


def compare_golden_text(golden: GoldenText, logits: npt.NDArray[np.float32]) -> GoldenTextCheck:
    """Compare logits, float32 (N, V), with those of a golden sample.

    Raises:
        ValueError: If the shape differs.
    """
    if logits.shape != golden.logits.shape:
        raise ValueError(f"Expected logits of shape {golden.logits.shape}, but got {logits.shape}")
    worst = float(np.abs(logits - golden.logits).max())
    same = bool((logits.argmax(axis=1) == golden.logits.argmax(axis=1)).all())
    return GoldenTextCheck(worst, worst <= golden.tolerance, same)
