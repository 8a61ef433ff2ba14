"""Quantizers where float values enter layers: what a Linear or a Conv reads, if it does not lie on codes yet."""

from torch import fx

from cpt_deploy.quantization.graph.naming import add_quantizer
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, Kind
from cpt_deploy.quantization.modules.activation_quantizer import EdgeQuantizer, LayerInput
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding, QuantizedLayer
from cpt_deploy.quantization.state.precision_state import PrecisionState


def has_float_operations(traced: fx.GraphModule) -> bool:
    """Return whether a graph holds operations that are computed in float."""
    return any(node.meta.get(IS_FLOAT) for node in traced.graph.nodes)


def insert_entries(
    traced: fx.GraphModule, kinds: dict[fx.Node, Kind], precision: PrecisionState, momentum: float
) -> None:
    """Put a quantizer between each float value and the layers that read it; other readers get the value itself.

    It has the role of these layers, if they have one; otherwise it holds the upper bound, and those that cycle get
    inputs of their own.
    """
    by_source: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, QuantizedLayer) and not isinstance(module, QuantizedEmbedding):
            source = node.all_input_nodes[0]
            if kinds.get(source) is not Kind.EDGE:
                by_source.setdefault(source, []).append(node)
    for source, layers in by_source.items():
        roles = {_layer(node, traced).role for node in layers}
        edge = EdgeQuantizer(precision, roles.pop() if len(roles) == 1 else "hold", momentum)
        entry = _insert(traced, source, add_quantizer(traced, "edges", source.name, edge), layers[0])
        kinds[entry] = Kind.EDGE
        for node in layers:
            node.replace_input_with(source, entry)
        for role in sorted(roles - {"hold"}):
            readers = [node for node in layers if _layer(node, traced).role == role]
            target = add_quantizer(traced, "layer_inputs", readers[0].name, LayerInput(edge, role))
            narrowed = _insert(traced, entry, target, readers[0])
            kinds[narrowed] = Kind.EDGE
            for node in readers:
                node.replace_input_with(entry, narrowed)


def _layer(node: fx.Node, traced: fx.GraphModule) -> QuantizedLayer:
    layer = traced.get_submodule(str(node.target))
    assert isinstance(layer, QuantizedLayer)
    return layer


def _insert(traced: fx.GraphModule, source: fx.Node, target: str, before: fx.Node) -> fx.Node:
    with traced.graph.inserting_before(before):
        return traced.graph.call_module(target, (source,))
