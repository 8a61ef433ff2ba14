"""Write an integer graph as ONNX with QuantizeLinear and DequantizeLinear, in the form that onnxruntime fuses.

Which patterns fuse was measured; comments name each pitfall where the code avoids it. `docs/quantization.md` has the
whole list.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy import __version__
from cpt_deploy.bundle.runtime.sessions import PORTABLE_KEY
from cpt_deploy.errors import UsageError
from cpt_deploy.integer.accumulators import can_saturate
from cpt_deploy.integer.graph import (
    Add,
    Concatenate,
    Convolution,
    Embed,
    Float,
    FullyConnected,
    GlobalAverage,
    IntegerGraph,
    Lookup,
    MaxPool,
    Movement,
    Multiply,
    OnnxPart,
    Operation,
    Pad,
    Quantize,
    QuantizedTensor,
    Recurrent,
    Reshape,
    Slice,
    Transpose,
    WeightedOperation,
    adds_real_bias,
)
from cpt_deploy.onnx_graph.float_parts import DOMAIN, FLOAT_OPSET, write_skeleton
from cpt_deploy.onnx_graph.onnx_parts import OnnxParts, read_parts, renamed
from cpt_deploy.onnx_graph.packing import WRAP_OPSET, packed_tensor, smallest_opset
from cpt_deploy.onnx_graph.reading.network import read_names
from cpt_deploy.onnx_graph.recurrent import scan
from cpt_deploy.onnx_graph.stem import STRIDE, Stem, align_stem
from cpt_deploy.quantization.numerics.folding import Codes
from cpt_deploy.signature import TensorSpec

#: ONNX's names of the padding modes.
PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
MIN_OPSET = 13  # per-channel DequantizeLinear
MAX_OPSET = 25


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


class _Writer:
    def __init__(self, graph: IntegerGraph, opset: int, parts: OnnxParts | None = None) -> None:
        self.graph = graph
        self.opset = opset
        self.parts = parts or OnnxParts({}, {}, 0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.dequantized: set[str] = set()

    def write(self, metadata: dict[str, str]) -> bytes:
        for operation in self.graph.operations:
            match operation:
                case OnnxPart() | Movement():
                    self._emit_nodes(operation)
                case _:
                    self._emit_real(operation, operation.inputs[0])
        for made, output in zip(self.graph.outputs, self.graph.signature.outputs, strict=True):
            if made in self.graph.tensors:
                self._node("DequantizeLinear", [made, *self._parameters(self.graph.tensors[made])], output.name)
            elif made != output.name:
                self._node("Identity", [made], output.name)
        return self._finished(metadata)

    def _emit_nodes(self, operation: OnnxPart | Movement) -> None:
        """Write operators of an ONNX file as they are, reading dequantized values, or quantized ones as they do."""
        body = self.parts.bodies[operation.output]
        names = {}
        for i, (value, name) in enumerate(zip(body.input, operation.inputs, strict=True)):
            stored = name not in self.graph.tensors or isinstance(operation, Movement) or i in operation.codes
            names[value.name] = name if stored else self._real(name)
        for tensor in body.initializer:  # under other names than those of this writer's constants
            names[tensor.name] = f"{tensor.name}.constant"
            tensor.name = names[tensor.name]
            self.constants[tensor.name] = tensor
        self.nodes.extend(renamed(node, names) for node in body.node)

    def write_with_floats(self, metadata: dict[str, str]) -> bytes:
        """Write a graph with float operations: these as `torch.onnx` writes them, integer ones for placeholders."""
        skeleton = write_skeleton(self.graph, self.opset).graph
        made = {
            value.name: tensor.name for value, tensor in zip(skeleton.input, self.graph.signature.inputs, strict=True)
        }
        for tensor in skeleton.initializer:
            self.constants[tensor.name] = tensor

        def real(name: str) -> str:
            key = made.get(name, name)
            return self._real(key) if key in self.graph.tensors else key

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
                self.nodes.append(node)
        self._name_outputs([real(value.name) for value in skeleton.output])
        return self._finished(metadata)

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
                self._node("Identity", [names.get(result, result)], output.name)
        for node in self.nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]

    def _emit_real(self, operation: Operation, source: str) -> None:
        """Write an integer operation of a graph with float operations."""
        match operation:
            case Quantize():
                self._quantize(source, self.graph.tensors[operation.output])
            case FullyConnected() if operation.output not in self.graph.tensors:
                self._emit_product(operation)
            case Embed():
                codes = self._executed_codes(operation, operation.codes)
                scales = self._constant(f"{operation.output}.weight_scales", operation.scales[:, None])
                rows, factors, real = (f"{operation.output}.{part}" for part in ("rows", "factors", "rows_real"))
                self._node("Gather", [codes, source], rows)
                self._node("Gather", [scales, source], factors)
                self._node("Cast", [rows], real, to=TensorProto.FLOAT)
                self._node("Mul", [real, factors], operation.output)
            case _:
                self._emit(operation, self.graph.tensors[operation.output])

    def _emit_product(self, operation: FullyConnected) -> None:
        """Write a layer with a real output: Gemm for 2-D inputs, otherwise MatMul, which becomes MatMulIntegerToFloat.

        For 2-D inputs onnxruntime would fuse MatMul and Add to a float Gemm before it fuses quantizers; a Gemm with a
        float bias would stay in float, too, so with signed activations the bias is an Add after it.
        """
        name, source = operation.output, self.graph.tensors[operation.inputs[0]]
        real, rows = self._real(source.name), len(source.shape) == 1
        if not adds_real_bias(source):
            self._node("Gemm", [real, self._weight(operation, operation.codes), self._bias(operation)], name, transB=1)
            return
        with_bias = bool(operation.bias.any())
        result = f"{name}.product" if with_bias else name
        if rows:
            self._node("Gemm", [real, self._weight(operation, operation.codes)], result, transB=1)
        else:
            codes = np.ascontiguousarray(operation.codes.T)
            self._node("MatMul", [real, self._weight(operation, codes, axis=1)], result)
        if with_bias:
            bias = operation.bias.astype(np.float32) * (np.float32(source.scale) * operation.scales)
            self._node("Add", [result, self._constant(f"{name}.bias", bias)], name)

    def _finished(self, metadata: dict[str, str]) -> bytes:
        signature = self.graph.signature
        inputs, outputs = (list(map(_value_info, tensors)) for tensors in (signature.inputs, signature.outputs))
        read = {name for node in self.nodes for name in read_names(node)} | {output.name for output in outputs}
        constants = [tensor for name, tensor in self.constants.items() if name in read]
        body = helper.make_graph(self.nodes, "cpt-deploy", inputs, outputs, constants)
        if not can_saturate(self.graph):
            metadata = {**metadata, PORTABLE_KEY: "true"}
        versions = {**self.parts.domains, "": self.opset}
        opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
        model = helper.make_model(
            body,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
            producer_name="cpt-deploy",
            producer_version=__version__,
        )
        helper.set_model_props(model, metadata)
        if not self.parts.bodies:  # the operators of other people's files may have no schema here
            onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())

    # --- pieces -----------------------------------------------------------------------------------------------------

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        # Only computing nodes are named: in a small network the names of quantizers are a good part of the file.
        name = output.removesuffix(".result") if output.endswith(".result") else None
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))

    def _parameters(self, tensor: QuantizedTensor) -> list[str]:
        # 0-dim arrays: with shape [1] onnxruntime leaves the additions in float
        scale = self._constant(f"{tensor.name}.scale", np.array(tensor.scale, dtype=np.float32))
        return [scale, self._constant(f"code_{tensor.zero_point}", np.array(tensor.zero_point, dtype=tensor.dtype))]

    def _quantize(self, real: str, tensor: QuantizedTensor, *, saturate: bool = True) -> None:
        """Quantize real values. Below 8 bits the integers are clipped, which still fuses."""
        parameters = self._parameters(tensor)
        if saturate and tensor.bits < 8:
            unclipped = f"{tensor.name}.unclipped"
            self._node("QuantizeLinear", [real, *parameters], unclipped)
            low, high = (
                self._constant(f"code_{code}", np.array(code, dtype=tensor.dtype))
                for code in (tensor.least, tensor.quant_max)
            )
            self._node("Clip", [unclipped, low, high], tensor.name)
        else:
            self._node("QuantizeLinear", [real, *parameters], tensor.name)

    def _real(self, name: str) -> str:
        """Return the name of a tensor's real values, dequantized on first use: readers of integers need none."""
        real = f"{name}.real"
        if name not in self.dequantized:
            self.dequantized.add(name)
            self._node("DequantizeLinear", [name, *self._parameters(self.graph.tensors[name])], real)
        return real

    def _emit(self, operation: Operation, output: QuantizedTensor) -> None:
        result = f"{output.name}.result"
        if isinstance(operation, Convolution | FullyConnected):
            self._emit_weighted(operation, output, result)
            self._quantize(result, output)
            return
        if isinstance(operation, Pad) and not output.signed:
            self._pad(operation, operation.inputs[0], output.name)  # between quantizers it would compute in float
            return
        inputs = [self._real(name) for name in operation.inputs]
        match operation:
            case Add():
                self._node("Add", inputs, result)
            case Multiply():
                self._node("Mul", inputs, result)
            case Concatenate():
                self._node("Concat", inputs, result, axis=operation.axis)
            case GlobalAverage():
                # not ReduceMean, which stays in float
                self._node("GlobalAveragePool", inputs, result)
            case Lookup():
                self._emit_function(operation, inputs[0], result)
            case _:
                self._emit_movement(operation, inputs[0], output, result)
                self._quantize(result, output, saturate=False)
                return
        self._quantize(result, output)

    def _emit_weighted(self, operation: Convolution | FullyConnected, output: QuantizedTensor, result: str) -> None:
        name = operation.inputs[0]
        if isinstance(operation, FullyConnected):
            weight = self._weight(operation, operation.codes)
            self._node("Gemm", [self._real(name), weight, self._bias(operation)], result, transB=1)
            return
        codes, strides, pads = operation.codes, operation.strides, operation.pads
        # the rewritten stem is faster in onnxruntime on x86, for which signed activations are not exported
        signed = self.graph.tensors[name].signed
        stem = None if signed else align_stem(operation, self.graph.tensors[name], output)
        if stem is None:
            source = self._real(name)
        else:
            codes, strides, pads = stem.codes, stem.strides, stem.pads
            source = self._rearranged(name, stem)
        self._node(
            "Conv",
            [source, self._weight(operation, codes), self._bias(operation)],
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
        scale, zero_point = self._parameters(tensor)
        kind = "padded" if stem.added_channels else "blocks"
        codes = f"{name}.{kind}"
        if codes not in self.dequantized:
            self.dequantized.add(codes)
            if stem.added_channels:
                before = [0] * (len(tensor.shape) + 1)
                after = [0, stem.added_channels, *before[2:]]
                pads = self._constant(f"{codes}.pads", np.array(before + after, dtype=np.int64))
                self._node("Pad", [name, pads, zero_point], codes)
            else:
                self._node("SpaceToDepth", [name], codes, blocksize=STRIDE)
            self._node("DequantizeLinear", [codes, scale, zero_point], f"{codes}.real")
        return f"{codes}.real"

    def _pad(self, operation: Pad, source: str, result: str) -> None:
        """Pad quantized values or, for runtimes that know integers only between quantizers, real values."""
        tensor = self.graph.tensors[operation.inputs[0]]
        inputs = [source, self._constant(f"{operation.output}.pads", np.array(operation.pads, dtype=np.int64))]
        if operation.mode == "circular" and self.opset < WRAP_OPSET:
            raise UsageError(f"Expected opset {WRAP_OPSET} or more for circular padding, but got {self.opset}")
        if operation.mode == "constant":
            real = self._constant("real_zero", np.array(0.0, dtype=np.float32)) if tensor.signed else None
            inputs.append(real or self._parameters(tensor)[1])
        self._node("Pad", inputs, result, mode=PAD_MODES[operation.mode])

    def _weight(self, operation: WeightedOperation, codes: Codes, *, axis: int = 0) -> str:
        """Return the name of the real values of a layer's weights, which may be rearranged but are not shifted.

        Args:
            operation: The layer.
            codes: Its quantized weights.
            axis: Their axis of the output channels.
        """
        name = operation.output
        stored = self._executed_codes(operation, codes)
        scales = self._constant(f"{name}.weight_scales", operation.scales)
        # without an explicit zero point Conv fuses but Gemm does not
        zeros = self._weight_zeros(name, len(operation.scales))
        self._node("DequantizeLinear", [stored, scales, zeros], f"{name}.weight", axis=axis)
        return f"{name}.weight"

    def _weight_zeros(self, name: str, channels: int) -> str:
        """Return zero points for this layer only: if two layers share them, `session.x64quantprecision` fails."""
        return self._constant(f"{name}.weight_zeros", np.zeros(channels, dtype=np.int8))

    def _executed_codes(self, operation: WeightedOperation, codes: Codes) -> str:
        """Return the int8 weights that multiply activations; packed ones are unpacked and shifted at load."""
        name = f"{operation.output}.weight_codes"
        packed = packed_tensor(name, codes, operation.bits, self.opset)
        if packed is None:
            return self._constant(name, codes << np.int8(operation.shift))
        self.constants[name] = packed
        unpacked = executed = f"{operation.output}.weight_int8"
        self._node("Cast", [name], unpacked, to=TensorProto.INT8)
        if operation.shift:
            executed = f"{operation.output}.weight_shifted"
            factor = self._constant(f"power_{operation.shift}", np.array(2**operation.shift, dtype=np.int8))
            self._node("Mul", [unpacked, factor], executed)
        return executed

    def _bias(self, operation: WeightedOperation) -> str:
        name, source = operation.output, self.graph.tensors[operation.inputs[0]]
        if source.signed:  # TensorRT dequantizes no int32; others round the bias to the same integers themselves
            return self._constant(f"{name}.bias", real_bias(operation, source))
        codes = self._constant(f"{name}.bias_codes", operation.bias)
        scales = self._constant(f"{name}.bias_scales", np.float32(source.scale) * operation.scales)
        self._node("DequantizeLinear", [codes, scales], f"{name}.bias", axis=0)
        return f"{name}.bias"

    def _emit_function(self, operation: Lookup, source: str, result: str) -> None:
        """Write a table as its function: at the scales that `freeze` chose, every runtime computes the same table."""
        if operation.function == "Clip":
            bounds = [self._constant(f"value_{v}", np.array(v, dtype=np.float32)) for v in operation.parameters]
            self._node("Clip", [source, *bounds], result)
            return
        attributes = dict(zip(("alpha", "beta"), operation.parameters, strict=False))
        self._node(operation.function, [source], result, **attributes)

    def _emit_movement(self, operation: Operation, source: str, output: QuantizedTensor, result: str) -> None:
        match operation:
            case MaxPool():
                self._node(
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
                self._pad(operation, source, result)
            case Reshape():
                sizes = operation.sizes or [-1, *output.shape]
                shape = self._constant(f"{output.name}.shape", np.array(sizes, dtype=np.int64))
                self._node("Reshape", [source, shape], result)
            case Transpose():
                self._node("Transpose", [source], result, perm=operation.permutation)
            case Slice():
                bounds = [
                    self._constant(f"{output.name}.{key}", np.array([value], dtype=np.int64))
                    for key, value in (("start", operation.start), ("end", operation.end), ("axis", operation.axis))
                ]
                self._node("Slice", [source, *bounds], result)
            case _:
                raise AssertionError(f"unknown operation {type(operation).__name__}")


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.whole_shape)


def real_bias(operation: WeightedOperation, source: QuantizedTensor) -> NDArray[np.float32]:
    """Return the bias of a layer in real values, float32 (O,)."""
    scales = np.float32(source.scale) * operation.scales
    bias: NDArray[np.float32] = (operation.bias.astype(np.float64) * scales).astype(np.float32)
    return bias
