"""Find the operations of an ONNX network that have an integer form: layers with what they absorb, sums, tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx

from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, attributes_of, is_standard
from cpt_deploy.quantization.numerics.folding import Floats

Kind = Literal[
    "convolution", "transposed", "connected", "channelwise", "add", "multiply", "concatenate", "global_average",
    "average", "table", "movement",
]  # fmt: skip

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


@dataclass(frozen=True, eq=False)
class Found:
    """Operators that are one integer operation.

    Attributes:
        kind: What it becomes.
        nodes: Positions of its operators, the one that computes first.
        inputs: Tensors that it reads, without constants.
        output: Tensor that it computes.
        weight: Weights with output channels first, float64; for a channelwise operation None.
        factor: Factor of each output channel, float64 (O,); absorbed BatchNorm and arithmetic with constants.
        offset: What is added after it, float64 (O,).
        clamped: Whether it ends with a clamp at 0 (and maybe at an upper bound, which its range has).
        attributes: Attributes of the computing operator.
        parameters: Parameters of a table's function.
    """

    kind: Kind
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    output: str
    weight: Floats | None = None
    factor: Floats | None = None
    offset: Floats | None = None
    clamped: bool = False
    attributes: Mapping[str, Any] | None = None
    parameters: tuple[float, ...] = ()

    def without_clamp(self, network: OnnxNetwork) -> "Found":
        """Return the operation without the clamp that it ends with."""
        if not self.clamped or len(self.nodes) < 2:
            return self
        nodes = self.nodes[:-1]
        return replace(self, nodes=nodes, output=network.nodes[nodes[-1]].output[0], clamped=False)

    @property
    def has_weights(self) -> bool:
        """Whether it is a layer."""
        return self.kind in ("convolution", "transposed", "connected")


@dataclass(frozen=True)
class Measured:
    """A tensor as it was seen in a run.

    Attributes:
        shape: Its shape.
        is_float: Whether it is float32.
    """

    shape: tuple[int, ...]
    is_float: bool


class Finder:
    """Finds integer operations in a network.

    Args:
        network: The network.
        measured: All its tensors, as seen in one run.
    """

    def __init__(self, network: OnnxNetwork, measured: Mapping[str, Measured]) -> None:
        self.network, self.measured = network, measured

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

    # --- facts --------------------------------------------------------------------------------------------------------

    def _is_real(self, name: str) -> bool:
        """Return whether a tensor is computed, float32, and has a dimension after the first."""
        seen = self.measured.get(name)
        return seen is not None and seen.is_float and len(seen.shape) >= 2 and name not in self.network.constants

    def _rank(self, name: str) -> int:
        return len(self.measured[name].shape)

    def _constant(self, name: str) -> Floats | None:
        array = self.network.array(name) if name else None
        if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
            return None
        values: Floats = array.astype(np.float64)
        return values

    def _only_reader(self, name: str) -> int | None:
        """Return the position of the operator that reads a tensor, if nothing else does."""
        readers = self.network.readers.get(name, [])
        if len(readers) != 1 or name in self.network.output_names:
            return None
        reader = self.network.nodes[readers[0]]
        return readers[0] if list(reader.input).count(name) == 1 else None

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

    # --- what operations absorb -----------------------------------------------------------------------------------

    def _with_chain(self, found: Found, axis: int) -> Found:
        """Absorb BatchNorm and arithmetic with constants per channel, then a clamp."""
        assert found.factor is not None
        while (reader := self._only_reader(found.output)) is not None:
            step = self._affine(self.network.nodes[reader], found.output, axis, len(found.factor))
            if step is None or self.network.nodes[reader].op_type == "HardSigmoid":
                break
            assert found.factor is not None
            assert found.offset is not None
            factor, offset = step
            found = replace(
                found,
                nodes=(*found.nodes, reader),
                output=self.network.nodes[reader].output[0],
                factor=found.factor * factor,
                offset=found.offset * factor + offset,
            )
        return self._with_clamp(found)

    def _with_clamp(self, found: Found) -> Found:
        reader = self._only_reader(found.output)
        if reader is None or not self._is_clamp(self.network.nodes[reader]):
            return found
        output = self.network.nodes[reader].output[0]
        return replace(found, nodes=(*found.nodes, reader), output=output, clamped=True)

    def _is_clamp(self, node: onnx.NodeProto) -> bool:
        if is_standard(node, "Relu"):
            return True
        if not is_standard(node, "Clip") or len(node.input) < 2:
            return False
        low, *high = (self.network.array(name) if name else None for name in node.input[1:])
        if low is None or low.size != 1 or float(low.reshape(-1)[0]) != 0:
            return False
        if len(node.input) > 2 and node.input[2]:
            return high[0] is not None and high[0].size == 1 and float(high[0].reshape(-1)[0]) > 0
        return True

    def _affine(  # noqa: PLR0911
        self, node: onnx.NodeProto, source: str, axis: int, channels: int
    ) -> tuple[Floats, Floats] | None:
        """Return factor and offset per channel of an operator that computes `x · factor + offset`."""
        if node.domain not in ("", "ai.onnx") or not self._is_real(source):
            return None
        if is_standard(node, "HardSigmoid"):
            attributes = attributes_of(node)
            alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
            return np.full(channels, alpha), np.full(channels, beta)
        if is_standard(node, "BatchNormalization"):
            return self._normalisation(node, source, axis, channels)
        if not is_standard(node, "Add", "Sub", "Mul", "Div") or node.input[0] == node.input[1]:
            return None
        place = list(node.input).index(source)
        values = self._per_channel(node.input[1 - place], self._rank(source), axis, channels)
        if values is None:
            return None
        one, zero = np.ones(channels), np.zeros(channels)
        match node.op_type:
            case "Add":
                return one, values
            case "Mul":
                return values, zero
            case "Sub":
                return (one, -values) if place == 0 else (-one, values)
            case _:
                return (1 / values, zero) if place == 0 and values.all() else None

    def _normalisation(
        self, node: onnx.NodeProto, source: str, axis: int, channels: int
    ) -> tuple[Floats, Floats] | None:
        attributes = attributes_of(node)
        if node.input[0] != source or axis != 1 or attributes.get("training_mode", 0) or len(node.output) > 1:
            return None
        values = [self._constant(name) for name in node.input[1:5]]
        if any(value is None or value.shape != (channels,) for value in values):
            return None
        gamma, beta, mean, variance = (value for value in values if value is not None)
        factor = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        return factor, beta - mean * factor

    def _per_channel(self, name: str, rank: int, axis: int, channels: int) -> Floats | None:
        """Return a constant that broadcasts along all dimensions but one, as (C,)."""
        values = self._constant(name)
        if values is None or values.ndim > rank:
            return None
        shape = (*[1] * (rank - values.ndim), *values.shape)
        if any(size != 1 for place, size in enumerate(shape) if place != axis) or shape[axis] not in (1, channels):
            return None
        return np.broadcast_to(values.reshape(-1), (channels,))


def convolution_geometry(
    kind: str, attributes: Mapping[str, Any], kernel: Sequence[int], size: Sequence[int]
) -> dict[str, Any] | None:
    """Return strides, pads, dilations and groups of a convolution, and output padding of a transposed one.

    None if the padding depends on a size that may be another one in another run.
    """
    dimensions = len(kernel)
    ones = [1] * dimensions
    strides, dilations = (attributes.get(key) or ones for key in ("strides", "dilations"))
    pads = attributes.get("pads") or [0] * 2 * dimensions
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        if kind != "Conv" or any(stride != 1 for stride in strides):
            return None  # `with_known_pads` resolves it where sizes are fixed
        total = [dilation * (k - 1) for k, dilation in zip(kernel, dilations, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*small, *large] if automatic == "SAME_UPPER" else [*large, *small]
    elif automatic == "VALID":
        pads = [0] * 2 * dimensions
    geometry = {"strides": strides, "dilations": dilations, "pads": pads, "groups": attributes.get("group", 1)}
    if kind == "Conv":
        return geometry if min(pads) >= 0 else None
    begins, ends = pads[:dimensions], pads[dimensions:]
    extra = attributes.get("output_padding") or [0] * dimensions
    if attributes.get("output_shape") or min(pads) < 0:
        return None
    # a wider end of the padding cuts outputs, as less output padding would
    output_padding = [more + begin - end for more, begin, end in zip(extra, begins, ends, strict=True)]
    if min(output_padding) < 0:
        return None
    return {**geometry, "pads": begins, "output_padding": output_padding}
