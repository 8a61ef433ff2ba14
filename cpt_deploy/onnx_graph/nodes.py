"""The nodes and constants of an ONNX file, and the pieces that the operations of an integer graph share."""

import hashlib
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy import __version__
from cpt_deploy.bundle.runtime.sessions import PORTABLE_KEY
from cpt_deploy.integer.accumulators import can_saturate
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Movement, OnnxPart, ReadPixels, WeightedOperation
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.onnx_parts import NO_PARTS, OnnxParts, read_names, renamed
from cpt_deploy.onnx_graph.packing import packed_tensor
from cpt_deploy.quantization.folding import Codes
from cpt_deploy.signature import TensorSpec

#: Domain of the placeholders that stand for integer operations in what `torch.onnx` writes.
DOMAIN = "cpt_deploy"
#: The first opset that multiplies int8.
_INT8_PRODUCTS = 14
#: Weights of fewer elements are stored once a layer: an operator that copies them is hardly smaller.
_LEAST_SHARED = 1024


def real_bias(operation: WeightedOperation, source: QuantizedTensor) -> NDArray[np.float32]:
    """Return the bias of a layer in real values, float32 (O,)."""
    scales = np.float32(source.scale) * operation.scales
    bias: NDArray[np.float32] = (operation.bias.astype(np.float64) * scales).astype(np.float32)
    return bias


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.whole_shape)


