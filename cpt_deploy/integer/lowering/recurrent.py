"""Lower a recurrent layer to two operations: the product of its inputs, and its steps."""

from typing import Any

from cpt_deploy.integer.convolutions import fields_of
from cpt_deploy.integer.lowering.channelwise import bias_limit
from cpt_deploy.integer.operations import FullyConnected, Recurrent
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.folding import fold_layer
from cpt_deploy.quantization.modules.layers import QuantizedLinear
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent


def lower_recurrent(
    layer: QuantizedRecurrent,
    name: str,
    bits: tuple[int, int],
    tensors: tuple[QuantizedTensor, QuantizedTensor],
    state: tuple[str, ...],
    output: str,
) -> tuple[FullyConnected, Recurrent]:
    """Return the product of all inputs, and the steps that read it.

    Args:
        layer: The layer.
        name: Its path.
        bits: Bits of the weights of the inputs, and of those of the hidden state.
        tensors: The quantized inputs, and the quantized hidden state.
        state: Names of the state's real values.
        output: Name of the result.
    """
    source, hidden = tensors
    projected = f"{output}_input"
    inward = FullyConnected(
        (source.name,), projected, **_weights(layer.input_layer, bits[0], source), source=f"{name}.input_layer"
    )
    onward = Recurrent(
        (projected, *state),
        output,
        **_weights(layer.hidden_layer, bits[1], hidden),
        source=f"{name}.hidden_layer",
        hidden=hidden.name,
        cell=layer.kind,
        reverse=layer.reverse,
    )
    return inward, onward


def _weights(layer: QuantizedLinear, bits: int, source: QuantizedTensor) -> dict[str, Any]:
    return {"bits": bits, **fields_of(fold_layer(layer, None, bits, source.scale, bias_limit(source)))}
