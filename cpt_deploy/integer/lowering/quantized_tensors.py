"""The quantized tensor of an edge: its observed range at some bits."""

import torch

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.graph import QuantizedTensor
from cpt_deploy.quantization.modules.activation_quantizer import EdgeQuantizer
from cpt_deploy.quantization.numerics.affine import affine_parameters, symmetric_parameters, unsigned_levels


def edge_tensor(name: str, edge: EdgeQuantizer, bits: int, shape: tuple[int | None, ...]) -> QuantizedTensor:
    """Return the tensor of an edge's range at some bits.

    Args:
        name: Name of the tensor.
        edge: The quantizer, settled.
        bits: Bits of the codes.
        shape: Shape without the batch dimension; None where a size is free.

    Raises:
        ConversionError: If the edge has seen no data, or values that are not finite.
    """
    if int(edge.batches) == 0:
        raise ConversionError(
            f"Expected the activation range of {name!r} to be known, but it has seen no data",
            hint="train the model, or settle it on some batches, before freezing",
        )
    if not bool(torch.isfinite(edge.low) and torch.isfinite(edge.high)):
        raise ConversionError(
            f"Expected the activation range of {name!r} to be finite, but it is [{edge.low}, {edge.high}]",
            hint="the model has diverged: train it again with a lower learning rate",
        )
    levels = torch.tensor(float(unsigned_levels(bits)))
    if edge.symmetric:
        scale, _ = symmetric_parameters(edge.low.cpu(), edge.high.cpu(), levels)
        return QuantizedTensor(name, float(scale), 0, bits, shape, signed=True)
    scale, zero_point = affine_parameters(edge.low.cpu(), edge.high.cpu(), levels)
    return QuantizedTensor(name, float(scale), int(zero_point), bits, shape)
