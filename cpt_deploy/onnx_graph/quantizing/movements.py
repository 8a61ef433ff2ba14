"""Operators of an ONNX network that move values, as movements of quantized ones."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cpt_deploy.integer.operations import Movement
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.finding.stages import serialized
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, attributes_of


def constant_pads(network: OnnxNetwork, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """Return the widths of a padding with zeros; None if it is another kind, or widths are computed."""
    mode = attributes_of(node).get("mode", "constant")
    widths = network.array(node.input[1])
    if mode != "constant" or widths is None or (len(node.input) > 3 and node.input[3]):
        return None
    return tuple(map(int, widths))


def movement(
    network: OnnxNetwork,
    node: onnx.NodeProto,
    ends: tuple[QuantizedTensor, QuantizedTensor],
    value_of: Callable[[str], onnx.ValueInfoProto],
    name_of: Mapping[str, str],
) -> Movement:
    """Return an operator as a movement of quantized values.

    Args:
        network: The network.
        node: The operator.
        ends: The quantized tensors that it reads and computes.
        value_of: Returns type and shape of a tensor.
        name_of: Names in the integer graph of tensors that are quantized; others keep theirs.
    """
    source, output = ends
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[0], copy.output[0] = source.name, output.name
    constants = [network.constants[name] for name in node.input[1:] if name in network.constants]
    nodes = [copy]
    if node.op_type == "Pad" and attributes_of(node).get("mode", "constant") == "constant":
        zero = f"{output.name}.zero"
        constants = [tensor for tensor in constants if len(node.input) < 3 or tensor.name != node.input[2]]
        constants.append(numpy_helper.from_array(np.array(source.zero_point, source.dtype), zero))
        copy.input[:] = [*copy.input[:2], zero, *copy.input[3:]]
    elif node.op_type == "Pad" and len(node.input) > 2:  # a value that other modes do not use, of a real type
        constants = [tensor for tensor in constants if tensor.name != node.input[2]]
        copy.input[2] = ""
    elif node.op_type == "Resize":
        # onnxruntime would move its transpositions behind a Resize, and repeat channels one by one; a Reshape stops it
        sizes = np.array([*[0] * len(source.shape), -1], np.int64)
        constants.append(numpy_helper.from_array(sizes, f"{output.name}.same"))
        copy.input[0] = f"{output.name}.unmoved"
        nodes.insert(0, helper.make_node("Reshape", [source.name, f"{output.name}.same"], [copy.input[0]]))
    others = dict.fromkeys(name for name in node.input[1:] if name and name not in network.constants)
    inputs = [helper.make_tensor_value_info(source.name, helper.np_dtype_to_tensor_dtype(np.dtype(source.dtype)), None)]
    inputs += [value_of(name) for name in others]
    body = helper.make_graph(nodes, "movement", inputs, [onnx.ValueInfoProto(name=output.name)], constants)
    read = (source.name, *(name_of.get(name, name) for name in others))
    return Movement(read, output.name, serialized(network, body))
