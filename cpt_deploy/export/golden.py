"""Make the golden sample of an exported model, with a tolerance for outputs of operations in float."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpt_deploy.bundle import Golden, OnnxRuntimeModel
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.integer.executor import Inputs, IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.signature import Signature

_TOLERATED = 10.0
"""Ratio of the tolerance to the difference that is measured at export."""
LAST_PLACES = 1e-5
"""Minimum tolerance as a share of the largest output: a few units in the last place of float32."""
_A_CODE = 0.01
"""The same if a quantized value may differ on another machine though none did at export."""
_KEPT_VALUES = 1 << 20
"""Number of values above which further rows are left out of a sample; the tolerance is measured on all of them."""


def named_inputs(signature: Signature, inputs: Inputs) -> dict[str, Tensor]:
    """Return inputs on the CPU by name, with the initial states in place of missing ones.

    Args:
        signature: The model's signature.
        inputs: Inputs (N, ...) by name, or the only one that is no state.

    Raises:
        ValueError: If they are not those of the signature.
    """
    if isinstance(inputs, Tensor):
        states = {before for before, _ in signature.states}
        names = [tensor.name for tensor in signature.inputs if tensor.name not in states]
        if len(names) != 1:
            raise ValueError(f"Expected the inputs {', '.join(names)} by name, but got one tensor")
        inputs = {names[0]: inputs}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()}
    return {name: torch.from_numpy(array) for name, array in checked_inputs(signature, arrays).items()}


def golden_sample(graph: IntegerGraph, inputs: Mapping[str, Tensor], onnx: bytes) -> Golden:
    """Return inputs with the integer executor's results: all outputs but the states, of as many rows as are small.

    Args:
        graph: The frozen network.
        inputs: Inputs by name, from `named_inputs`.
        onnx: The ONNX file of the graph; with float parts it is run to determine the tolerances.
    """
    signature = graph.signature
    states = {name for pair in signature.states for name in pair}
    arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in inputs.items()}
    with torch.no_grad():
        outputs = {name: tensor.numpy() for name, tensor in IntegerExecutor(graph).run(inputs).items()}
    outputs = {name: output for name, output in outputs.items() if name not in states}
    quantized = {
        tensor.name: graph.tensors[made].scale
        for tensor, made in zip(signature.outputs, graph.outputs, strict=True)
        if tensor.name in outputs and made in graph.tensors
    }
    tolerances = {}
    if graph.has_float_operations:
        # floats before a quantized output may change its integers too
        quantized, served = {}, OnnxRuntimeModel(onnx, signature).run(arrays)
        tolerances = {
            name: golden_tolerance(output, served[name], _A_CODE)
            for name, output in outputs.items()
            if output.dtype.kind == "f"
        }
    given = {name: array for name, array in arrays.items() if name not in states or array.any()}
    rows = max(1, _KEPT_VALUES // sum(output[0].size for output in outputs.values()))
    first = [{name: array[:rows] for name, array in part.items()} for part in (given, outputs)]
    return Golden(first[0], first[1], quantized, tolerances)


def golden_tolerance(
    outputs: npt.NDArray[np.float32], served: npt.NDArray[np.float32], least: float = LAST_PLACES
) -> float:
    """Return the tolerance of a runtime's outputs against the executor's.

    Floats between integers differ in their last digits, and where that moves a value over a rounding boundary, a
    quantized value differs by one.

    Args:
        outputs: The executor's outputs, float32.
        served: Those of onnxruntime at export, of the same shape.
        least: Minimum tolerance, as a share of the largest output.
    """
    return max(_TOLERATED * float(np.abs(outputs - served).max()), least * float(np.abs(outputs).max()))
