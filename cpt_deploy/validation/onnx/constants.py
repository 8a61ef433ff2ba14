"""Compare the constants of model.onnx with the bundle's integer graph.

Running a model shows only errors that the data exercises. Here nothing runs: quantized weights, scales, zero points,
biases and bits of the ONNX file are read and compared with quantization.json and model.safetensors, so that a single
edited value is found wherever it is. Needs the `onnx` package, not PyTorch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.operators import require_onnx
from cpt_deploy.errors import BundleError
from cpt_deploy.integer import operations as ops
from cpt_deploy.integer.stored import graph_from_bundle
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.validation.onnx.constant_graph import (
    ConstantGraph,
    UnexpectedStructureError,
    attributes,
)
from cpt_deploy.validation.onnx.layer_constants import ConstantDifference, LayerComparison
from cpt_deploy.validation.onnx.step_constants import FULL_RANGES

_KINDS: dict[type[ops.Operation], tuple[str, ...]] = {
    ops.Convolution: ("Conv",),
    ops.FullyConnected: ("Gemm",),
    ops.Add: ("Add",),
    ops.Multiply: ("Mul",),
    ops.Concatenate: ("Concat",),
    ops.GlobalAverage: ("GlobalAveragePool",),
    ops.MaxPool: ("MaxPool",),
    ops.Pad: ("Pad",),
    ops.Reshape: ("Reshape", "Flatten"),
    ops.Transpose: ("Transpose",),
    ops.Slice: ("Slice",),
}
_MOVING = (ops.MaxPool, ops.Pad, ops.Reshape, ops.Transpose, ops.Slice)
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@dataclass(frozen=True)
class ConstantsResult:
    """The comparison of the constants of model.onnx with the integer graph.

    Args:
        compared: Number of compared values.
        differences: The differing constants, in the order of the graph.
    """

    compared: int
    differences: tuple[ConstantDifference, ...]


def compare_constants(bundle: Bundle) -> ConstantsResult:
    """Compare the constants of a bundle's model.onnx with its integer graph.

    Raises:
        BundleError: If model.onnx is no ONNX file, or the bundle's graph is incomplete or malformed.
        MissingExtraError: If `onnx` is not installed.
    """
    graph = graph_from_bundle(bundle)
    comparison = _Comparison(ConstantGraph.of_file(bundle.onnx_path.read_bytes(), graph.tensors), graph)
    try:
        comparison.run()
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"Expected quantization.json of {bundle.path} to describe the integer graph, but got: {error!r}",
            hint="export the bundle again",
        ) from error
    return ConstantsResult(comparison.compared, tuple(comparison.differences))


class _Comparison(LayerComparison):
    def run(self) -> None:
        self.products()
        self._float_constants()
        for operation in self.graph.operations:
            if isinstance(operation, ops.OnnxPart | ops.Movement):
                self.guard(operation.output, partial(self._operators, operation))
        operations = {operation.output: operation for operation in self.graph.operations}
        stepped = {operation.hidden for operation in self.graph.operations if isinstance(operation, ops.Recurrent)}
        for name, tensor in self.tensors.items():
            for check in self._checks(tensor, operations.get(name)) if name not in stepped else ():
                self.guard(name, check)
        for output, made in zip(self.graph.signature.outputs, self.graph.outputs, strict=True):
            found = self.onnx.source(output.name)
            # results of float operations have names of their own in the file
            known = made in self.tensors or isinstance(operations.get(made), ops.FullyConnected)
            if known and found != made:
                detail = f"expected {output.name} to be read from it, but it is read from {found!r}"
                self.differences.append(ConstantDifference(made, "graph", 1, 1, detail))

    def _float_constants(self) -> None:
        """Compare the constants of float operations that the file holds unchanged."""
        constants = [operation for operation in self.graph.operations if isinstance(operation, ops.Constant)]
        for i, operation in enumerate(constants):
            found = self.onnx.initializer(f"constant_{i}")
            if found is not None:
                self.compare(operation.output, "values", operation.value, found)

    def _operators(self, operation: ops.OnnxPart | ops.Movement) -> None:
        """Compare operators of an ONNX file, which stay as they are: their types, attributes and constants."""
        onnx = require_onnx()
        body = onnx.load_from_string(operation.content.tobytes()).graph
        for tensor in body.initializer:
            expected, found = onnx.numpy_helper.to_array(tensor), self.onnx.constant(f"{tensor.name}.constant")
            if expected.dtype.kind in "biuf":
                self.compare(operation.output, f"constant {tensor.name}", expected, found)
        for node in body.node:
            name = next(name for name in node.output if name)
            found = self.onnx.node(name)
            same = (found.op_type, found.domain) == (node.op_type, node.domain)
            plain = not any(entry.HasField("g") for entry in node.attribute)  # names in subgraphs may be new
            if not same or (plain and list(found.attribute) != list(node.attribute)):
                raise UnexpectedStructureError(f"expected {node.op_type} as in its file, but got {found.op_type}")

    def _checks(self, tensor: QuantizedTensor, operation: ops.Operation | None) -> Iterator[Callable[[], None]]:
        if isinstance(operation, ops.Pad):
            yield partial(self._padding, operation, tensor)
            if not tensor.signed:  # integers are padded directly, without a quantizer
                yield partial(self._dequantizers, tensor)
                return
        if isinstance(operation, ops.Reinterpret):
            yield partial(self._reinterpreted, operation)
            yield partial(self._dequantizers, tensor)
            return
        if isinstance(operation, ops.ReadPixels):
            yield partial(self._pixels, operation)
        tabled = isinstance(operation, ops.ReadPixels) and self.onnx.initializer(f"{tensor.name}.factor") is None
        if tabled or isinstance(operation, ops.Movement):  # integers without a quantizer
            yield partial(self._dequantizers, tensor)
            return
        if operation is not None and not isinstance(operation, ops.Quantize | ops.ReadPixels):
            yield partial(self._operation, operation)
        yield partial(self._quantizer, tensor, moves=isinstance(operation, _MOVING))
        yield partial(self._dequantizers, tensor)

    def _pixels(self, operation: ops.ReadPixels) -> None:
        """Compare the constants that turn bytes into quantized values; which of them are there depends on the table."""
        for part in ("factor", "offset", "table"):
            found = self.onnx.initializer(f"{operation.output}.{part}")
            if found is not None:
                self.compare(operation.output, part, getattr(operation, part).reshape(-1), found.reshape(-1))

    def _reinterpreted(self, operation: ops.Reinterpret) -> None:
        """Compare the bounds of integers that are dequantized with other parameters."""
        source, node = self.tensors[operation.inputs[0]], self.onnx.node(operation.output)
        if node.op_type not in ("Clip", "Identity") or node.input[0] != source.name:
            raise UnexpectedStructureError(f"expected the integers of {source.name!r}, but got {node.op_type}")
        bounds = [int(self.onnx.constant(name)) for name in node.input[1:]] or [source.quant_min, source.quant_max]
        expected = np.array((operation.low, operation.high))
        self.compare(operation.output, "range of integers", expected, np.array(bounds))

    def _operation(self, operation: ops.Operation) -> None:
        node, name = self.onnx.producer(operation.output), operation.output
        kinds = (operation.function,) if isinstance(operation, ops.Lookup) else _KINDS[type(operation)]
        if node.op_type not in kinds:
            raise UnexpectedStructureError(f"expected the operator {kinds[0]}, but got {node.op_type}")
        wanted = list(operation.inputs)
        inputs = [self.onnx.source(read) for read in node.input[: len(wanted)]]
        if inputs != wanted:
            raise UnexpectedStructureError(f"expected {node.op_type} to read {wanted}, but got {inputs}")
        if isinstance(operation, ops.Lookup):
            parameters = np.asarray(operation.parameters, np.float32)
            self.compare(name, "parameters", parameters, self.onnx.parameters(node))
        if isinstance(operation, ops.WeightedOperation):
            self.weights(operation, node)
            self.bias(operation, node, self.graph.multiplied(operation))

    def _quantizer(self, tensor: QuantizedTensor, *, moves: bool) -> None:
        quantizer, bounds = self.onnx.quantizer(tensor.name)
        # Operations that only move integers keep their range without another Clip.
        if bounds is not None or not moves:
            found = np.array(bounds or FULL_RANGES[tensor.signed])
            self.compare(tensor.name, "range of integers", np.array((tensor.quant_min, tensor.quant_max)), found)
        self._parameters(tensor, quantizer)

    def _padding(self, operation: ops.Pad, tensor: QuantizedTensor) -> None:
        name = operation.output
        node = self.onnx.producer(name) if tensor.signed else self.onnx.node(name)
        if node.op_type != "Pad" or self.onnx.source(node.input[0]) != operation.inputs[0]:
            raise UnexpectedStructureError(f"expected Pad of {operation.inputs[0]!r}, but got {node.op_type}")
        mode = attributes(node).get("mode", b"constant").decode()
        if mode != _PAD_MODES[operation.mode]:
            raise UnexpectedStructureError(f"expected {name!r} to be padded as {operation.mode}, but got {mode}")
        self.compare(name, "padding", np.array(operation.pads), self.onnx.constant(node.input[1]))
        if mode == "constant":
            value = self.onnx.constant(node.input[2]) if len(node.input) > 2 else np.zeros(())
            self.compare(name, "padding value", np.array(tensor.zero_point), value)

    def _dequantizers(self, tensor: QuantizedTensor) -> None:
        for reader in self.onnx.readers(tensor.name):
            if reader.output[0] in self.tensors:
                continue  # an operation of the graph
            if reader.op_type == "DequantizeLinear":
                self._parameters(tensor, reader)
            elif reader.op_type == "Pad":
                padding = self.onnx.constant(reader.input[2]) if len(reader.input) > 2 else np.zeros(())
                self.compare(tensor.name, "padding", np.array(tensor.zero_point), padding)
            if reader.op_type in {"Pad", "SpaceToDepth"}:
                for moved in self.onnx.readers(reader.output[0]):
                    self._parameters(tensor, moved)

    def _parameters(self, tensor: QuantizedTensor, node: Any) -> None:
        scale, zero_point = (self.onnx.constant(entry) for entry in node.input[1:3])
        self.compare(tensor.name, "scale", np.array(np.float32(tensor.scale)), scale.reshape(()))
        self.compare(tensor.name, "zero point", np.array(tensor.zero_point), zero_point.reshape(()))
