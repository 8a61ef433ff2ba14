"""Restore what operators of old opsets compute where onnx converts only their form: Resize, Hardmax, Dropout, Pad."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.onnx_graph.onnx_parts import subgraphs
from cpt_deploy.onnx_graph.reading.network import attributes_of, is_standard

#: The first opset in which Resize has attributes of its coordinates; before it they were asymmetric.
_RESIZE_OPSET = 11
#: The first opset in which the mask of a Dropout is bool, and the first in which it is true where values are kept.
_BOOL_MASK_OPSET, _MASK_OPSET = 10, 12
#: The first opset in which Hardmax works on one axis; before it took all from that axis on as one.
_HARDMAX_OPSET = 13


def restore_meanings(model: onnx.ModelProto, opset: int) -> None:
    """Let the operators of a model that onnx converted compute what they computed in its old opset.

    Args:
        model: The converted model; it is changed.
        opset: The opset that it had.
    """
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    elements = {tensor.name: tensor.data_type for tensor in graph.initializer}
    elements |= {value.name: value.type.tensor_type.elem_type for value in values}
    _restore(graph, opset, elements)


def _restore(graph: onnx.GraphProto, opset: int, elements: dict[str, int]) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            for body in subgraphs(attribute):
                _restore(body, opset, elements)
        if is_standard(node, "Resize") and opset < _RESIZE_OPSET:
            nodes += _resizes(graph, node)
        elif is_standard(node, "Hardmax") and opset < _HARDMAX_OPSET:
            nodes += _hardmax(node)
        elif is_standard(node, "Dropout") and opset < _MASK_OPSET and len(node.output) > 1 and node.output[1]:
            # a mask that is not bool has the type of the input
            known = (elements.get(name) for name in (node.output[1], node.input[0], node.output[0]))
            element = next(filter(None, known), TensorProto.FLOAT)
            nodes += _dropout(node, TensorProto.BOOL if opset >= _BOOL_MASK_OPSET else element)
        elif is_standard(node, "Pad"):  # the value of zeros is an input now; of other modes onnx leaves an attribute
            kept = [attribute for attribute in node.attribute if attribute.name != "value"]
            nodes.append(helper.make_node("Pad", node.input, node.output, node.name))
            nodes[-1].attribute.extend(kept)
        else:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _resizes(graph: onnx.GraphProto, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield the Resize, or two: onnxruntime rounds places of nearest values up where it makes an axis smaller."""
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    if attributes_of(node).get("mode", "nearest") != "nearest":
        yield node
        return
    scales = _constant(graph, node.input[2])
    if scales is not None and (scales >= 1).all():
        yield _rounding(node, "floor")
    elif scales is not None and (scales <= 1).all():
        yield _rounding(node, "ceil")
    else:
        output, one = node.output[0], f"{node.output[0]}_one"
        graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), one))
        smaller, factors = f"{output}_smaller", (f"{output}_below_one", f"{output}_above_one")
        yield helper.make_node("Min", [node.input[2], one], [factors[0]])
        yield helper.make_node("Max", [node.input[2], one], [factors[1]])
        for source, factor, made, rounding in (
            (node.input[0], factors[0], smaller, "ceil"),
            (smaller, factors[1], output, "floor"),
        ):
            part = onnx.NodeProto()
            part.CopyFrom(node)
            part.name = node.name if made == output else ""  # onnxruntime takes a name once
            part.input[0], part.input[2], part.output[0] = source, factor, made
            yield _rounding(part, rounding)


def _rounding(node: onnx.NodeProto, rounding: str) -> onnx.NodeProto:
    node.attribute.append(helper.make_attribute("nearest_mode", rounding))
    return node


def _constant(graph: onnx.GraphProto, name: str) -> NDArray[Any] | None:
    """Return the values of a constant of a graph; None if it is another tensor."""
    tensors = [tensor for tensor in graph.initializer if tensor.name == name]
    tensors += [
        attribute.t
        for node in graph.node
        if is_standard(node, "Constant") and name in node.output
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    return np.asarray(numpy_helper.to_array(tensors[0])) if tensors else None


def _hardmax(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield a Hardmax of (rows, values), as onnx converts Softmax."""
    output, axis = node.output[0], attributes_of(node).get("axis", 1)
    sizes, rows, largest = f"{output}_sizes", f"{output}_rows", f"{output}_largest"
    yield helper.make_node("Shape", [node.input[0]], [sizes])
    yield helper.make_node("Flatten", [node.input[0]], [rows], axis=axis)
    yield helper.make_node("Hardmax", [rows], [largest], node.name, axis=1)
    yield helper.make_node("Reshape", [largest, sizes], [output])


def _dropout(node: onnx.NodeProto, element: int) -> Iterator[onnx.NodeProto]:
    """Yield a Dropout whose mask is false throughout."""
    mask, sizes = node.output[1], f"{node.output[1]}_sizes"
    del node.output[1:]
    yield node
    yield helper.make_node("Shape", [node.input[0]], [sizes])
    value = helper.make_tensor(f"{mask}_value", element, [1], [0])
    yield helper.make_node("ConstantOfShape", [sizes], [mask], value=value)
