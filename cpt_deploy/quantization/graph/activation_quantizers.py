"""Insert activation quantizers into a graph: after each fused operation, and where real values enter layers."""

from collections.abc import Iterator

from torch import fx

from cpt_deploy.quantization.graph.capture.shapes import is_tensor
from cpt_deploy.quantization.graph.entries import has_float_operations, insert_entries, insert_requantize
from cpt_deploy.quantization.graph.fusion import FusedOperation, fused_operations
from cpt_deploy.quantization.graph.naming import add_quantizer
from cpt_deploy.quantization.graph.operator_kinds import Kind, kind_of, module_of
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.modules.layers import CONVOLUTIONS, QuantizedLayer
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.precision_state import PrecisionState, Role

#: No layer reads the logits, so fewer bits for them would save nothing.
MIN_LOGITS_BITS = 8


def insert_quantizers(traced: fx.GraphModule, precision: PrecisionState, config: QuantizationConfig) -> None:
    """Insert activation quantizers into a graph whose layers are quantized.

    An activation that is read only by layers of one role gets that role. Every other one stays at max_bits, and the
    scheduled layers that read it get an input quantizer of their own.
    """
    floats = has_float_operations(traced)
    for operation in fused_operations(traced):
        if not floats or _makes_codes(operation, traced):
            _insert_quantizer(operation, traced, precision, config)
    if floats:
        insert_entries(traced, precision, config.range_momentum)


def _insert_quantizer(
    operation: FusedOperation, traced: fx.GraphModule, precision: PrecisionState, config: QuantizationConfig
) -> None:
    readers = list(_readers(operation.end, traced))
    roles = {_role(reader, traced) for reader in readers}
    role: Role = (roles.pop() if len(roles) == 1 else None) or "fixed"  # fixed as well where groups share an activation
    is_logits = any(reader.op == "output" for reader in readers)
    quantizer = ActivationQuantizer(
        precision, role, config.range_momentum, min_bits=MIN_LOGITS_BITS if is_logits else 0
    )
    _insert_after(traced, operation.end, add_quantizer(traced, "activation_quantizers", operation.head.name, quantizer))
    if role == "fixed":
        insert_requantize(traced, [node for node in readers if _role(node, traced) not in (None, "fixed")], quantizer)


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


def _role(reader: fx.Node, traced: fx.GraphModule) -> Role | None:
    module = module_of(reader, traced)
    return module.role if isinstance(module, QuantizedLayer | QuantizedRecurrent) else None


def _insert_after(traced: fx.GraphModule, node: fx.Node, target: str) -> None:
    users = list(node.users)
    with traced.graph.inserting_after(node):
        inserted = traced.graph.call_module(target, (node,))
    inserted.meta["shape"] = node.meta["shape"]
    for user in users:
        user.replace_input_with(node, inserted)
