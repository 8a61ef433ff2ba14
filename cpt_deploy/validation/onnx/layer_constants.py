"""Compare the constants of layers in model.onnx with the bundle's integer graph. Needs `onnx`, not PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cpt_deploy.integer import operations as ops
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.validation.onnx.constant_graph import (
    Array,
    ConstantGraph,
    UnexpectedStructureError,
    attributes,
    embedded,
    unfolded,
)
from cpt_deploy.validation.onnx.step_constants import step_constants


@dataclass(frozen=True)
class ConstantDifference:
    """A constant of model.onnx that differs from the integer graph.

    Args:
        tensor: The tensor of the graph that depends on it: the result of the layer, or the quantized tensor itself.
        part: Kind of the constant: "quantized weights", "scale", "zero point", ...
        values: Number of its values.
        differing: Number of differing values.
        detail: The first difference, as text.
    """

    tensor: str
    part: str
    values: int
    differing: int
    detail: str


class LayerComparison:
    """Compares layers, and collects differences.

    Args:
        onnx_graph: The file.
        graph: The integer graph.
    """

    def __init__(self, onnx_graph: ConstantGraph, graph: IntegerGraph) -> None:
        self.onnx, self.graph, self.tensors = onnx_graph, graph, graph.tensors
        self.compared = 0
        self.differences: list[ConstantDifference] = []

    def guard(self, name: str, check: Callable[[], None]) -> None:
        """Run a comparison; another structure is a difference."""
        try:
            check()
        except UnexpectedStructureError as error:
            self.differences.append(ConstantDifference(name, "graph", 1, 1, str(error)))

    def products(self) -> None:
        """Compare layers and embeddings whose results are real values."""
        for operation in self.graph.operations:
            match operation:
                case ops.FullyConnected() if operation.output not in self.tensors:
                    self.guard(operation.output, partial(self._product, operation, self.graph.multiplied(operation)))
                case ops.Recurrent():
                    self.guard(operation.hidden, partial(self._steps, operation, self.graph.multiplied(operation)))
                case ops.Embed():
                    self.guard(operation.output, partial(self._embedding, operation))

    def _product(self, operation: ops.FullyConnected, source: QuantizedTensor) -> None:
        name, bias = operation.output, operation.bias
        node = self.onnx.node(name)
        added: Array = np.zeros(bias.shape, np.float32)
        if node.op_type == "Add":
            # of the sizes (1, 1, O) where onnxruntime would otherwise fuse it to a float Gemm
            node, added = self.onnx.node(node.input[0]), self.onnx.constant(node.input[1]).reshape(-1)
        if node.op_type not in {"Gemm", "MatMul"} or self.onnx.source(node.input[0]) != source.name:
            raise UnexpectedStructureError(f"expected a layer that reads {source.name!r}, but got {node.op_type}")
        if node.op_type == "Gemm":
            self.weights(operation, node)
        else:
            stored, scales, zeros = self.onnx.dequantized(node.input[1])
            self.compare(name, "quantized weights", operation.executed_codes, stored.T)
            self.compare(name, "weight scales", operation.scales, scales)
            self.compare(name, "weight zero points", np.zeros(zeros.shape), zeros)
        if len(node.input) > 2:  # a Gemm has its own bias, and no Add follows
            self.bias(operation, node, source)
            bias = np.zeros_like(bias)
        self.compare(name, "bias", bias.astype(np.float32) * (np.float32(source.scale) * operation.scales), added)

    def _steps(self, operation: ops.Recurrent, hidden: QuantizedTensor) -> None:
        for part, expected, found in step_constants(self.onnx, operation, hidden):
            self.compare(hidden.name, part, expected, found)

    def _embedding(self, operation: ops.Embed) -> None:
        name, scaled = operation.output, self.onnx.node(operation.output)
        rows = self.onnx.node(self.onnx.node(scaled.input[0]).input[0])
        factors = self.onnx.node(scaled.input[1])
        kinds = (scaled.op_type, rows.op_type, factors.op_type)
        if kinds != ("Mul", "Gather", "Gather"):
            raise UnexpectedStructureError(f"expected rows times factors, but got {', '.join(kinds)}")
        self.compare(name, "quantized weights", operation.executed_codes, self.onnx.constant(rows.input[0]))
        self.compare(name, "weight scales", operation.scales[:, None], self.onnx.constant(factors.input[0]))

    def weights(self, operation: ops.WeightedOperation, node: Any) -> None:
        """Compare the weights of a layer."""
        name = operation.output
        stored, scales, zeros = self.onnx.dequantized(node.input[1])
        expected: Array = operation.executed_codes
        mover = self.onnx.mover(node.input[0])
        if mover is not None and mover.op_type == "SpaceToDepth":
            stored = unfolded(stored, attributes(mover)["blocksize"])
            assert isinstance(operation, ops.Convolution)
            expected = embedded(expected, stored.shape, operation.pads)
        elif mover is not None:
            # channels appended by Pad have zero weights
            missing = stored.shape[1] - expected.shape[1]
            expected = np.pad(expected, [(0, 0), (0, max(missing, 0)), *[(0, 0)] * (expected.ndim - 2)])
        self.compare(name, "quantized weights", expected, stored)
        self.compare(name, "weight scales", operation.scales, scales)
        self.compare(name, "weight zero points", np.zeros(zeros.shape), zeros)

    def bias(self, operation: ops.WeightedOperation, node: Any, source: QuantizedTensor) -> None:
        """Compare the bias of a layer."""
        name, expected = operation.output, operation.bias
        if len(node.input) < 3 or not node.input[2]:
            self.compare(name, "quantized biases", expected, np.zeros_like(expected))
            return
        wanted = np.float32(source.scale) * operation.scales
        if source.signed:
            real = (expected.astype(np.float64) * wanted).astype(np.float32)
            self.compare(name, "bias", real, self.onnx.constant(node.input[2]))
            return
        codes, scales, zeros = self.onnx.dequantized(node.input[2])
        self.compare(name, "quantized biases", expected, codes)
        self.compare(name, "bias scales", wanted, scales)
        self.compare(name, "bias zero points", np.zeros(zeros.shape), zeros)

    def compare(self, tensor: str, part: str, expected: Array, got: Array) -> None:
        """Compare values."""
        # All values are integers below 2^31 or float32, which float64 holds exactly.
        wanted, found = (np.asarray(array).astype(np.float64) for array in (expected, got))
        self.compared += wanted.size
        if wanted.shape != found.shape:
            detail = f"expected shape {wanted.shape}, but got {found.shape}"
            self._add(ConstantDifference(tensor, part, wanted.size, wanted.size, detail))
            return
        differing = np.argwhere(wanted != found)
        if len(differing):
            at = tuple(map(int, differing[0]))
            detail = f"expected {_number(wanted[at])}, but got {_number(found[at])}" + (f" at {at}" if at else "")
            self._add(ConstantDifference(tensor, part, wanted.size, len(differing), detail))

    def _add(self, difference: ConstantDifference) -> None:
        # The same constant is compared for the quantizer and for every dequantizer of its tensor.
        if difference not in self.differences:
            self.differences.append(difference)


def _number(value: np.float64) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.9g}"
