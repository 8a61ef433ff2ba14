"""Make tensors inside of an ONNX file outputs of it; those in the body of a Scan are outputs of each step.

Needs the `onnx` package, and no PyTorch.
"""

from collections.abc import Iterator
from typing import Any

from cpt_deploy.bundle.runtime.operators import require_onnx

IN_BODY = ".step"
"""Suffix of the names of tensors in the body of a Scan; as outputs of the file they do not have it."""


def add_outputs(model: bytes, kinds: dict[str, int]) -> bytes:
    """Return a file with tensors as further outputs, in the given order.

    Args:
        model: The serialized ONNX model.
        kinds: Element type of each tensor, by name.
    """
    onnx = require_onnx()
    helper, proto = onnx.helper, onnx.load_from_string(model)
    present = {output.name for output in proto.graph.output}
    bodies = {name: (node, body) for node, body in scans(proto.graph) for name in tensors_of(body)}
    for name, kind in kinds.items():
        if name in present:
            continue
        if name in bodies:
            node, body = bodies[name]
            body.output.append(helper.make_tensor_value_info(f"{name}{IN_BODY}", kind, [None, None]))
            _scan_once_more(node, name)
        proto.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    serialized: bytes = proto.SerializeToString()
    return serialized


def scans(graph: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the Scans of a graph with their bodies."""
    for node in graph.node:
        if node.op_type == "Scan":
            yield node, next(attribute.g for attribute in node.attribute if attribute.name == "body")


def tensors_of(body: Any) -> list[str]:
    """Return the tensors in the body of a Scan that can become outputs, by their names as outputs."""
    return [name.removesuffix(IN_BODY) for node in body.node for name in node.output if name.endswith(IN_BODY)]


def _scan_once_more(node: Any, name: str) -> None:
    """Add a scan output, in the direction of the others."""
    node.output.append(name)
    for attribute in node.attribute:
        if attribute.name == "scan_output_directions":
            attribute.ints.append(attribute.ints[0])
