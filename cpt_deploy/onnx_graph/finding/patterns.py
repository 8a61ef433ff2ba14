"""Find the operations of an ONNX network that have an integer form: layers with what they absorb, sums, tables."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from cpt_deploy.onnx_graph.finding.absorbing import Absorber
from cpt_deploy.onnx_graph.finding.found import Found, Kind
from cpt_deploy.onnx_graph.finding.geometry import convolution_geometry
from cpt_deploy.onnx_graph.reading.network import attributes_of
from cpt_deploy.quantization.folding import Floats

#: Elementwise functions that become tables, with the attributes that are their parameters, and those's default values.
TABLES: Mapping[str, Mapping[str, float]] = {
    "Sigmoid": {}, "Tanh": {}, "Softplus": {}, "LeakyRelu": {"alpha": 0.01}, "Elu": {"alpha": 1.0}, "Relu": {},
    "Clip": {},
}  # fmt: skip
#: Operators whose results are values of their first input.
MOVEMENTS = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


class Finder(Absorber):
    """Finds integer operations in a network.

    Args:
        network: The network.
        measured: All its tensors, as seen in one run.
    """

    def find(self) -> list[Found]:
        """Return all operations that have an integer form, in order; no operator is in two of them."""
        taken: set[int] = set()
        found = []
        for i, node in enumerate(self.network.nodes):
            operation = None if i in taken or node.domain not in ("", "ai.onnx") else self._find(i, node)
            if operation is not None:
                found.append(operation)
                taken.update(operation.nodes)
        return found

    # --- operations ---------------------------------------------------------------------------------------------------

    def _find(self, i: int, node: onnx.NodeProto) -> Found | None:  # noqa: PLR0911
        if not node.input or not self._is_real(node.output[0]):
            return None
        match node.op_type:
            case "Conv" | "ConvTranspose":
                return self._convolution(i, node)
            case "Gemm" | "MatMul":
                return self._connected(i, node)
            case "Add" | "Mul" if all(map(self._is_real, node.input)):
                return self._pair(i, node)
            case "Add" | "Mul" | "Sub" | "Div" | "BatchNormalization" | "HardSigmoid":
                return self._channelwise(i, node)
            case "Concat" if all(map(self._is_real, node.input)):
                found = Found("concatenate", (i,), tuple(node.input), node.output[0], attributes=attributes_of(node))
                return self._with_clamp(found)
            case "GlobalAveragePool" | "AveragePool":
                return self._average(i, node)
            case kind if kind in TABLES and self._is_real(node.input[0]):
                return self._table(i, node)
            case kind if kind in MOVEMENTS and self._is_real(node.input[0]):
                return self._movement(i, node)
        return None

    def _convolution(self, i: int, node: onnx.NodeProto) -> Found | None:
        source, weight = node.input[0], self._constant(node.input[1])
        bias = self._bias(node, 2)
        if weight is None or bias is None or not self._is_real(source) or weight.ndim not in (3, 4):
            return None
        attributes = attributes_of(node)
        groups = attributes.get("group", 1)
        geometry = convolution_geometry(node.op_type, attributes, weight.shape[2:], self.measured[source].shape[2:])
        if geometry is None:
            return None
        if node.op_type == "ConvTranspose":  # (I, O/g, ...) to (O, I/g, ...)
            parts = np.split(weight, groups)
            weight = np.concatenate([part.swapaxes(0, 1) for part in parts])
        elif weight.shape[1] * groups != self.measured[source].shape[1]:
            return None
        channels = len(weight)
        kind: Kind = "convolution" if node.op_type == "Conv" else "transposed"
        offset = np.broadcast_to(bias, (channels,)) if bias.size in (1, channels) else None
        if offset is None:
            return None
        found = Found(kind, (i,), (source,), node.output[0], weight, np.ones(channels), offset, attributes=geometry)
        return self._with_chain(found, axis=1)

    def _bias(self, node: onnx.NodeProto, place: int) -> Floats | None:
        """Return the constant bias; zero if there is none; None if it is computed."""
        if len(node.input) <= place or not node.input[place]:
            return np.zeros(1)
        return self._constant(node.input[place])

    def _connected(self, i: int, node: onnx.NodeProto) -> Found | None:
        source, weight, attributes = node.input[0], self._constant(node.input[1]), attributes_of(node)
        bias = self._bias(node, 2) if node.op_type == "Gemm" else np.zeros(1)
        if weight is None or bias is None or weight.ndim != 2 or not self._is_real(source):
            return None
        if node.op_type == "Gemm":
            if attributes.get("transA", 0):
                return None
            weight = weight if attributes.get("transB", 0) else weight.T
            weight, bias = weight * attributes.get("alpha", 1.0), bias * attributes.get("beta", 1.0)
        else:
            weight = weight.T
        channels = len(weight)
        flat = bias.reshape(-1)
        if bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1) or flat.size not in (1, channels):
            return None
        offset = np.broadcast_to(flat, (channels,))
        found = Found("connected", (i,), (source,), node.output[0], weight, np.ones(channels), offset)
        return self._with_chain(found, axis=self._rank(node.output[0]) - 1)

    def _pair(self, i: int, node: onnx.NodeProto) -> Found | None:
        first, second = (self.measured[name].shape for name in node.input)
        if len(first) != len(second) or (node.op_type == "Add" and first != second):
            return None
        kind: Kind = "add" if node.op_type == "Add" else "multiply"
        return self._with_clamp(Found(kind, (i,), tuple(node.input), node.output[0]))

    def _channelwise(self, i: int, node: onnx.NodeProto) -> Found | None:
        source = next((name for name in node.input if self._is_real(name)), None)
        if source is None or self._rank(source) not in (3, 4):
            return None
        channels = self.measured[source].shape[1]
        known = self.network.shape(source)
        if known is None or known[1] is None:
            return None  # nothing says that there are always so many channels
        step = self._affine(node, source, axis=1, channels=channels)
        if step is None:
            return None
        found = Found("channelwise", (i,), (source,), node.output[0], None, *step)
        if node.op_type == "HardSigmoid":
            return replace(found, clamped=True)
        return self._with_chain(found, axis=1)

    def _average(self, i: int, node: onnx.NodeProto) -> Found | None:
        source, attributes = node.input[0], attributes_of(node)
        if not self._is_real(source) or self._rank(source) != 4:
            return None
        if node.op_type == "GlobalAveragePool":
            return self._with_clamp(Found("global_average", (i,), (source,), node.output[0]))
        pads = attributes.get("pads", [0] * 4)
        counted = not any(pads) or attributes.get("count_include_pad", 0)
        plain = attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        known = self.network.shape(source)
        if not counted or not plain or attributes.get("ceil_mode", 0) or not known or known[1] is None:
            return None
        if any(dilation != 1 for dilation in attributes.get("dilations", [])):
            return None
        return self._with_clamp(Found("average", (i,), (source,), node.output[0], attributes=attributes))

    def _table(self, i: int, node: onnx.NodeProto) -> Found | None:
        attributes = attributes_of(node)
        parameters = tuple(float(attributes.get(key, value)) for key, value in TABLES[node.op_type].items())
        if node.op_type == "Clip":
            bounds = [self._constant(name) if name else None for name in node.input[1:]]
            if len(bounds) != 2 or any(bound is None or bound.size != 1 for bound in bounds):
                return None
            parameters = tuple(float(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
            if not parameters[0] <= 0 <= parameters[1] or not parameters[0] < parameters[1]:
                return None
        return Found("table", (i,), (node.input[0],), node.output[0], parameters=parameters, attributes=attributes)

    def _movement(self, i: int, node: onnx.NodeProto) -> Found | None:
        source, attributes = node.input[0], attributes_of(node)
        reads_values = any(self._is_float_input(name) for name in node.input[1:]) and node.op_type != "Resize"
        if reads_values and not (node.op_type == "Pad" and self._pads_zeros(node)):
            return None
        if node.op_type == "Resize" and not self._repeats(node, attributes):
            return None
        if node.op_type == "MaxPool" and (len(node.output) > 1 or self._rank(source) not in (3, 4)):
            return None
        return Found("movement", (i,), (source,), node.output[0], attributes=attributes)

    def _is_float_input(self, name: str) -> bool:
        array = self.network.array(name) if name else None
        seen = self.measured.get(name)
        return (array is not None and array.dtype.kind == "f") or (seen is not None and seen.is_float)

    def _pads_zeros(self, node: onnx.NodeProto) -> bool:
        value = self.network.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        return value is not None and not value.any()

    def _repeats(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> bool:
        """Return whether a Resize only repeats or selects values."""
        outside = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        return attributes.get("mode", "nearest") == "nearest" and not outside
