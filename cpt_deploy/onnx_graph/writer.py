"""Write an integer graph as ONNX with QuantizeLinear and DequantizeLinear, in the form that onnxruntime fuses.

Which patterns fuse was measured; comments name each pitfall where the code avoids it.
`docs/explanation/onnxruntime.md` has the whole list.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from cpt_deploy.errors import UsageError
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import (
    Add,
    Concatenate,
    Convolution,
    Embed,
    Float,
    FullyConnected,
    GlobalAverage,
    Lookup,
    Movement,
    Multiply,
    OnnxPart,
    Operation,
    Pad,
    Quantize,
    ReadPixels,
    Recurrent,
    Reinterpret,
    adds_real_bias,
)
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.movements import Movements
from cpt_deploy.onnx_graph.nodes import DOMAIN
from cpt_deploy.onnx_graph.onnx_parts import read_parts
from cpt_deploy.onnx_graph.packing import smallest_opset
from cpt_deploy.onnx_graph.recurrent import scan
from cpt_deploy.onnx_graph.stem import STRIDE, Stem, align_stem

MIN_OPSET = 13  # per-channel DequantizeLinear
MAX_OPSET = 25
#: Minimum opset in which `torch.onnx` writes LayerNormalization and the operators of attention.
FLOAT_OPSET = 18


def write_onnx(graph: IntegerGraph, *, opset: int | None = None, metadata: dict[str, str] | None = None) -> bytes:
    """Return the ONNX file of an integer graph.

    Inputs and outputs are those of the graph's signature; the batch dimension N is free, and the other free dimensions
    have their names from the signature. The uint8 or int8 tensor of each activation has its name from the graph.

    Args:
        graph: The frozen network.
        opset: ONNX opset, 13 to 25. Up to 20 all weights are stored as int8; from 21 on those of at most 4 bits as
            INT4, from 25 on those of 2 bits as INT2. None is the lowest opset with the smallest types for the weights;
            for a graph with operators of an ONNX file it is that of the file.
        metadata: Entries of the file's metadata_props; if no layer can saturate, one is added
            (`bundle.runtime.sessions`).

    Raises:
        UsageError: If the opset is outside 13 to 25, not that of operators of an ONNX file in the graph, or lacks an
            operator that the graph needs.
    """
    parts = read_parts(graph)
    if parts.opset and opset not in (None, parts.opset):
        raise UsageError(f"Expected opset {parts.opset}, that of the float operators of the file, but got {opset}")
    opset = parts.opset or (smallest_opset(graph) if opset is None else opset)
    if not parts.opset and not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(f"Expected an opset from {MIN_OPSET} to {MAX_OPSET}, but got {opset}")
    if any(isinstance(operation, Float) for operation in graph.operations):
        return _Writer(graph, max(opset, FLOAT_OPSET)).write_with_floats(metadata or {})
    return _Writer(graph, opset, parts).write(metadata or {})


class _Writer(Movements):
    def write(self, metadata: dict[str, str]) -> bytes:
        for operation in self.graph.operations:
            if isinstance(operation, OnnxPart | Movement):
                self.add_operators(operation)
            else:
                self._emit_real(operation, operation.inputs[0])
        for made, output in zip(self.graph.outputs, self.graph.signature.outputs, strict=True):
            if made in self.graph.tensors:
                self.node("DequantizeLinear", [made, *self.parameters(self.graph.tensors[made])], output.name)
            elif made != output.name:
                self.node("Identity", [made], output.name)
        return self.finished(metadata)

    def write_with_floats(self, metadata: dict[str, str]) -> bytes:
        """Write a graph with float operations: these as `torch.onnx` writes them, integer ones for placeholders."""
        from cpt_deploy.onnx_graph.float_parts import write_skeleton  # imports torch.onnx and onnxscript

        skeleton = write_skeleton(self.graph, self.opset).graph
        made = {
            value.name: tensor.name for value, tensor in zip(skeleton.input, self.graph.signature.inputs, strict=True)
        }
        for tensor in skeleton.initializer:
            self.constants[tensor.name] = tensor

        def real(name: str) -> str:
            key = made.get(name, name)
            return self.real(key) if key in self.graph.tensors else key

        operations = {operation.output: operation for operation in self.graph.operations}
        for node in skeleton.node:
            if node.domain == DOMAIN:
                operation = operations[node.attribute[0].s.decode()]
                if isinstance(operation, Recurrent):
                    hidden = self.graph.tensors[operation.hidden]
                    inputs = [real(name) for name in node.input]
                    self.nodes.append(scan(operation, hidden, inputs, list(node.output), self.opset))
                    continue
                made[node.output[0]] = operation.output
                self._emit_real(operation, real(node.input[0]))
            else:
                node.input[:] = [real(name) for name in node.input]
                node.ClearField("metadata_props")  # where in PyTorch's code the operation came from: longer than itself
                node.ClearField("doc_string")
                self.nodes.append(node)
        self._name_outputs([real(value.name) for value in skeleton.output])
        return self.finished(metadata)

    def _name_outputs(self, results: Sequence[str]) -> None:
        """Give results their names as outputs.

        Results of float operations are renamed, so that onnxruntime does not copy a state. Results of layers, which
        validation reads by their names, get an Identity, which it removes.
        """
        layers = {operation.output for operation in self.graph.weighted()}
        made = {name for node in self.nodes for name in node.output} - layers
        names: dict[str, str] = {}
        for result, output in zip(results, self.graph.signature.outputs, strict=True):
            if result in made and result not in names:
                names[result] = output.name
            else:
                self.node("Identity", [names.get(result, result)], output.name)
        for node in self.nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]

    def _emit_real(self, operation: Operation, source: str) -> None:
        """Write an integer operation of a graph with float operations."""
        match operation:
            case Quantize():
                self.quantize(source, self.graph.tensors[operation.output])
            case ReadPixels():
                self.read_pixels(operation, source, self.graph.tensors[operation.output])
            case FullyConnected() if operation.output not in self.graph.tensors:
                self._emit_product(operation)
            case Embed():
                codes = self.executed_codes(operation, operation.codes)
                scales = self.constant(f"{operation.output}.weight_scales", operation.scales[:, None])
                rows, factors, real = (f"{operation.output}.{part}" for part in ("rows", "factors", "rows_real"))
                self.node("Gather", [codes, source], rows)
                self.node("Gather", [scales, source], factors)
                self.node("Cast", [rows], real, to=TensorProto.FLOAT)
                self.node("Mul", [real, factors], operation.output)
            case _:
                self._emit(operation, self.graph.tensors[operation.output])

    def _emit_product(self, operation: FullyConnected) -> None:
        """Write a layer with a real output: Gemm for 2-D inputs, otherwise MatMul, which becomes MatMulIntegerToFloat.

        For 2-D inputs onnxruntime would fuse MatMul and Add to a float Gemm before it fuses quantizers; a Gemm with a
        float bias would stay in float, too, so with signed activations the bias is an Add after it. So it is where an
        ReLU or a clamp follows in float, with which onnxruntime would fuse the Gemm. Of more dimensions, it would fuse
        them where all sizes are known and the bias has one dimension.
        """
        name, source = operation.output, self.graph.tensors[operation.inputs[0]]
        real, rows = self.real(source.name), len(source.shape) == 1
        if not adds_real_bias(operation, source):
            self.node("Gemm", [real, self.weight(operation, operation.codes), self.bias(operation)], name, transB=1)
            return
        with_bias = operation.clamped_in_float or bool(operation.bias.any())
        result = f"{name}.product" if with_bias else name
        if rows:
            self.node("Gemm", [real, self.weight(operation, operation.codes)], result, transB=1)
        else:
            codes = np.ascontiguousarray(operation.codes.T)
            self.node("MatMul", [real, self.weight(operation, codes, axis=1)], result)
        if with_bias:
            bias = operation.bias.astype(np.float32) * (np.float32(source.scale) * operation.scales)
            if not (rows or self.graph.signature.joins_rows):
                bias = bias.reshape(1, 1, -1)
            self.node("Add", [result, self.constant(f"{name}.bias", bias)], name)

    def _emit(self, operation: Operation, output: QuantizedTensor) -> None:
        result = f"{output.name}.result"
        if isinstance(operation, Convolution | FullyConnected):
            self._emit_weighted(operation, output, result)
            self.quantize(result, output)
            return
        if isinstance(operation, Pad) and not output.signed:
            self.pad(operation, operation.inputs[0], output.name)  # between quantizers it would compute in float
            return
        if isinstance(operation, Reinterpret):
            self.reinterpret(operation, output)
            return
        inputs = [self.real(name) for name in operation.inputs]
        match operation:
            case Add():
                self.node("Add", inputs, result)
            case Multiply():
                self.node("Mul", inputs, result)
            case Concatenate():
                self.node("Concat", inputs, result, axis=operation.axis)
            case GlobalAverage():
                # not ReduceMean, which stays in float
                self.node("GlobalAveragePool", inputs, result)
            case Lookup():
                self.table(operation, inputs[0], result)
            case _:
                self.move(operation, inputs[0], output, result)
                self.quantize(result, output, saturate=False)
                return
        self.quantize(result, output)

    def _emit_weighted(self, operation: Convolution | FullyConnected, output: QuantizedTensor, result: str) -> None:
        name = operation.inputs[0]
        if isinstance(operation, FullyConnected):
            weight = self.weight(operation, operation.codes)
            self.node("Gemm", [self.real(name), weight, self.bias(operation)], result, transB=1)
            return
        codes, strides, pads = operation.codes, operation.strides, operation.pads
        # the rewritten stem is faster in onnxruntime on x86, for which signed activations are not exported
        signed = self.graph.tensors[name].signed
        stem = None if signed else align_stem(operation, self.graph.tensors[name], output)
        if stem is None:
            source = self.real(name)
        else:
            codes, strides, pads = stem.codes, stem.strides, stem.pads
            source = self._rearranged(name, stem)
        self.node(
            "Conv",
            [source, self.weight(operation, codes), self.bias(operation)],
            result,
            kernel_shape=codes.shape[2:],
            strides=strides,
            pads=pads,
            dilations=operation.dilations,
            group=operation.groups,
        )

    def _rearranged(self, name: str, stem: Stem) -> str:
        """Return the name of the real values of a tensor that is rearranged for a stem convolution."""
        tensor = self.graph.tensors[name]
        scale, zero_point = self.parameters(tensor)
        kind = "padded" if stem.added_channels else "blocks"
        codes = f"{name}.{kind}"
        if codes not in self.dequantized:
            self.dequantized.add(codes)
            if stem.added_channels:
                before = [0] * (len(tensor.shape) + 1)
                after = [0, stem.added_channels, *before[2:]]
                pads = self.constant(f"{codes}.pads", np.array(before + after, dtype=np.int64))
                self.node("Pad", [name, pads, zero_point], codes)
            else:
                self.node("SpaceToDepth", [name], codes, blocksize=STRIDE)
            self.node("DequantizeLinear", [codes, scale, zero_point], f"{codes}.real")
        return f"{codes}.real"
