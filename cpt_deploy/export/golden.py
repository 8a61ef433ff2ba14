"""Make the golden sample of an exported classifier, with a tolerance for the logits of networks with float parts."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpt_deploy.bundle import Golden, GoldenLogits, GoldenSample, OnnxRuntimeModel
from cpt_deploy.integer.executor import IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph

_TOLERATED = 10.0
"""Ratio of the tolerance to the difference that is measured at export."""
LAST_PLACES = 1e-5
"""Minimum tolerance as a share of the largest logit: a few units in the last place of float32."""
_A_CODE = 0.01
"""The same if a quantized value may differ on another machine though none did at export."""


def golden_sample(graph: IntegerGraph, inputs: Tensor, onnx: bytes) -> Golden:
    """Return inputs with the integer executor's results.

    Args:
        graph: The frozen network.
        inputs: Normalised inputs, float32 (N, C, H, W).
        onnx: The ONNX file of the graph; with float parts it is run to determine the tolerance.
    """
    inputs = inputs.detach().cpu().to(torch.float32)
    arrays = np.ascontiguousarray(inputs.numpy())
    executor = IntegerExecutor(graph)
    if graph.has_float_operations:
        with torch.no_grad():
            logits = executor(inputs).numpy()
        return GoldenLogits(arrays, logits, golden_tolerance(logits, OnnxRuntimeModel(onnx).run(arrays), _A_CODE))
    output = graph.tensors[graph.outputs[0]]
    return GoldenSample(
        inputs=arrays,
        logit_codes=executor.trace(inputs)[output.name].numpy(),
        logit_scale=output.scale,
        logit_zero_point=output.zero_point,
    )


def golden_tolerance(
    logits: npt.NDArray[np.float32], served: npt.NDArray[np.float32], least: float = LAST_PLACES
) -> float:
    """Return the tolerance of a runtime's logits against the executor's.

    Floats between integers differ in their last digits, and where that moves a value over a rounding boundary, a
    quantized value differs by one.

    Args:
        logits: The executor's logits, float32 (N, K).
        served: The logits of onnxruntime at export, float32 (N, K).
        least: Minimum tolerance, as a share of the largest logit.
    """
    return max(_TOLERATED * float(np.abs(logits - served).max()), least * float(np.abs(logits).max()))
