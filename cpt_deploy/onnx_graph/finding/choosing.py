"""Choose which operations of an ONNX network become integers: layers, and what lies between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from cpt_deploy.onnx_graph.finding.found import Found
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.onnx_graph.reading.running import Measured


@dataclass(frozen=True)
class Choice:
    """What becomes integers.

    Attributes:
        operations: The integer operations, in order.
        real: Outputs of fully connected layers that are real numbers.
        entries: Real tensors that are quantized: inputs of the network, and results of float operators.
        spared: Positions of operators that have an integer form, but would cause most of the error.
    """

    operations: tuple[Found, ...]
    real: frozenset[str]
    entries: tuple[str, ...]
    spared: frozenset[int] = frozenset()

    @cached_property
    def nodes(self) -> frozenset[int]:
        """Positions of the operators inside of integer operations."""
        return frozenset(node for operation in self.operations for node in operation.nodes)

    @property
    def quantized(self) -> list[str]:
        """All tensors that are quantized, in order."""
        made = [operation.output for operation in self.operations if operation.output not in self.real]
        return [*self.entries, *made]


def choose(network: OnnxNetwork, measured: Mapping[str, Measured], found: list[Found]) -> Choice:
    """Choose the operations that become integers.

    Layers do. Any other operation does if what it reads is quantized anyway and a layer reads its result, directly or
    through others: between float operators integers would only cost accuracy and conversions.

    Args:
        network: The network.
        measured: Its tensors.
        found: Operations that have an integer form, in order.
    """
    inputs = {value.name for value in network.inputs}
    available: set[str] = set()
    reachable = []
    for operation in found:
        moved = operation.kind == "movement" and operation.inputs[0] in inputs
        if operation.has_weights or moved or all(name in available for name in operation.inputs):
            reachable.append(operation)
            rows = operation.kind != "connected" or len(measured[operation.output].shape) == 2
            available.update([operation.output] if rows else [])
    chosen: list[Found] = []
    needed: set[str] = set()
    real: set[str] = set()
    for operation in reversed(reachable):
        read = operation.output in needed
        if operation.kind == "connected" and (not read or len(measured[operation.output].shape) > 2):
            chosen.append(operation.without_clamp(network))
            real.add(chosen[-1].output)
        elif operation.has_weights or read:
            chosen.append(operation)
        else:
            continue
        needed.update(operation.inputs)
    chosen.reverse()
    made = {operation.output for operation in chosen} - real
    entries = dict.fromkeys(name for operation in chosen for name in operation.inputs if name not in made)
    return Choice(tuple(chosen), frozenset(real), tuple(entries))
