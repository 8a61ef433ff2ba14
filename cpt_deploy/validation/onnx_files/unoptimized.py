"""Compare a file's integers with those that onnxruntime computes with its optimizations off.

Then it computes float operators between the quantizers, as another runtime or a reference evaluator does.
"""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from onnx import TensorProto

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.onnx_graph.outputs import add_outputs
from cpt_deploy.validation.integers.comparison import IntegerComparison, TensorResult
from cpt_deploy.validation.integers.intermediate_outputs import (
    MOVING,
    IntermediateOutput,
    computing_operators,
    largest_harmless,
)
from cpt_deploy.validation.onnx_files.files import Arrays, OnnxFile, tensors_of, with_outputs

_KINDS = {f"tensor({name})": TensorProto.DataType.Value(name.upper()) for name in ("uint8", "int8", "uint16", "int16")}


class Unoptimized:
    """Compares integers of a file with and without onnxruntime's optimizations, call by call.

    Integer tensors of the file become outputs as far as the optimized graph stays the same.

    Args:
        file: The file.
    """

    def __init__(self, file: OnnxFile) -> None:
        kinds = _integer_tensors(file)
        content = file.graph.to_model().SerializeToString()
        plain = computing_operators(content)

        def harmless(names: tuple[str, ...]) -> bool:
            return computing_operators(add_outputs(content, {name: kinds[name] for name in names})) == plain

        names = largest_harmless(tuple(kinds), harmless)
        model = add_outputs(content, {name: kinds[name] for name in names})
        self._names = [*names, *(value.name for value in file.graph.outputs)]
        self._sessions = [open_session(model, where=str(file.path), threads=None, optimize=on) for on in (True, False)]
        made = {name: node.op_type for node in file.graph.nodes for name in node.output}
        self._comparison = IntegerComparison([IntermediateOutput(name, made[name]) for name in names])
        self.hidden = tuple(name for name in kinds if name not in names)
        """Tensors that could not be compared, since as outputs they would change the optimized graph."""

    def add(self, inputs: Arrays) -> Mapping[str, npt.NDArray[Any]]:
        """Compare a call, and return every result with optimizations off, by name."""
        optimized, plain = (tensors_of(self._names, session.run(self._names, inputs)) for session in self._sessions)
        self._comparison.add(plain, optimized)
        return plain

    def results(self) -> tuple[TensorResult, ...]:
        """Return the comparison of each tensor over all calls."""
        return self._comparison.results()


def _integer_tensors(file: OnnxFile) -> dict[str, int]:
    """Return the types of the integers that operators compute, by name."""
    session = open_session(with_outputs(file.graph), where=str(file.path), optimize=False)
    kinds = {output.name: output.type for output in session.get_outputs()}
    graph = file.graph
    return {
        name: _KINDS[kinds[name]]
        for node in graph.nodes
        for name in node.output
        if kinds.get(name) in _KINDS
        and node.op_type not in MOVING
        and name not in graph.output_names
        and any(read and read not in graph.constants for read in node.input)
    }


def differing(tensors: tuple[TensorResult, ...]) -> tuple[int, int]:
    """Return the number of differing integers, and of all compared ones."""
    return sum(tensor.mismatches for tensor in tensors), sum(tensor.values for tensor in tensors)
