"""Make the golden sample of an exported model, with a tolerance for outputs of operations in float."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpt_deploy.bundle import Golden, OnnxRuntimeModel
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.executor import Inputs, IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Constant, Float, OnnxPart, Operation, Recurrent
from cpt_deploy.signature import Signature

Floats = npt.NDArray[np.float32]

_ROUNDING = 4 * 2.0**-24
"""Relative difference of a float operation's result on another processor: a few roundings of float32, as other
instruction sets sum in another order, fuse multiply-adds, and approximate exp and erf by other polynomials."""
_DRAWS = 6
"""Number of executions with such differences, drawn at random."""
_MARGIN = 2.0
"""Ratio of the tolerance to the greatest difference of an output in them, since others are possible."""
_SELECTING = frozenset(
    {
        "cat", "clone", "constant_pad_nd", "expand", "gather", "index", "masked_fill", "permute", "relu", "select",
        "slice", "squeeze", "stack", "transpose", "unsqueeze", "view", "where",
    }
)  # fmt: skip
"""Operators of ATen that take values as they are: no processor rounds them, nor a constant such as -1e9 of a mask."""
_LAST_PLACES = 1e-4
"""Least tolerance, as a share of the largest output that differs: long sums of floats differ by more than a few
roundings."""
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
        onnx: The ONNX file of the graph; with float parts it is run too, to determine the tolerances.
    """
    signature = graph.signature
    states = {name for pair in signature.states for name in pair}
    arrays = {name: np.asarray(tensor.numpy(), order="C") for name, tensor in inputs.items()}
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
        with torch.no_grad():
            others = [
                {name: tensor.numpy() for name, tensor in OtherRoundings(graph, seed).run(inputs).items()}
                for seed in range(_DRAWS)
            ]
        outputs = _steady(outputs, [served, *others])
        tolerances = {
            name: golden_tolerance(output, [other[name] for other in (served, *others)])
            for name, output in outputs.items()
            if output.dtype.kind == "f"
        }
    given = {name: array for name, array in arrays.items() if name not in states or array.any()}
    if not signature.joins_rows:
        return Golden(given, outputs, quantized, tolerances)
    rows = max(1, _KEPT_VALUES // sum(output[0].size for output in outputs.values()))
    first = [{name: array[:rows] for name, array in part.items()} for part in (given, outputs)]
    return Golden(first[0], first[1], quantized, tolerances)


def _steady(outputs: Mapping[str, Floats], others: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Return the finite outputs whose shape, and whose integers, the last digits of floats do not decide.

    Such digits decide which of two boxes of about the same score a detector keeps.

    Raises:
        ConversionError: If there is none.
    """
    kept = {
        name: output
        for name, output in outputs.items()
        if output.size
        and np.isfinite(output).all()
        and all(
            other[name].shape == output.shape and (output.dtype.kind == "f" or np.array_equal(other[name], output))
            for other in others
        )
    }
    if not kept:
        raise ConversionError(
            "Expected an output that other processors reproduce on the first row of the data, but the last digits of "
            "floats change the shape or the integers of all of them, or they are empty, or not finite",
            hint="begin the data with an example on which the model finds something",
        )
    return kept


def golden_tolerance(outputs: Floats, others: Sequence[Floats]) -> float:
    """Return the tolerance of a runtime's outputs against the executor's.

    Floats between integers differ in their last digits, and where that moves a value over a rounding boundary, a
    quantized value differs by one, and with it all that is computed from it. How far the outputs move is found by
    executing the sample with such differences.

    Args:
        outputs: The executor's outputs, float32.
        others: Those of onnxruntime at export, and of executions with other roundings, of the same shape.
    """
    differences = np.max([np.abs(outputs - other) for other in others], axis=0)
    # values that are the same in each execution, such as -1e9 of a mask, say nothing about the others
    differing = outputs[differences > 0] if differences.any() else outputs
    return max(_MARGIN * float(differences.max()), _LAST_PLACES * float(np.abs(differing).max()))


class OtherRoundings(IntegerExecutor):
    """An executor whose float operations round as those of another processor may; integers are computed exactly.

    Args:
        graph: The frozen graph.
        seed: Seed of the differences.
    """

    def __init__(self, graph: IntegerGraph, seed: int) -> None:
        super().__init__(graph)
        self._generator = torch.Generator().manual_seed(seed)

    def _execute(self, operation: Operation, inputs: list[Tensor]) -> Tensor:
        result = super()._execute(operation, inputs)
        selects = isinstance(operation, Float) and operation.target.split(".")[1] in _SELECTING
        exact = operation.output in self.graph.tensors or isinstance(operation, Constant) or selects
        return result if exact else self._moved(result)

    def _execute_part(self, operation: OnnxPart, values: Mapping[str, Tensor]) -> list[Tensor]:
        return [self._moved(result) for result in super()._execute_part(operation, values)]

    def _run_steps(
        self,
        operation: Recurrent,
        inputs: list[Tensor],
        given: Mapping[str, Tensor] | None,
        own: dict[str, Tensor] | None,
    ) -> dict[str, Any]:
        return super()._run_steps(operation, [self._moved(x) for x in inputs], given, own)

    def _moved(self, value: Any) -> Any:
        """Return a result whose values differ by up to `_ROUNDING` of themselves; sizes stay."""
        if isinstance(value, tuple | list):
            return tuple(self._moved(part) for part in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value * (1 + _ROUNDING * (2 * torch.rand(value.shape, generator=self._generator) - 1))
