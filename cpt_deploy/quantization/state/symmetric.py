"""Signed activations with a zero point of 0, which TensorRT and its like ask for."""

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.model import QuantizedModel

BITS = 8


def make_symmetric(model: QuantizedModel, activation_bits: int | None = None) -> None:
    """Let each activation have int8 codes around 0, in evaluation, settling and freezing alike.

    A tensor without negative values then uses half of the codes. Weights have their whole range, since products with
    signed activations cannot saturate. The model is to be settled afterwards.

    Args:
        model: The model; its parameters do not change.
        activation_bits: Bits of the cycling activations that will be frozen; None is the upper bound's.

    Raises:
        UsageError: If activations have other bits than 8.
    """
    bits = min(model.config.upper, activation_bits or BITS)
    if bits != BITS:
        raise UsageError(
            f"Expected activations of {BITS} bits to make them symmetric, but got {bits}",
            hint="fewer bits need a Clip of the codes, which the runtimes that ask for symmetric int8 do not take",
        )
    for _, edge in model.edges():
        edge.symmetric = True
    model.precision.native = True
