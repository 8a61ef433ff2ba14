"""Insert activation quantizers into a graph: after each fused operation, and where real values enter layers."""

from collections.abc import Iterator, Sequence
from typing import TypeGuard

from torch import fx, nn

from cpt_deploy.quantization.graph.fusion import FusedOperation, fused_operations
from cpt_deploy.quantization.graph.naming import add_quantizer
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, Kind, kind_of, module_of
from cpt_deploy.quantization.graph.shapes import is_tensor
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.layers import CONVOLUTIONS, QuantizedEmbedding, QuantizedLayer
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent
from cpt_deploy.quantization.modules.sbm import SbmQuantizer
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.precision_state import PrecisionGroup, PrecisionState

#: No layer reads the logits, so fewer bits for them would save nothing.
MIN_LOGITS_BITS = 8


def has_float_operations(traced: fx.GraphModule) -> bool:
    """Return whether a graph has operations that are computed in float."""
    return any(node.meta.get(IS_FLOAT) for node in traced.graph.nodes)


def reads_codes(module: nn.Module | None) -> TypeGuard[QuantizedLayer | QuantizedRecurrent]:
    """Return whether a module multiplies its first input, which has to be quantized, by weights."""
    return isinstance(module, QuantizedLayer | QuantizedRecurrent) and not isinstance(module, QuantizedEmbedding)


def insert_quantizers(traced: fx.GraphModule, precision: PrecisionState, config: QuantizationConfig) -> None:
    """Insert activation quantizers into a graph whose layers are quantized.

    An activation that is read only by layers of one group gets that group. Every other one stays at max_bits, and the
    scheduled layers that read it get an input quantizer of their own. In a graph with float operations, layers read
    float values through quantizers of the same kind, and other readers get the values themselves. With the scheme
    "sbm" only layers read quantized values.
    """
    if config.scheme == "sbm":
        _insert_at_layers(traced, precision, config)
        return
    floats = has_float_operations(traced)
    for operation in fused_operations(traced):
        if not floats or _makes_codes(operation, traced):
            readers = list(_readers(operation.end, traced))
            groups = {_group(reader, traced) for reader in readers}
            is_logits = any(reader.op == "output" for reader in readers)
            quantizer = ActivationQuantizer(
                precision, _common(groups), config.range_momentum, min_bits=MIN_LOGITS_BITS if is_logits else 0
            )
            _insert_all(traced, operation.end, operation.head.name, quantizer, None, readers)
    if not floats:
        return
    by_source: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if reads_codes(module_of(node, traced)):
            source = node.all_input_nodes[0]
            if not isinstance(module_of(source, traced), ActivationQuantizer | Requantize):
                by_source.setdefault(source, []).append(node)
    for source, layers in by_source.items():
        group = _common({_group(node, traced) for node in layers})
        quantizer = ActivationQuantizer(precision, group, config.range_momentum)
        _insert_all(traced, source, source.name, quantizer, layers, layers)


def _insert_at_layers(traced: fx.GraphModule, precision: PrecisionState, config: QuantizationConfig) -> None:
    """Insert a quantizer between a value and the layers of one group that read it; all other readers get the value."""
    by_source: dict[tuple[fx.Node, PrecisionGroup], list[fx.Node]] = {}
    for node in traced.graph.nodes:
        module = module_of(node, traced)
        if isinstance(module, QuantizedLayer):
            by_source.setdefault((node.all_input_nodes[0], module.group), []).append(node)
    for (source, group), layers in by_source.items():
        quantizer = SbmQuantizer(precision, group, config.range_momentum)
        _insert(traced, source, add_quantizer(traced, "activation_quantizers", source.name, quantizer), layers)


def _common(groups: set[PrecisionGroup | None]) -> PrecisionGroup:
    """Return the group that all readers of an activation have; fixed where groups share it, or no layer reads it."""
    return (groups.pop() if len(groups) == 1 else None) or "fixed"


def _insert_all(
    traced: fx.GraphModule,
    source: fx.Node,
    name: str,
    quantizer: ActivationQuantizer,
    users: Sequence[fx.Node] | None,
    readers: Sequence[fx.Node],
) -> None:
    """Insert a quantizer after a value, and requantize it for scheduled layers if it is fixed.

    Args:
        traced: The graph.
        source: The value.
        name: Name of the quantizer.
        quantizer: The quantizer.
        users: The nodes that get the quantized value; None is all.
        readers: The nodes that read it, perhaps through operations that move it.
    """
    _insert(traced, source, add_quantizer(traced, "activation_quantizers", name, quantizer), users)
    if quantizer.group != "fixed":
        return
    by_source: dict[tuple[fx.Node, PrecisionGroup], list[fx.Node]] = {}
    for layer in readers:  # layers of one group share the result
        group = _group(layer, traced)
        if group not in (None, "fixed"):
            by_source.setdefault((layer.all_input_nodes[0], group), []).append(layer)
    for (value, group), layers in by_source.items():
        target = add_quantizer(traced, "requantize", layers[0].name, Requantize(quantizer, group))
        _insert(traced, value, target, layers)


def _makes_codes(operation: FusedOperation, traced: fx.GraphModule) -> bool:
    """Return whether to quantize a result beside float parts: a convolution's, or an input that only they read."""
    nodes = [operation.head]
    if operation.head.op == "placeholder":
        nodes = [user for user in operation.head.users if is_tensor(user)]
    return is_tensor(operation.head) and all(isinstance(module_of(node, traced), CONVOLUTIONS) for node in nodes)


def _readers(node: fx.Node, traced: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield the nodes that read a tensor, looking through operations that keep its quantized values."""
    for user in node.users:
        kind = kind_of(user, traced)
        if kind is Kind.KEEP:
            yield from _readers(user, traced)
        elif kind is not None or user.op == "output":  # the rest is arithmetic on sizes
            yield user


def _group(reader: fx.Node, traced: fx.GraphModule) -> PrecisionGroup | None:
    module = module_of(reader, traced)
    return module.group if isinstance(module, QuantizedLayer | QuantizedRecurrent) else None


def _insert(traced: fx.GraphModule, source: fx.Node, target: str, readers: Sequence[fx.Node] | None) -> None:
    """Insert a quantizer between a value and its readers: those given, the first of which comes first, or all."""
    place = traced.graph.inserting_after(source) if readers is None else traced.graph.inserting_before(readers[0])
    users = list(source.users) if readers is None else readers
    with place:
        inserted = traced.graph.call_module(target, (source,))
    inserted.meta["shape"] = source.meta["shape"]
    for user in users:
        user.replace_input_with(source, inserted)
