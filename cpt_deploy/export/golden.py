"""The golden sample of an exported classifier, and how far the logits of networks with float parts may lie from it."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpt_deploy.bundle import Golden, GoldenLogits, GoldenSample, OnnxRuntimeModel
from cpt_deploy.integer.executor import IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph

_TOLERATED = 10.0
"""By how much more than at export the golden logits may differ elsewhere."""
LAST_PLACES = 1e-5
"""Least tolerance as a share of the greatest logit: a few last places of float32."""
_A_CODE = 0.01
"""Likewise where a code may come out differently elsewhere though none did at export."""


def golden_sample(graph: IntegerGraph, inputs: Tensor, onnx: bytes) -> Golden:
    """Return inputs with what the integer executor computes for them.

    Args:
        graph: The frozen network.
        inputs: Normalised inputs, float32 (N, C, H, W).
        onnx: The graph as it was written; where parts of it compute in float it runs, to find the tolerance.
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
    """Return by how much a runtime's logits may differ from the executor's.

    Floats between integers differ in their last places, and where that moves a value over a rounding boundary a code
    differs by one.

    Args:
        logits: The executor's, float32 (N, K).
        served: Those of onnxruntime at export, float32 (N, K).
        least: What to allow at least, as a share of the greatest logit.
    """
    return max(_TOLERATED * float(np.abs(logits - served).max()), least * float(np.abs(logits).max()))
