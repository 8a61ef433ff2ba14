"""Quantizers where float values enter layers, and where layers that cycle read what holds the upper bound."""

from torch import fx

from cpt_deploy.quantization.graph.naming import add_quantizer
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, module_of
from cpt_deploy.quantization.modules.activation_quantizer import EdgeQuantizer, LayerInput
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding, QuantizedLayer
from cpt_deploy.quantization.state.precision_state import PrecisionState, Role


def has_float_operations(traced: fx.GraphModule) -> bool:
    """Return whether a graph holds operations that are computed in float."""
    return any(node.meta.get(IS_FLOAT) for node in traced.graph.nodes)


def insert_entries(traced: fx.GraphModule, precision: PrecisionState, momentum: float) -> None:
    """Put a quantizer between each float value and the layers that read it; other readers get the value itself.

    It has the role of these layers, if they have one; otherwise it holds the upper bound, and those that cycle get
    inputs of their own.
    """
    by_source: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        module = module_of(node, traced)
        if isinstance(module, QuantizedLayer) and not isinstance(module, QuantizedEmbedding):
            source = node.all_input_nodes[0]
            if not isinstance(module_of(source, traced), EdgeQuantizer | LayerInput):
                by_source.setdefault(source, []).append(node)
    for source, layers in by_source.items():
        roles = {_role(node, traced) for node in layers}
        edge = EdgeQuantizer(precision, roles.pop() if len(roles) == 1 else "hold", momentum)
        _insert(traced, source, add_quantizer(traced, "edges", source.name, edge), layers)
        if edge.role == "hold":
            insert_layer_inputs(traced, [node for node in layers if _role(node, traced) != "hold"], edge)


def insert_layer_inputs(traced: fx.GraphModule, layers: list[fx.Node], edge: EdgeQuantizer) -> None:
    """Bring what layers read from a held edge to their bits; those of one role that read the same tensor share it."""
    by_source: dict[tuple[fx.Node, Role], list[fx.Node]] = {}
    for layer in layers:
        by_source.setdefault((layer.all_input_nodes[0], _role(layer, traced)), []).append(layer)
    for (source, role), readers in by_source.items():
        target = add_quantizer(traced, "layer_inputs", readers[0].name, LayerInput(edge, role))
        _insert(traced, source, target, readers)


def _role(node: fx.Node, traced: fx.GraphModule) -> Role:
    layer = module_of(node, traced)
    assert isinstance(layer, QuantizedLayer)
    return layer.role


def _insert(traced: fx.GraphModule, source: fx.Node, target: str, readers: list[fx.Node]) -> None:
    """Put a quantizer between a value and those of its readers that are named, the first of which is the earliest."""
    with traced.graph.inserting_before(readers[0]):
        inserted = traced.graph.call_module(target, (source,))
    inserted.meta["shape"] = source.meta["shape"]
    for reader in readers:
        reader.replace_input_with(source, inserted)
