"""Channels of depthwise convolutions in whole blocks, which onnxruntime's integer kernel works on.

On x86 it computes 16 channels at a time, and those that are left over much more slowly.
So a convolution before a depthwise one gets output channels whose weights are zero, and the next convolution reads them
with weights of zero. All other integers stay as they are.
"""

from dataclasses import replace

import numpy as np

from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import (
    Add,
    Convolution,
    GlobalAverage,
    Lookup,
    MaxPool,
    Multiply,
    Operation,
    Reinterpret,
)
from cpt_deploy.integer.tensors import QuantizedTensor

#: Channels that the kernel computes at a time.
BLOCK = 16
#: Allowed ratio of channels with the added ones to those without.
WIDER = 2
#: Operations that compute each channel from the same channel of their inputs, beside depthwise convolutions.
_CHANNEL_BY_CHANNEL = (Add, Multiply, GlobalAverage, Lookup, MaxPool, Reinterpret)


def in_channel_blocks(graph: IntegerGraph) -> IntegerGraph:
    """Return a graph of the same results in which depthwise convolutions have a multiple of 16 channels.

    Channels are added only where everything that computes or reads them is known: between dense convolutions, through
    operations that work channel by channel. A number below 8 stays as it is.
    """
    added = _added(graph)
    if not added:
        return graph
    tensors = {name: _wider(tensor, added.get(name, 0)) for name, tensor in graph.tensors.items()}
    operations = tuple(_with_channels(operation, added) for operation in graph.operations)
    return replace(graph, operations=operations, tensors=tensors)


def _added(graph: IntegerGraph) -> dict[str, int]:
    """Return the number of channels that each tensor gets."""
    sets, depthwise, fixed = _Sets(), [], {*graph.outputs}
    for operation in graph.operations:
        names = (*operation.inputs, operation.output)
        if _is_depthwise(operation, graph):
            depthwise.append(operation.output)
            sets.join(names)
        elif isinstance(operation, _CHANNEL_BY_CHANNEL):
            sets.join(names)
            if len({_channels(graph, name) for name in names}) > 1:
                fixed.add(operation.output)  # a factor for all channels
        elif not (isinstance(operation, Convolution) and operation.groups == 1):
            fixed.update(names)
    roots = {sets.root(name) for name in depthwise} - {sets.root(name) for name in fixed}
    found = {}
    for name in graph.tensors:
        channels = _channels(graph, name)
        more = -channels % BLOCK if channels else 0
        if more and sets.root(name) in roots and channels + more <= WIDER * channels:
            found[name] = more
    return found


def _channels(graph: IntegerGraph, name: str) -> int:
    """Return the number of channels of a tensor; 0 for a tensor of real values or of none."""
    shape = graph.tensors[name].shape if name in graph.tensors else ()
    return (shape[0] or 0) if shape else 0


def _is_depthwise(operation: Operation, graph: IntegerGraph) -> bool:
    """Return whether an operation convolves each channel by itself."""
    if not isinstance(operation, Convolution) or operation.groups == 1:
        return False
    return operation.groups == len(operation.codes) == _channels(graph, operation.inputs[0])


def _with_channels(operation: Operation, added: dict[str, int]) -> Operation:
    """Return a convolution with weights of zero for the channels that are added before and after it."""
    if not isinstance(operation, Convolution):
        return operation
    outputs, inputs = added.get(operation.output, 0), added.get(operation.inputs[0], 0)
    dense = operation.groups == 1
    widths = [(0, outputs), (0, inputs if dense else 0)] + [(0, 0)] * (operation.codes.ndim - 2)
    return replace(
        operation,
        codes=np.pad(operation.codes, widths),
        scales=np.pad(operation.scales, (0, outputs), mode="edge"),
        bias=np.pad(operation.bias, (0, outputs)),
        groups=1 if dense else operation.groups + outputs,
    )


def _wider(tensor: QuantizedTensor, channels: int) -> QuantizedTensor:
    return replace(tensor, shape=(tensor.channels + channels, *tensor.shape[1:])) if channels else tensor


class _Sets:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def root(self, name: str) -> str:
        """Return the name that stands for the set of a name."""
        while (parent := self._parents.get(name, name)) != name:
            name = parent
        return name

    def join(self, names: tuple[str, ...]) -> None:
        """Join the sets of some names."""
        first = self.root(names[0])
        for name in names[1:]:
            self._parents[self.root(name)] = first
