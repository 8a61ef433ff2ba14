"""Add the integers of a language model's products as intermediate outputs; inside of a Scan, those of each step."""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

_KINDS = ((0, TensorProto.UINT8), (1, TensorProto.INT32))

CODES, SUMS = "codes", "sums"


def with_product_outputs(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a model with outputs "tap:NAME.codes" and "tap:NAME.sums", the input and the result of each product.

    Args:
        content: A serialized model whose MatMulInteger nodes output "NAME.sums".

    Returns:
        The model, and the names of the products in their order.
    """
    model = onnx.load_from_string(content)
    names: list[str] = []
    for node in list(model.graph.node):
        if node.op_type == "MatMulInteger":
            names.append(_product(node))
            for name, kind in _integers(node):
                observable = f"tap:{name}"
                model.graph.node.append(helper.make_node("Identity", [_source(node, name)], [observable]))
                model.graph.output.append(helper.make_tensor_value_info(observable, kind, None))
        elif node.op_type == "Scan":
            names += _observable_body(model.graph, node)
    serialized: bytes = model.SerializeToString()
    return serialized, tuple(names)


def _observable_body(graph: onnx.GraphProto, scan: onnx.NodeProto) -> list[str]:
    """Add the integers of the products in a Scan's body as outputs, and return the products' names."""
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    names = []
    for node in list(body.node):
        if node.op_type != "MatMulInteger":
            continue
        names.append(_product(node))
        for name, kind in _integers(node):
            inner = f"step:{name}"
            body.node.append(helper.make_node("Identity", [_source(node, name)], [inner]))
            body.output.append(helper.make_tensor_value_info(inner, kind, [None, None]))
            scan.output.append(f"tap:{name}")
            graph.output.append(helper.make_tensor_value_info(f"tap:{name}", kind, None))
    return names


def _product(node: onnx.NodeProto) -> str:
    return str(node.output[0]).removesuffix(f".{SUMS}")


def _integers(node: onnx.NodeProto) -> list[tuple[str, int]]:
    return [(f"{_product(node)}.{CODES}", _KINDS[0][1]), (f"{_product(node)}.{SUMS}", _KINDS[1][1])]


def _source(node: onnx.NodeProto, name: str) -> str:
    return str(node.output[0] if name.endswith(f".{SUMS}") else node.input[0])


Integers = dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]]
"""Quantized input and integer sums of each product, by its name."""
