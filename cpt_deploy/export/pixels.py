"""Let an integer graph read the bytes of images: normalisation and the first quantizer become one table."""

from dataclasses import replace

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle import ImageProcessor
from cpt_deploy.bundle.processors.pixel_format import PixelFormat
from cpt_deploy.errors import ConversionError
from cpt_deploy.integer import arithmetic
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import OnnxPart, Operation, Quantize, ReadPixels
from cpt_deploy.onnx_graph.onnx_parts import read_parts
from cpt_deploy.signature import INPUT_NAME

NORMALISED = "image_normalised"
"""Name of the real values of images that operators in float read."""


def reading_pixels(graph: IntegerGraph, processor: ImageProcessor) -> IntegerGraph:
    """Return a graph that takes bytes instead of normalised images, and computes the same integers from them.

    The quantized value of each byte in each channel is that of its normalised value. Nothing is approximated.

    Args:
        graph: A network of normalised images, float32 (N, C, H, W).
        processor: Its preprocessing, and the format of the bytes.

    Raises:
        ConversionError: If PyTorch's operators in float read the images.
    """
    preprocessing, pixels = processor.preprocessing, processor.pixels
    assert pixels is not None
    mean, std = (np.asarray(values, np.float64) for values in (preprocessing.mean, preprocessing.std))
    factor, offset = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    every_byte = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 1, preprocessing.channels))
    real = torch.from_numpy(preprocessing.normalize(every_byte[None])[0, :, :, 0])
    operations: list[Operation] = []
    for operation in graph.operations:
        if INPUT_NAME not in operation.inputs:
            operations.append(operation)
            continue
        if isinstance(operation, OnnxPart):
            if not any(made.output == NORMALISED for made in operations):
                operations.append(_prologue(real.numpy(), (factor, offset), pixels, read_parts(graph).opset))
            inputs = tuple(NORMALISED if name == INPUT_NAME else name for name in operation.inputs)
            operations.append(replace(operation, inputs=inputs))
            continue
        if not isinstance(operation, Quantize):
            raise ConversionError(
                "Expected a network whose first layers run on integers for bytes as its input, but operators of "
                f"PyTorch in float read the images to compute {operation.output!r}",
                hint="leave --input out: the bundle then takes normalised images",
            )
        tensor = graph.tensors[operation.output]
        table = arithmetic.quantize(real, tensor).numpy().astype(tensor.dtype)
        operations.append(
            ReadPixels(
                operation.inputs, operation.output, np.ascontiguousarray(table), factor, offset,
                channels_last=pixels.layout == "NHWC", reversed=pixels.order == "BGR",
            )
        )  # fmt: skip
    return replace(graph, signature=replace(graph.signature, inputs=(processor.input,)), operations=tuple(operations))


def _prologue(
    real: NDArray[np.float32],
    line: tuple[NDArray[np.float32], NDArray[np.float32]],
    pixels: PixelFormat,
    opset: int,
) -> OnnxPart:
    """Return the operators that normalise bytes: a product and a sum if they give the same values, else a table.

    Args:
        real: The normalised value of each byte in each channel, (C, 256).
        line: Factor and offset per channel, (C,), that give about these values.
        pixels: The format of the bytes.
        opset: ONNX opset of the operators.
    """
    channels, per_channel = len(real), (-1, 1, 1)
    nodes, constants, source = list[onnx.NodeProto](), dict[str, NDArray[np.generic]](), INPUT_NAME

    def add(kind: str, name: str, constant: NDArray[np.generic] | None = None, **attributes: object) -> str:
        inputs = [source] if constant is None else [source, f"{NORMALISED}.{name}"]
        if constant is not None:
            constants[inputs[1]] = constant
        nodes.append(helper.make_node(kind, inputs, [f"{NORMALISED}.made_{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    if pixels.layout == "NHWC":
        source = add("Transpose", "", perm=[0, 3, 1, 2])
    if pixels.order == "BGR":
        source = add("Gather", "order", np.arange(channels)[::-1].astype(np.int64), axis=1)
    factor, offset = (values.reshape(per_channel) for values in line)
    if np.array_equal(np.arange(256, dtype=np.float32) * line[0][:, None] + line[1][:, None], real):
        source = add("Cast", "", to=TensorProto.FLOAT)
        source = add("Mul", "factor", factor)
        add("Add", "offset", offset)
    else:
        source = add("Cast", "", to=TensorProto.INT32)
        source = add("Add", "rows", 256 * np.arange(channels, dtype=np.int32).reshape(per_channel))
        add("Gather", "table", real.reshape(-1))
        nodes[-1].input[:] = [nodes[-1].input[1], source]
    nodes[-1].output[0] = NORMALISED
    size = (None, None, channels) if pixels.layout == "NHWC" else (channels, None, None)
    body = helper.make_graph(
        nodes, "prologue", [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, (None, *size))],
        [helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, (None, channels, None, None))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    content = np.frombuffer(model.SerializeToString(deterministic=True), dtype=np.uint8)
    return OnnxPart((INPUT_NAME,), NORMALISED, (NORMALISED,), (), content)
