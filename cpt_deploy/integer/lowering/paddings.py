"""Merge zero padding into the convolutions that read the padded tensor."""

from dataclasses import replace

from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Convolution, Operation, Pad


def with_paddings_inside(graph: IntegerGraph) -> IntegerGraph:
    """Return a graph in which zero padding directly before a convolution is part of the convolution.

    So networks with the "same" padding of TensorFlow, which is wider at the end, need no extra operation.
    """
    made_by = {operation.output: operation for operation in graph.operations}
    operations: list[Operation] = []
    for operation in graph.operations:
        before = made_by.get(operation.inputs[0]) if isinstance(operation, Convolution) else None
        if isinstance(operation, Convolution) and isinstance(before, Pad) and _is_of_zeros_at_positions(before):
            pads = tuple(a + b for a, b in zip(operation.pads, _of_positions(before), strict=True))
            operation = replace(operation, inputs=before.inputs, pads=pads)  # noqa: PLW2901
        operations.append(operation)
    read = {name for operation in operations for name in operation.inputs} | {*graph.outputs}
    kept = tuple(o for o in operations if not isinstance(o, Pad) or o.output in read)
    gone = {operation.output for operation in operations} - {operation.output for operation in kept}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name not in gone}
    return replace(graph, operations=kept, tensors=tensors)


def _of_positions(pad: Pad) -> tuple[int, ...]:
    """Return the widths of the spatial dimensions: all begins, then all ends."""
    dimensions = len(pad.pads) // 2
    return (*pad.pads[2:dimensions], *pad.pads[dimensions + 2 :])


def _is_of_zeros_at_positions(pad: Pad) -> bool:
    dimensions = len(pad.pads) // 2
    others = (*pad.pads[:2], *pad.pads[dimensions : dimensions + 2])
    return pad.mode == "constant" and not any(others) and min(_of_positions(pad)) >= 0
