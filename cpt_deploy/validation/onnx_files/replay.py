"""Compare every integer that onnxruntime computes with exact arithmetic on the same inputs, operator by operator.

onnxruntime writes the graph that it has optimized. That graph is run again as it is, with each tensor as an output, so
that no output prevents a fusion. Each integer operator is recomputed from onnxruntime's own integers, so that one
difference is not counted again in what follows. A stretch is a set of integer operators connected by integers.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.validation.onnx_files.files import Arrays, tensors_of, with_outputs
from cpt_deploy.validation.onnx_files.kernels.calls import Recomputed, UnknownArithmeticError
from cpt_deploy.validation.onnx_files.kernels.exact import EXACT, recompute

_OPAQUE = ("QLinear", "QAttention", "QEmbed", "DynamicQuantize", "QMoE", "QOrdered")
"""Beginnings of the names of integer operators, also of those whose arithmetic is not known."""


@dataclass(frozen=True)
class OperatorIntegers:
    """Agreement of one operator's integers.

    Args:
        name: Name of the operator in onnxruntime's graph.
        operator: Its type.
        stretch: Number of its stretch, from 1.
        values: Number of integers compared.
        mismatches: Number of differing integers.
        worst: The largest difference, in integers.
    """

    name: str
    operator: str
    stretch: int
    values: int
    mismatches: int
    worst: int


@dataclass(frozen=True)
class Replayed:
    """Agreement of all integers.

    Args:
        operators: The integer operators in graph order.
        unknown: Integer operators that were not compared, since their arithmetic is not known, counted by type
            and form.
        reproduced: Whether the graph with further outputs computed the served outputs, bit for bit.
    """

    operators: tuple[OperatorIntegers, ...]
    unknown: Mapping[str, int]
    reproduced: bool

    @property
    def compared(self) -> int:
        """Number of integers compared."""
        return sum(entry.values for entry in self.operators)

    @property
    def mismatches(self) -> int:
        """Number of differing integers."""
        return sum(entry.mismatches for entry in self.operators)

    @property
    def stretches(self) -> int:
        """Number of stretches."""
        return len({entry.stretch for entry in self.operators})


class Replay:
    """Replays a file's integer operators call by call.

    Args:
        network: The graph that onnxruntime executes.
    """

    def __init__(self, network: OnnxNetwork) -> None:
        self.network = network
        # The graph is final: with optimizations on, its operators would be changed again.
        self.session = open_session(with_outputs(network), where=network.name, threads=None, optimize=False)
        self._names = [output.name for output in self.session.get_outputs()]
        self._integer = {o.name for o in self.session.get_outputs() if _is_integer(o.type)}
        self._nodes = [node for node in network.nodes if node.op_type in EXACT]
        self._counts = {node.name: [0, 0, 0] for node in self._nodes}
        self._unknown: Counter[str] = Counter(
            node.op_type for node in network.nodes if node.op_type not in EXACT and node.op_type.startswith(_OPAQUE)
        )
        self._reproduced = True

    def run(self, inputs: Arrays) -> Arrays:
        """Return every tensor of a call by name, without sequences and other values that are none."""
        return tensors_of(self._names, self.session.run(self._names, inputs))

    def add(self, inputs: Arrays, served: Mapping[str, npt.NDArray[Any]]) -> None:
        """Recompute the integer operators of a call.

        Args:
            inputs: The inputs by name.
            served: The outputs of the session that serves the file.
        """
        got = self.run(inputs)
        self._reproduced &= all(_same(got[name], values) for name, values in served.items() if name in got)
        values = _Values(self.network, {**inputs, **got})
        for node in list(self._nodes):
            if not self._reads_codes(node, values):
                self._leave(node)
                continue
            try:
                results = recompute(node, values)
            except UnknownArithmeticError as error:
                self._leave(node)
                self._unknown[f"{node.op_type} ({error})"] += 1
                continue
            for name, result in zip(node.output, results, strict=False):
                if name:
                    self._count(node.name, result, got[name])

    def result(self) -> Replayed:
        """Return the agreement over all calls."""
        stretch = _stretches(self.network, self._nodes, self._integer)
        return Replayed(
            tuple(
                OperatorIntegers(node.name, node.op_type, stretch[node.name], *self._counts[node.name])
                for node in self._nodes
            ),
            dict(self._unknown),
            self._reproduced,
        )

    def _reads_codes(self, node: onnx.NodeProto, values: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Return whether an operator computes: a MaxPool of floats, or the dequantizer of a constant, does not."""
        if node.op_type in {"MaxPool", "DequantizeLinear"}:
            return values[node.input[0]].dtype.kind in "iu" and self.network.array(node.input[0]) is None
        return True

    def _leave(self, node: onnx.NodeProto) -> None:
        self._nodes.remove(node)
        self._counts.pop(node.name)

    def _count(self, name: str, expected: Recomputed, got: npt.NDArray[Any]) -> None:
        counts = self._counts[name]
        counts[0] += got.size
        if expected.values.shape != got.shape:
            difference = np.full(got.shape, 2.0**31)
        elif _same(expected.values, got):
            return
        else:
            difference = np.abs(expected.values.astype(np.float64) - got.astype(np.float64))
            if expected.unit is not None:
                # A sum beyond 2^24 has more digits than float32, in which the result is.
                rounding = np.abs(expected.values.astype(np.float64)) * 2.0**-22
                difference = np.rint(np.maximum(difference - rounding, 0) / expected.unit.astype(np.float64))
            difference = np.nan_to_num(difference, nan=2.0**31, posinf=2.0**31)
        counts[1] += int(np.count_nonzero(difference))
        counts[2] = max(counts[2], int(difference.max(initial=0)))


class _Values(dict[str, Any]):
    """Tensors of a call; constants are read when they are asked for."""

    def __init__(self, network: OnnxNetwork, values: Arrays) -> None:
        super().__init__(values)
        self._network = network

    def __missing__(self, name: str) -> npt.NDArray[Any]:
        array = self._network.array(name)
        if array is None:
            raise KeyError(name)
        return array


def _same(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> bool:
    return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == "f" and second.dtype.kind == "f"))


def _is_integer(kind: str) -> bool:
    return kind in {"tensor(uint8)", "tensor(int8)", "tensor(uint16)", "tensor(int16)", "tensor(int32)"}


def _stretches(network: OnnxNetwork, nodes: list[onnx.NodeProto], integer: set[str]) -> dict[str, int]:
    """Return the number of each operator's stretch: operators that exchange integers, also through movements."""
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group.setdefault(name, name) != name:
            name = group[name]
        return name

    for node in network.nodes:
        tensors = [name for name in (*node.input, *node.output) if name in integer]
        for name in tensors:
            group[root(name)] = root(f"node:{node.name}")
    numbers: dict[str, int] = {}
    return {node.name: numbers.setdefault(root(f"node:{node.name}"), len(numbers) + 1) for node in nodes}
