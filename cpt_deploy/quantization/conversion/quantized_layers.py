"""Replace the layers of a captured graph by quantized ones, and count their multiply-accumulates."""

import math
from collections.abc import Sequence

from torch import fx, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.graph.operator_kinds import Kind, kind_of
from cpt_deploy.quantization.modules.layers import (
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedEmbedding,
    QuantizedLayer,
    quantized_layer,
)
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent, RecurrentLayer, quantized_recurrent
from cpt_deploy.quantization.scheduled_model import LayerInfo
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.groups import groups_of_layers
from cpt_deploy.quantization.state.precision_state import PrecisionState


def replace_layers(
    traced: fx.GraphModule, precision: PrecisionState, config: QuantizationConfig, ends: Sequence[str]
) -> list[LayerInfo]:
    """Replace the layers of a graph by quantized ones, and return what is known of each.

    Args:
        traced: A captured graph; it is changed.
        precision: The bits that the layers have.
        config: Which layers are scheduled, and their quantizers.
        ends: Paths of modules at the ends of the network.

    Raises:
        ConversionError: If there are none.
    """
    calls = [node for node in traced.graph.nodes if kind_of(node, traced) in (Kind.LAYER, Kind.RECURRENT)]
    if not calls:
        raise ConversionError("Expected a model with at least one Conv, Linear, LSTM or GRU layer, but got none")
    targets = list(dict.fromkeys(str(node.target) for node in calls))
    groups = groups_of_layers(targets, config, {target for target in targets if _is_end(target, traced, ends)})
    infos: list[LayerInfo] = []
    for target in targets:
        module, index, group = traced.get_submodule(target), len(infos), groups[target]
        nodes = [node for node in calls if node.target == target]
        if isinstance(module, RecurrentLayer):
            recurrent = quantized_recurrent(module, precision, group, index, config.range_momentum)
            traced.set_submodule(target, recurrent)
            infos += _products(target, recurrent, sum(_steps(node) for node in nodes))
            continue
        layer = quantized_layer(module, precision, group, index)
        layer.scheme = config.scheme
        traced.set_submodule(target, layer)
        macs = sum(_macs(node, layer) for node in nodes)
        infos.append(LayerInfo(target, macs, group, layer.weight_shape.numel()))
    return infos


def _is_end(target: str, traced: fx.GraphModule, ends: Sequence[str]) -> bool:
    """Return whether a layer is at an end of the network: an Embedding, or in one of the modules that it names."""
    return isinstance(traced.get_submodule(target), nn.Embedding) or any(
        f"{target}.".startswith(f"{end}.") for end in ends
    )


def _products(target: str, layer: QuantizedRecurrent, steps: int) -> list[LayerInfo]:
    """Return the two products of a recurrent layer that runs `steps` steps per sample."""
    parts = (("input_layer", layer.input_layer), ("hidden_layer", layer.hidden_layer))
    sizes = ((part, product.weight_shape.numel()) for part, product in parts)
    return [LayerInfo(f"{target}.{part}", steps * size, layer.group, size) for part, size in sizes]


def _steps(node: fx.Node) -> int:
    return int(node.all_input_nodes[0].meta["shape"][0])  # the time comes first


def _macs(node: fx.Node, layer: QuantizedLayer) -> int:
    """Return multiply-accumulates per sample of one call of a layer."""
    if isinstance(layer, QuantizedEmbedding):
        return 0
    if isinstance(layer, QuantizedConvTranspose1d | QuantizedConvTranspose2d):
        values = node.all_input_nodes[0].meta["shape"]  # each value is multiplied by all weights of its channel
        return int(math.prod(values)) // 2 * (layer.weight_shape.numel() // layer.in_channels)
    outputs = int(math.prod(node.meta["shape"])) // 2  # of a batch of 2
    return outputs * math.prod(layer.weight_shape[1:])
