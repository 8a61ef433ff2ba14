"""Round biases and BatchNorm offsets to multiples of the accumulator scale, as the integer model's biases are.

An integer layer adds an int32 bias at scale `s_x · s_w`. A trained offset lies between two of its steps; where rounding
it moves a sum across a rounding boundary, a quantized value differs, and in a deep network such mismatches multiply. A
model whose offsets are rounded already differs from its integer form only by the rounding of float32.
"""

import torch
from torch import Tensor, fx

from cpt_deploy.quantization.folding import channelwise, fold_layer, normalisation
from cpt_deploy.quantization.graph.fusion import Norm, fused_operations, quantizer_of
from cpt_deploy.quantization.graph.operator_kinds import Kind, kind_of, module_of
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.layers import QuantizedLayer
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent
from cpt_deploy.quantization.state.config import MAX_INTEGER_BITS

_KINDS = (Kind.LAYER, Kind.NORM)


@torch.no_grad()
def round_biases(model: QuantizedModel) -> None:
    """Round biases and BatchNorm offsets in place, to multiples of the accumulator scale at the present precision.

    Each changes by at most half of `input scale · weight scale`; rounding twice changes nothing more.

    Args:
        model: A model whose activation ranges are known.
    """
    network, precision = model.network, model.precision
    if max(*precision.weight_bits.values(), *precision.activation_bits.values()) > MAX_INTEGER_BITS:
        return  # integer kernels execute none of it
    if model.config.scheme == "sbm":
        return  # there are no integer models of it
    for node in network.graph.nodes:
        if kind_of(node, network) is Kind.RECURRENT:
            _round_recurrent(node, network)
    for operation in fused_operations(network):
        source = quantizer_of(operation.head.all_input_nodes[0], network) if operation.kind in _KINDS else None
        if source is None:
            continue
        input_scale, module = _scale(source), module_of(operation.head, network)
        if isinstance(module, QuantizedLayer):
            bits = precision.weight_bits_of(module.index, module.group)
            _round_layer(module, operation.norm, bits, input_scale)
        elif isinstance(module, Norm):
            factor, offset = normalisation(module, module.num_features)
            folded = channelwise(factor, offset, 0, input_scale)
            _shift_norm(module, torch.from_numpy(folded.offsets(input_scale) - offset))


def _round_recurrent(node: fx.Node, network: fx.GraphModule) -> None:
    layer, source = module_of(node, network), quantizer_of(node.all_input_nodes[0], network)
    assert isinstance(layer, QuantizedRecurrent)
    assert source is not None, "the inputs of layers are quantized"
    for product, quantizer in ((layer.input_layer, source), (layer.hidden_layer, layer.hidden_quantizer)):
        bits = product.precision.weight_bits_of(product.index, product.group)
        _round_layer(product, None, bits, _scale(quantizer))


def _round_layer(layer: QuantizedLayer, norm: Norm | None, bits: int, input_scale: float) -> None:
    factor, offset = normalisation(norm, layer.weight_shape[0])
    if layer.bias is not None:
        offset = offset + layer.bias.detach().cpu().double().numpy() * factor
    elif norm is None:
        return
    change = torch.from_numpy(fold_layer(layer, norm, bits, input_scale).offsets(input_scale) - offset)
    if norm is not None:
        _shift_norm(norm, change)
    elif layer.bias is not None:
        layer.bias.add_(change.to(layer.bias))


def _shift_norm(norm: Norm, change: Tensor) -> None:
    """Add `change`, float64 (C,), to the offset of a BatchNorm; without parameters its mean is shifted instead."""
    if norm.affine:
        norm.bias.add_(change.to(norm.bias))
        return
    assert norm.running_mean is not None, "calibration keeps statistics"
    assert norm.running_var is not None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    norm.running_mean.sub_((change.to(deviation) * deviation).to(norm.running_mean))


def _scale(source: ActivationQuantizer | Requantize) -> float:
    qparams = (
        source.kept_qparams() if isinstance(source, ActivationQuantizer) else source.source.kept_qparams(source.group)
    )
    return float(qparams.scale)
