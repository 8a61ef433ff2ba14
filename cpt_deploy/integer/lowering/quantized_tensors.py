"""Make the quantized tensor of an activation from its observed range."""

import torch

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.numerics.affine import affine_parameters, symmetric_parameters, unsigned_quant_max


def quantized_tensor(
    name: str, quantizer: ActivationQuantizer, bits: int, shape: tuple[int | None, ...]
) -> QuantizedTensor:
    """Return the quantized tensor of an activation at a number of bits.

    Args:
        name: Name of the tensor.
        quantizer: The activation's quantizer, calibrated.
        bits: Bits of the codes.
        shape: Shape without the batch dimension; None where a size is free.

    Raises:
        ConversionError: If the activation has seen no data, or values that are not finite.
    """
    if int(quantizer.batches) == 0:
        raise ConversionError(
            f"Expected the activation range of {name!r} to be known, but it has seen no data",
            hint="train the model, or calibrate it on some batches, before freezing",
        )
    if not bool(torch.isfinite(quantizer.low) and torch.isfinite(quantizer.high)):
        raise ConversionError(
            f"Expected the activation range of {name!r} to be finite, but it is [{quantizer.low}, {quantizer.high}]",
            hint="the model has diverged: train it again with a lower learning rate",
        )
    quant_max = torch.tensor(float(unsigned_quant_max(bits)))
    if quantizer.symmetric:
        scale, _ = symmetric_parameters(quantizer.low.cpu(), quantizer.high.cpu(), quant_max)
        return QuantizedTensor(name, float(scale), 0, bits, shape, signed=True)
    scale, zero_point = affine_parameters(quantizer.low.cpu(), quantizer.high.cpu(), quant_max)
    return QuantizedTensor(name, float(scale), int(zero_point), bits, shape)
