"""Insert quantizers where float values enter layers, and where scheduled layers read fixed activations."""

from typing import TypeGuard

from torch import fx, nn

from cpt_deploy.quantization.graph.naming import add_quantizer
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, module_of
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding, QuantizedLayer
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent
from cpt_deploy.quantization.state.precision_state import PrecisionState, Role


def has_float_operations(traced: fx.GraphModule) -> bool:
    """Return whether a graph has operations that are computed in float."""
    return any(node.meta.get(IS_FLOAT) for node in traced.graph.nodes)


def insert_entries(traced: fx.GraphModule, precision: PrecisionState, momentum: float) -> None:
    """Insert a quantizer between each float value and the layers that read it; other readers get the value itself.

    It has the role of these layers if they share one; otherwise it stays at max_bits, and the scheduled ones get an
    input quantizer of their own.
    """
    by_source: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if reads_codes(module_of(node, traced)):
            source = node.all_input_nodes[0]
            if not isinstance(module_of(source, traced), ActivationQuantizer | Requantize):
                by_source.setdefault(source, []).append(node)
    for source, layers in by_source.items():
        roles = {_role(node, traced) for node in layers}
        quantizer = ActivationQuantizer(precision, roles.pop() if len(roles) == 1 else "fixed", momentum)
        _insert(traced, source, add_quantizer(traced, "activation_quantizers", source.name, quantizer), layers)
        if quantizer.role == "fixed":
            insert_requantize(traced, [node for node in layers if _role(node, traced) != "fixed"], quantizer)


def reads_codes(module: nn.Module | None) -> TypeGuard[QuantizedLayer | QuantizedRecurrent]:
    """Return whether a module multiplies its first input, which has to be quantized, by weights."""
    return isinstance(module, QuantizedLayer | QuantizedRecurrent) and not isinstance(module, QuantizedEmbedding)


def insert_requantize(traced: fx.GraphModule, layers: list[fx.Node], quantizer: ActivationQuantizer) -> None:
    """Requantize a fixed activation for the scheduled layers that read it; layers of one role share the result."""
    by_source: dict[tuple[fx.Node, Role], list[fx.Node]] = {}
    for layer in layers:
        by_source.setdefault((layer.all_input_nodes[0], _role(layer, traced)), []).append(layer)
    for (source, role), readers in by_source.items():
        target = add_quantizer(traced, "requantize", readers[0].name, Requantize(quantizer, role))
        _insert(traced, source, target, readers)


def _role(node: fx.Node, traced: fx.GraphModule) -> Role:
    layer = module_of(node, traced)
    assert isinstance(layer, QuantizedLayer | QuantizedRecurrent)
    return layer.role


def _insert(traced: fx.GraphModule, source: fx.Node, target: str, readers: list[fx.Node]) -> None:
    """Insert a quantizer between a value and the given readers of it, the first of which comes first in the graph."""
    with traced.graph.inserting_before(readers[0]):
        inserted = traced.graph.call_module(target, (source,))
    inserted.meta["shape"] = source.meta["shape"]
    for reader in readers:
        reader.replace_input_with(source, inserted)
