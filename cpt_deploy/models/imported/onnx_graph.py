"""Simplify an ONNX graph: constants folded and all shapes known, ready to be translated node by node."""

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cpt_deploy.errors import ConversionError

Array = NDArray[Any]
Shape = tuple[int, ...]

_PROBABILITIES = ("Softmax", "LogSoftmax")


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """One operator of a graph.

    Attributes:
        kind: The operator type.
        name: Its name in the file, or that of its first output.
        inputs: Names of the inputs; an omitted input is "".
        outputs: Names of the outputs.
        attributes: Its attributes as Python values.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def describe(self) -> str:
        """Return operator type and name for error messages."""
        return f"operator {self.kind} in node {self.name!r}"


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A graph with one input and one output.

    Attributes:
        input: Name of the images.
        output: Name of the logits.
        batch: The batch size in all shapes.
        nodes: The operators in topological order.
        constants: Arrays by name.
        shapes: Shapes of tensors by name, including the batch dimension.
        softmax: The type of a final Softmax or LogSoftmax that was left out, or None.
    """

    input: str
    output: str
    batch: int
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Array]
    shapes: Mapping[str, Shape]
    softmax: str | None


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a graph that are not constants; old files list constants as inputs too."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def simplify(model: onnx.ModelProto, input_shape: tuple[int, int, int]) -> OnnxGraph:
    """Fix the shape of the input, fold constants with onnxruntime, and infer every shape.

    onnxruntime's basic optimizations give a graph of standard operators without shape arithmetic, in which a MatMul
    with a bias is a Gemm and a BatchNorm is folded into its convolution.

    Args:
        model: A model with one image input and one output.
        input_shape: Channels, height and width.

    Raises:
        ConversionError: If onnxruntime cannot run the model on such images.
    """
    fixed, batch = _with_fixed_input(model, input_shape)
    try:
        optimized = onnx.shape_inference.infer_shapes(_optimized(fixed), strict_mode=True, data_prop=True)
    except Exception as error:  # onnxruntime's exceptions and onnx's InferenceError have no common base
        reason = str(error).strip().partition("\n")[0]
        size = " x ".join(map(str, input_shape))
        raise ConversionError(
            f"Expected a model that onnxruntime runs on images of {size} (channels x height x width), but got: {reason}"
        ) from error
    graph = optimized.graph
    nodes, output, softmax = list(graph.node), graph.output[0].name, None
    if nodes and nodes[-1].op_type in _PROBABILITIES and nodes[-1].output[0] == output:
        last = nodes.pop()
        output, softmax = last.input[0], last.op_type
    values = [*graph.input, *graph.value_info, *graph.output]
    return OnnxGraph(
        input=graph_inputs(optimized)[0].name,
        output=output,
        batch=batch,
        nodes=tuple(_node(node) for node in nodes),
        constants={entry.name: np.asarray(numpy_helper.to_array(entry)) for entry in graph.initializer},
        shapes={value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim) for value in values},
        softmax=softmax,
    )


def _with_fixed_input(model: onnx.ModelProto, input_shape: tuple[int, int, int]) -> tuple[onnx.ModelProto, int]:
    """Return a copy whose input has a fixed shape, and its batch size: the file's own, or 1 if it is free."""
    fixed = copy.deepcopy(model)
    image = graph_inputs(fixed)[0]
    sizes = image.type.tensor_type.shape.dim
    batch = sizes[0].dim_value if sizes[0].HasField("dim_value") else 1
    for size, value in zip(sizes, (batch, *input_shape), strict=True):
        size.dim_value = value  # replaces a symbolic dimension
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]  # shapes with the free batch size
    return fixed, batch


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="cpt-import-") as folder:
        path = Path(folder) / "simplified.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def _node(node: onnx.NodeProto) -> OnnxNode:
    name = node.name or node.output[0]
    if node.domain not in {"", "ai.onnx"}:
        raise ConversionError(f"Expected standard operators, but got {node.domain}.{node.op_type} in node {name!r}")
    attributes = {entry.name: _plain(helper.get_attribute_value(entry)) for entry in node.attribute}
    return OnnxNode(node.op_type, name, tuple(node.input), tuple(node.output), attributes)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
