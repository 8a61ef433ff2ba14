"""Let an integer graph read the bytes of images: normalisation and the first quantizer become one table."""

from dataclasses import replace

import numpy as np
import torch

from cpt_deploy.bundle import ImageProcessor
from cpt_deploy.errors import ConversionError
from cpt_deploy.integer import arithmetic
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Quantize, ReadPixels
from cpt_deploy.signature import INPUT_NAME


def reading_pixels(graph: IntegerGraph, processor: ImageProcessor) -> IntegerGraph:
    """Return a graph that takes bytes instead of normalised images, and computes the same integers from them.

    The quantized value of each byte in each channel is that of its normalised value. Nothing is approximated.

    Args:
        graph: A network of normalised images, float32 (N, C, H, W).
        processor: Its preprocessing, and the format of the bytes.

    Raises:
        ConversionError: If not only quantizers read the images: their operators need real values.
    """
    preprocessing, pixels = processor.preprocessing, processor.pixels
    assert pixels is not None
    mean, std = (np.asarray(values, np.float64) for values in (preprocessing.mean, preprocessing.std))
    factor, offset = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    every_byte = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 1, preprocessing.channels))
    real = torch.from_numpy(preprocessing.normalize(every_byte[None])[0, :, :, 0])
    operations = []
    for operation in graph.operations:
        if INPUT_NAME not in operation.inputs:
            operations.append(operation)
            continue
        if not isinstance(operation, Quantize):
            raise ConversionError(
                "Expected a network whose first layers run on integers for bytes as its input, but operators in float "
                f"read the images to compute {operation.output!r}",
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