class GraphNodes:
    """Collects the nodes and constants of a file.

    Args:
        graph: The frozen network.
        opset: ONNX opset of the file.
        parts: The operators of an ONNX file in the graph.
    """

    def __init__(self, graph: IntegerGraph, opset: int, parts: OnnxParts = NO_PARTS) -> None:
        self.graph = graph
        self.opset = opset
        #: The layer that stores some weights, and the names of the weights that layers execute.
        self.stored_codes: dict[tuple[Any, ...], str] = {}
        self.executed: dict[str, str] = {}
        self.parts = parts
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.dequantized: set[str] = set()

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add a constant unless it is there already, and return its name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        """Add a node with one output."""
        # Only computing nodes are named: in a small network the names of quantizers are a good part of the file.
        name = output.removesuffix(".result") if output.endswith(".result") else None
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))

    def parameters(self, tensor: QuantizedTensor) -> list[str]:
        """Return the names of the scale and the zero point of a tensor."""
        # 0-dim arrays: with shape [1] onnxruntime leaves the additions in float
        scale = self.constant(f"{tensor.name}.scale", np.array(tensor.scale, dtype=np.float32))
        return [scale, self.constant(f"code_{tensor.zero_point}", np.array(tensor.zero_point, dtype=tensor.dtype))]

    def quantize(self, real: str, tensor: QuantizedTensor, *, saturate: bool = True) -> None:
        """Quantize real values. Below 8 bits the integers are clipped, which still fuses."""
        parameters = self.parameters(tensor)
        if saturate and tensor.bits < 8:
            unclipped = f"{tensor.name}.unclipped"
            self.node("QuantizeLinear", [real, *parameters], unclipped)
            low, high = (
                self.constant(f"code_{code}", np.array(code, dtype=tensor.dtype))
                for code in (tensor.quant_min, tensor.quant_max)
            )
            self.node("Clip", [unclipped, low, high], tensor.name)
        else:
            self.node("QuantizeLinear", [real, *parameters], tensor.name)

    def read_pixels(self, operation: ReadPixels, source: str, tensor: QuantizedTensor) -> None:
        """Quantize the bytes of images by the shortest operators that give the table, which has all possible values."""
        name, per_channel = tensor.name, (-1, 1, 1)
        moved = name if operation.is_identity else f"{name}.moved"
        if operation.reversed:
            order = self.constant(f"{name}.order", np.arange(len(operation.table))[::-1].astype(np.int64))
            made = f"{name}.ordered" if operation.channels_last else moved
            self.node("Gather", [source, order], made, axis=3 if operation.channels_last else 1)
            source = made
        if operation.channels_last:
            self.node("Transpose", [source], moved, perm=[0, 3, 1, 2])
            source = moved
        if operation.is_identity:
            if source != name:
                self.node("Identity", [source], name)
        elif operation.is_affine(tensor):
            self.node("Cast", [source], f"{name}.bytes", to=TensorProto.FLOAT)
            factor = self.constant(f"{name}.factor", operation.factor.reshape(per_channel))
            self.node("Mul", [f"{name}.bytes", factor], f"{name}.scaled")
            offset = self.constant(f"{name}.offset", operation.offset.reshape(per_channel))
            self.node("Add", [f"{name}.scaled", offset], f"{name}.normalised")
            self.quantize(f"{name}.normalised", tensor)
        else:
            self.node("Cast", [source], f"{name}.bytes", to=TensorProto.INT32)
            rows = 256 * np.arange(len(operation.table), dtype=np.int32).reshape(per_channel)
            self.node("Add", [f"{name}.bytes", self.constant(f"{name}.rows", rows)], f"{name}.places")
            table = self.constant(f"{name}.table", operation.table.reshape(-1))
            self.node("Gather", [table, f"{name}.places"], name)

    def real(self, name: str) -> str:
        """Return the name of a tensor's real values, dequantized on first use: readers of integers need none."""
        real = f"{name}.real"
        if name not in self.dequantized:
            self.dequantized.add(name)
            self.node("DequantizeLinear", [name, *self.parameters(self.graph.tensors[name])], real)
        return real

    def weight(self, operation: WeightedOperation, codes: Codes, *, axis: int = 0) -> str:
        """Return the name of the real values of a layer's weights, which may be rearranged but are not shifted.

        Args:
            operation: The layer.
            codes: Its quantized weights.
            axis: Their axis of the output channels.
        """
        name = operation.output
        stored = self.executed_codes(operation, codes)
        scales = self.constant(f"{name}.weight_scales", operation.scales)
        # without an explicit zero point Conv fuses but Gemm does not
        zeros = self._weight_zeros(name, len(operation.scales))
        self.node("DequantizeLinear", [stored, scales, zeros], f"{name}.weight", axis=axis)
        return f"{name}.weight"

    def _weight_zeros(self, name: str, channels: int) -> str:
        """Return zero points for this layer only: if two layers share them, `session.x64quantprecision` fails."""
        return self.constant(f"{name}.weight_zeros", np.zeros(channels, dtype=np.int8))

    def executed_codes(self, operation: WeightedOperation, codes: Codes) -> str:
        """Return the int8 weights that multiply activations; packed ones are unpacked and shifted at load.

        Weights that several layers have are stored once; each layer reads a copy that is made at load, since
        onnxruntime does not let operators share weights if it converts them. The copy is a product with a 1 of its own:
        onnxruntime removes operators that only copy, and joins those that compute the same.
        """
        if self.opset < _INT8_PRODUCTS or codes.size < _LEAST_SHARED:
            return self._new_codes(operation, codes)
        key = (codes.shape, operation.bits, operation.shift, hashlib.sha256(codes.tobytes()).digest())
        first = self.stored_codes.setdefault(key, operation.output)
        if first != operation.output:
            same = f"{operation.output}.weight_same"
            one = self.constant(f"{same}.one", np.ones((1,) * codes.ndim, dtype=np.int8))
            self.node("Mul", [self.executed[first], one], same)
            return same
        self.executed[first] = made = self._new_codes(operation, codes)
        return made

    def _new_codes(self, operation: WeightedOperation, codes: Codes) -> str:
        name = f"{operation.output}.weight_codes"
        packed = packed_tensor(name, codes, operation.bits, self.opset)
        if packed is None:
            return self.constant(name, codes << np.int8(operation.shift))
        self.constants[name] = packed
        unpacked = executed = f"{operation.output}.weight_int8"
        self.node("Cast", [name], unpacked, to=TensorProto.INT8)
        if operation.shift:
            executed = f"{operation.output}.weight_shifted"
            factor = self.constant(f"power_{operation.shift}", np.array(2**operation.shift, dtype=np.int8))
            self.node("Mul", [unpacked, factor], executed)
        return executed

    def bias(self, operation: WeightedOperation) -> str:
        """Return the name of the real values of a layer's bias."""
        name, source = operation.output, self.graph.tensors[operation.inputs[0]]
        if source.signed:  # TensorRT dequantizes no int32; others round the bias to the same integers themselves
            return self.constant(f"{name}.bias", real_bias(operation, source))
        codes = self.constant(f"{name}.bias_codes", operation.bias)
        scales = self.constant(f"{name}.bias_scales", np.float32(source.scale) * operation.scales)
        self.node("DequantizeLinear", [codes, scales], f"{name}.bias", axis=0)
        return f"{name}.bias"

    def add_operators(self, operation: OnnxPart | Movement) -> None:
        """Add operators of an ONNX file as they are, reading dequantized values, or quantized ones as they do."""
        body, names = self.parts.bodies[operation.output], {}
        for i, (value, name) in enumerate(zip(body.input, operation.inputs, strict=True)):
            stored = name not in self.graph.tensors or isinstance(operation, Movement) or i in operation.codes
            names[value.name] = name if stored else self.real(name)
        for tensor in body.initializer:  # under other names than those of other constants here
            names[tensor.name] = f"{tensor.name}.constant"
            tensor.name = names[tensor.name]
            self.constants[tensor.name] = tensor
        self.nodes.extend(renamed(node, names) for node in body.node)

    def finished(self, metadata: dict[str, str]) -> bytes:
        """Return the file, checked, with entries of its metadata."""
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
