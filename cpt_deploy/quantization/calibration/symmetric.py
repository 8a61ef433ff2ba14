"""Symmetric activations (signed, zero point 0), which TensorRT and similar runtimes require."""

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.model import QuantizedModel

BITS = 8


def make_symmetric(model: QuantizedModel, activation_bits: int | None = None) -> None:
    """Quantize all activations symmetrically to int8, in evaluation, calibration and freezing.

    A tensor without negative values then uses half of the quantized values. Weights keep their whole range, since
    products with signed activations cannot saturate. Calibrate the model afterwards.

    Args:
        model: The model; its parameters do not change.
        activation_bits: Bits of the scheduled activations that will be frozen; None means max_bits.

    Raises:
        UsageError: If activations do not have 8 bits.
    """
    bits = min(model.config.max_bits, activation_bits or BITS)
    if bits != BITS:
        raise UsageError(
            f"Expected activations of {BITS} bits to make them symmetric, but got {bits}",
            hint="fewer bits need a Clip of the integers, which the runtimes that ask for symmetric int8 do not take",
        )
    for _, quantizer in model.quantizers():
        quantizer.symmetric = True
    model.precision.native = True
