"""Bits and kinds of integers that an ONNX network is quantized to."""

from collections.abc import Mapping
from dataclasses import dataclass

from cpt_deploy.errors import UsageError

BITS = 8
"""Bits of the first and the last layer, and of tensors that not only layers read."""
MIN_BITS = 2


@dataclass(frozen=True)
class Precision:
    """Bits and kinds of the integers.

    Attributes:
        weights: Bits of the weights of all layers but the first and the last, or of layers by name; others have 8.
        activations: Bits of the tensors that only such layers read; others have 8.
        symmetric: Whether activations are int8 with a zero point of 0.
        portable: Whether sums may saturate on no processor.
    """

    weights: int | Mapping[str, int] = BITS
    activations: int = BITS
    symmetric: bool = False
    portable: bool = True

    def __post_init__(self) -> None:
        weights = [self.weights] if isinstance(self.weights, int) else [*self.weights.values()]
        for bits in (*weights, self.activations):
            if not MIN_BITS <= bits <= BITS:
                raise UsageError(f"Expected {MIN_BITS} to {BITS} bits, but got {bits}")
        if self.symmetric and self.activations != BITS:
            raise UsageError(
                f"Expected activations of {BITS} bits to make them symmetric, but got {self.activations}",
                hint="fewer bits need a Clip of the integers, which the runtimes that ask for symmetric int8 do not "
                "take",
            )


DEFAULT = Precision()
