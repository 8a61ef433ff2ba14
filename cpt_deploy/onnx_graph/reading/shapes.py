"""Shapes and types of the tensors of an ONNX model, as far as onnx infers them."""

import math

import onnx
from onnx import helper, shape_inference

#: Constants of more elements hold weights, not sizes.
SMALL = 2**10


def infer_shapes(model: onnx.ModelProto) -> None:
    """Record the types that onnx infers; none if inference fails. Large constants are not copied for it."""
    graph, light = model.graph, onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        inferred = shape_inference.infer_shapes(light, strict_mode=False, data_prop=True).graph
    except Exception:  # errors of the C++ library have no common base class; without types less is quantized
        return
    for ours, found in ((graph.value_info, inferred.value_info), (graph.output, inferred.output)):
        del ours[:]
        ours.extend(found)
