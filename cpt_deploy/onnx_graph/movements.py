"""The operations of an integer graph that move or look up integers, as nodes of an ONNX file."""

import numpy as np

from cpt_deploy.errors import UsageError
from cpt_deploy.integer.operations import (
    Lookup,
    MaxPool,
    Operation,
    Pad,
    Reinterpret,
    Reshape,
    Slice,
    Transpose,
)
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.nodes import GraphNodes
from cpt_deploy.onnx_graph.packing import WRAP_OPSET

#: ONNX's names of the padding modes.
PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Movements(GraphNodes):
    """Adds movements, tables and reinterpretations."""

    def pad(self, operation: Pad, source: str, result: str) -> None:
        """Pad quantized values or, for runtimes that know integers only between quantizers, real values."""
        tensor = self.graph.tensors[operation.inputs[0]]
        inputs = [source, self.constant(f"{operation.output}.pads", np.array(operation.pads, dtype=np.int64))]
        if operation.mode == "circular" and self.opset < WRAP_OPSET:
            raise UsageError(f"Expected opset {WRAP_OPSET} or more for circular padding, but got {self.opset}")
        if operation.mode == "constant":
            real = self.constant("real_zero", np.array(0.0, dtype=np.float32)) if tensor.signed else None
            inputs.append(real or self.parameters(tensor)[1])
        self.node("Pad", inputs, result, mode=PAD_MODES[operation.mode])

    def table(self, operation: Lookup, source: str, result: str) -> None:
        """Write a table as its function: at the scales that `freeze` chose, every runtime computes the same table."""
        if operation.function == "Clip":
            bounds = [self.constant(f"value_{v}", np.array(v, dtype=np.float32)) for v in operation.parameters]
            self.node("Clip", [source, *bounds], result)
            return
        attributes = dict(zip(("alpha", "beta"), operation.parameters, strict=False))
        self.node(operation.function, [source], result, **attributes)

    def move(self, operation: Operation, source: str, output: QuantizedTensor, result: str) -> None:
        """Move values, between quantizers with the same parameters."""
        match operation:
            case MaxPool():
                self.node(
                    "MaxPool",
                    [source],
                    result,
                    kernel_shape=operation.kernel,
                    strides=operation.strides,
                    pads=operation.pads,
                    dilations=operation.dilations,
                    ceil_mode=int(operation.ceil),
                )
            case Pad():
                self.pad(operation, source, result)
            case Reshape():
                sizes = operation.sizes or [-1, *output.shape]
                shape = self.constant(f"{output.name}.shape", np.array(sizes, dtype=np.int64))
                self.node("Reshape", [source, shape], result)
            case Transpose():
                self.node("Transpose", [source], result, perm=operation.permutation)
            case Slice():
                bounds = [
                    self.constant(f"{output.name}.{key}", np.array([value], dtype=np.int64))
                    for key, value in (("start", operation.start), ("end", operation.end), ("axis", operation.axis))
                ]
                self.node("Slice", [source, *bounds], result)
            case _:
                raise AssertionError(f"unknown operation {type(operation).__name__}")

    def reinterpret(self, operation: Reinterpret, output: QuantizedTensor) -> None:
        """Give integers a second name, under which they are dequantized with other parameters; clip them first."""
        source = self.graph.tensors[operation.inputs[0]]
        if (operation.low, operation.high) == (source.quant_min, source.quant_max):
            self.node("Identity", [source.name], output.name)
            return
        bounds = [
            self.constant(f"code_{code}", np.array(code, dtype=source.dtype))
            for code in (operation.low, operation.high)
        ]
        self.node("Clip", [source.name, *bounds], output.name)
