"""Fusion patterns: which consecutive nodes form one integer operation. Only this module decides it.

`prepare` inserts an activation quantizer after each fused operation, the fused training step computes it at once,
freezing lowers it to one integer operation, and bias rounding finds a layer's offsets in it. They all call
`fused_operations`, which finds the same operations before and after quantizers are inserted, so a graph that is copied,
pickled, or given other modules needs no record of them.

Each line of `ABSORBED` is a pattern; each of `CLAMPS` is an activation function that only saturates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx, nn

from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, Kind, kind_of, module_of
from cpt_deploy.quantization.kernels import Clamp
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.stochastic_depth import is_stochastic_depth

Norm = nn.BatchNorm1d | nn.BatchNorm2d

#: The operations after it that each kind absorbs, in this order; nothing else may read the values in between.
ABSORBED: dict[Kind, tuple[Literal["norm", "clamp"], ...]] = {
    Kind.LAYER: ("norm", "clamp"),
    Kind.NORM: ("clamp",),
    Kind.ADD: ("clamp",),
    Kind.MULTIPLY: ("clamp",),
    Kind.CONSTANT: ("clamp",),
    Kind.CONCATENATE: ("clamp",),
    Kind.AVERAGE: ("clamp",),
    Kind.GLOBAL_AVERAGE: ("clamp",),
}


def _bounds(low: float, high: float | None) -> Clamp:
    return Clamp(low) if high is None else Clamp(low, high)


#: Activation functions that clamp: module classes, and operators of captured graphs, which become such modules.
CLAMPS: dict[object, Callable[..., Clamp | None]] = {
    nn.ReLU: lambda module: Clamp(0.0),
    nn.ReLU6: lambda module: Clamp(0.0, 6.0),
    nn.Hardtanh: lambda module: Clamp(module.min_val, module.max_val),
    torch.ops.aten.relu.default: lambda x: Clamp(0.0),
    torch.ops.aten.relu6.default: lambda x: Clamp(0.0, 6.0),
    torch.ops.aten.hardtanh.default: lambda x, low=-1.0, high=1.0: Clamp(low, high),
    torch.ops.aten.clamp.default: lambda x, low=None, high=None: None if low is None else _bounds(low, high),
    torch.ops.aten.clamp_min.default: lambda x, low: Clamp(low),
}


@dataclass(frozen=True, slots=True)
class FusedOperation:
    """Nodes that form one integer operation.

    Attributes:
        kind: Kind of the first node; None for an input of the network.
        nodes: In order: the head, perhaps its BatchNorm, perhaps its clamp.
        norm: The BatchNorm that folds into it.
        clamp: The bounds of its result; infinite if there are none.
        quantizer: The activation quantizer after it, if nothing else reads the result.
    """

    kind: Kind | None
    nodes: tuple[fx.Node, ...]
    norm: Norm | None
    clamp: Clamp
    quantizer: fx.Node | None

    @property
    def head(self) -> fx.Node:
        """The node that computes."""
        return self.nodes[0]

    @property
    def end(self) -> fx.Node:
        """The node whose value is the result."""
        return self.nodes[-1]

    @property
    def clamps(self) -> bool:
        """Whether its result has bounds."""
        return self.clamp != Clamp()


def fused_operations(network: fx.GraphModule) -> list[FusedOperation]:
    """Return the fused operations of a graph, in its order.

    Args:
        network: A graph in the vocabulary, with the shapes of its nodes; with quantizers or before it has them.

    Returns:
        The inputs of the network that are read, and its operations. Nodes that keep quantized values, quantize, or
        compute in float belong to none.
    """
    found: list[FusedOperation] = []
    absorbed: set[fx.Node] = set()
    for node in network.graph.nodes:
        kind = kind_of(node, network)
        computes = kind not in (None, Kind.KEEP, Kind.QUANTIZER, Kind.RECURRENT, Kind.FLOAT)
        if node not in absorbed and (computes or (node.op == "placeholder" and node.users)):
            found.append(fused_operation(node, network))
            absorbed.update(found[-1].nodes)
    return found


def fused_operation(head: fx.Node, network: fx.GraphModule) -> FusedOperation:
    """Return the fused operation that begins with a node."""
    kind, nodes, norm, clamp = kind_of(head, network), [head], None, Clamp()
    for part in ABSORBED.get(kind, ()) if kind else ():
        replay = _only_reader(nodes[-1])
        if replay is None:
            break
        if part == "norm" and kind_of(replay, network) is Kind.NORM:
            norm = module_of(replay, network)
        elif part == "clamp" and (bounds := _clamp_of(replay, network)) is not None:
            clamp = bounds
        else:
            continue
        nodes.append(replay)
    reader = _only_reader(nodes[-1])
    quantizer = reader if isinstance(module_of(reader, network), ActivationQuantizer) else None
    return FusedOperation(kind, tuple(nodes), norm, clamp, quantizer)  # type: ignore[arg-type]


def quantizer_of(
    node: fx.Node, network: fx.GraphModule, *, training: bool = False
) -> ActivationQuantizer | Requantize | None:
    """Return the quantizer whose quantized values a node yields, perhaps moved; None if there is none.

    Args:
        node: Any node.
        network: Its graph, with quantizers.
        training: Whether in training, where dropout scales the values that it keeps, so they are not quantized values.
    """
    while kind_of(node, network) is Kind.KEEP and not (training and _scales(module_of(node, network))):
        node = node.all_input_nodes[0]
    module = module_of(node, network)
    return module if isinstance(module, ActivationQuantizer | Requantize) else None


def _scales(module: nn.Module | None) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) or is_stochastic_depth(module)


def _clamp_of(node: fx.Node, network: fx.GraphModule) -> Clamp | None:
    """Return the bounds of an activation that saturates at real zero, where quant_min of its result is."""
    module = module_of(node, network)
    find = CLAMPS.get(node.target if module is None else type(module))
    if find is None or node.meta.get(IS_FLOAT) or len(node.all_input_nodes) > 1:  # bounds that are computed
        return None
    bounds = find(*node.args, **node.kwargs) if module is None else find(module)
    return bounds if bounds is not None and 0 == bounds.low < bounds.high else None


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
