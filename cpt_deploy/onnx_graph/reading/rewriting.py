"""Write functions that a file spells out in several operators as the one operator that they are."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cpt_deploy.onnx_graph.onnx_parts import read_names
from cpt_deploy.onnx_graph.reading.network import attributes_of, is_standard
from cpt_deploy.onnx_graph.reading.shapes import infer_shapes

#: Allowed relative difference of a constant, such as 1/6, from the one that defines a function.
_TOLERANCE = 1e-5


def rewrite_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with hard sigmoids, leaky ReLUs, global means and others in the form of fewest operators.

    HardSwish, also spelt out as `x · clip(x + 3, 0, 6) / 6`, becomes `x · HardSigmoid(x)`, PRelu of one slope
    LeakyRelu, ReduceMean over all positions GlobalAveragePool, and Pad and Resize of some axes ones of all. A softmax
    of opset 12 or earlier, which is converted to one between two reshapes, loses these where it works on the last axis.

    Args:
        model: A simplified model.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    _Rewriting(rewritten).run()
    infer_shapes(rewritten)
    return rewritten


@dataclass(frozen=True)
class _Clipped:
    """`clip(x + 3, 0, 6)`."""

    source: str
    nodes: tuple[onnx.NodeProto, ...]


class _Rewriting:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.made_by = {name: node for node in self.graph.node for name in node.output}
        self.reads = Counter(name for node in self.graph.node for name in read_names(node))
        self.reads.update(value.name for value in self.graph.output)
        values = (*self.graph.value_info, *self.graph.input, *self.graph.output)
        self.types = {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}
        self.ranks = {name: len(kind.shape.dim) for name, kind in self.types.items() if kind.HasField("shape")}
        self.gone: set[int] = set()
        self.made: dict[int, list[onnx.NodeProto]] = {}

    def run(self) -> None:
        for node in self.graph.node:
            new = self._hard_function(node) or self._leaky(node) or self._mean(node) or self._slices(node)
            new = new or self._all_in_order(node) or self._softmax(node) or self._pad(node) or self._resize(node)
            new = new or self._dilated_mean(node)
            if new is not None:
                self.made[id(node)] = new
        nodes = []
        for node in self.graph.node:
            if id(node) in self.made:
                nodes.extend(self.made[id(node)])
            elif id(node) not in self.gone:
                nodes.append(node)
        copies = []
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.graph.node[:]
        self.graph.node.extend(copies)

    # --- pieces -----------------------------------------------------------------------------------------------------

    def _scalar(self, name: str) -> float | None:
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        values = numpy_helper.to_array(tensor)
        return float(values.reshape(-1)[0]) if values.size == 1 and values.ndim <= 1 else None

    def _with_constant(self, node: onnx.NodeProto | None, kind: str, value: float) -> str | None:
        """Return the other input of a node that is `kind` with a constant of a value; addends may be in any order."""
        if node is None or not is_standard(node, kind) or len(node.input) != 2:
            return None
        places = (1, 0) if kind in ("Add", "Mul") else (1,)
        for place in places:
            found = self._scalar(node.input[place])
            if found is not None and abs(found - value) <= _TOLERANCE * abs(value):
                return str(node.input[1 - place])
        return None

    def _alone(self, name: str) -> onnx.NodeProto | None:
        """Return the node that computes a tensor which only one node reads."""
        return self.made_by.get(name) if self.reads[name] == 1 else None

    def _clipped(self, name: str) -> _Clipped | None:
        node = self._alone(name)
        if node is None or not self._clips(node, 0.0, 6.0):
            return None
        before = self._alone(node.input[0])
        source = self._with_constant(before, "Add", 3.0)
        return None if source is None or before is None else _Clipped(source, (node, before))

    def _clips(self, node: onnx.NodeProto, low: float, high: float) -> bool:
        if not is_standard(node, "Clip") or len(node.input) != 3:
            return False
        return self._scalar(node.input[1]) == low and self._scalar(node.input[2]) == high

    def _sixth(self, node: onnx.NodeProto) -> str | None:
        return self._with_constant(node, "Div", 6.0) or self._with_constant(node, "Mul", 1 / 6)

    def _hard_function(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if is_standard(node, "HardSwish"):
            return self._swish(node.input[0], node.output[0], ())
        divided = self._sixth(node)
        if divided is not None:
            clipped = self._clipped(divided)
            if clipped is not None:
                self.gone.update(map(id, clipped.nodes))
                return [_hard_sigmoid(clipped.source, node.output[0])]
            product = self._alone(divided)
            factors = self._factors(product)
            if product is not None and factors is not None:
                return self._swish(factors.source, node.output[0], (product, *factors.nodes))
        return None

    def _factors(self, node: onnx.NodeProto | None) -> _Clipped | None:
        """Return the clipped factor of a product `x · clip(x + 3, 0, 6)`."""
        if node is None or not is_standard(node, "Mul"):
            return None
        for first, second in (tuple(node.input), tuple(reversed(node.input))):
            clipped = self._clipped(second)
            if clipped is not None and clipped.source == first:
                return clipped
        return None

    def _swish(self, source: str, output: str, gone: tuple[onnx.NodeProto, ...]) -> list[onnx.NodeProto]:
        self.gone.update(map(id, gone))
        factor = f"{output}_hard_sigmoid"
        return [_hard_sigmoid(source, factor), helper.make_node("Mul", [source, factor], [output], name=output)]

    def _leaky(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if not is_standard(node, "PRelu") or node.input[1] not in self.constants:
            return None
        slopes = np.unique(numpy_helper.to_array(self.constants[node.input[1]]).astype(np.float64))
        small = len(self.constants[node.input[1]].dims) <= self.ranks.get(node.input[0], 0)
        if len(slopes) != 1 or not small or slopes[0] < 0:
            return None
        return [helper.make_node("LeakyRelu", [node.input[0]], [node.output[0]], node.name, alpha=float(slopes[0]))]

    def _mean(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the global average that a mean over both positions of (N, C, H, W), float32, is."""
        if not is_standard(node, "ReduceMean") or self.ranks.get(node.input[0]) != 4:
            return None
        if self.types[node.input[0]].elem_type != onnx.TensorProto.FLOAT:  # onnxruntime has no other kernel
            return None
        attributes = attributes_of(node)
        axes = attributes.get("axes")
        if axes is None and len(node.input) > 1 and node.input[1] in self.constants:
            axes = numpy_helper.to_array(self.constants[node.input[1]]).tolist()
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            return None
        if attributes.get("keepdims", 1):
            return [helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], node.name)]
        pooled, places = f"{node.output[0]}_pooled", f"{node.output[0]}_positions"
        self.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), places))
        return [
            helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name),
            helper.make_node("Squeeze", [pooled, places], [node.output[0]]),
        ]

    def _dilated_mean(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return a dilated AveragePool of negated values, and their negation.

        Between quantizers, onnxruntime would fuse it to QLinearAveragePool, which has no dilations.
        """
        if not is_standard(node, "AveragePool") or set(attributes_of(node).get("dilations", [])) <= {1}:
            return None
        before, after = f"{node.output[0]}_negated", f"{node.output[0]}_of_negated"
        pool = onnx.NodeProto()
        pool.CopyFrom(node)
        pool.input[:], pool.output[:] = [before], [after]
        return [
            helper.make_node("Neg", [node.input[0]], [before]),
            pool,
            helper.make_node("Neg", [after], [node.output[0]]),
        ]

    def _all_in_order(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the Reshape that a Gather of all values in their order is, as `torch.as_strided` is written."""
        if not is_standard(node, "Gather") or node.input[1] not in self.constants:
            return None
        places, known = self.constants[node.input[1]], self.types.get(node.input[0])
        count = math.prod(places.dims)
        if self.ranks.get(node.input[0]) != 1 or known is None or known.shape.dim[0].dim_value != count or not count:
            return None
        if not np.array_equal(numpy_helper.to_array(places).reshape(-1), np.arange(count)):
            return None
        sizes = f"{node.output[0]}_sizes"
        self.graph.initializer.append(numpy_helper.from_array(np.array(places.dims, np.int64), sizes))
        return [helper.make_node("Reshape", [node.input[0], sizes], [node.output[0]], node.name)]

    def _softmax(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the softmax over the last axis that one of (rows, values) between two reshapes is."""
        inner = self._alone(node.input[0]) if is_standard(node, "Reshape") else None
        if inner is None or not is_standard(inner, "Softmax", "LogSoftmax"):
            return None
        flattened, sizes = self._alone(inner.input[0]), self.made_by.get(node.input[1])
        if (
            flattened is None
            or sizes is None
            or not (is_standard(flattened, "Flatten") and is_standard(sizes, "Shape"))
        ):
            return None
        source = flattened.input[0]
        rank = self.ranks.get(source, 0)
        last = attributes_of(flattened).get("axis", 1) % rank == rank - 1 if rank > 1 else False
        if sizes.input[0] != source or not last or attributes_of(inner).get("axis", -1) not in (-1, 1):
            return None
        self.gone.update(map(id, (inner, flattened)))
        if self.reads[sizes.output[0]] == 1:
            self.gone.add(id(sizes))
        return [helper.make_node(inner.op_type, [source], [node.output[0]], node.name, axis=-1)]

    # onnxruntime moves transpositions past Pad and Resize, for integer convolutions, without a look at their axes.

    def _pad(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the Pad of all axes that one of some is."""
        if not is_standard(node, "Pad") or len(node.input) < 4 or node.input[3] not in self.constants:
            return None
        rank = self.ranks.get(node.input[0], 0)
        places = _places(numpy_helper.to_array(self.constants[node.input[3]]), rank)
        if places is None:
            return None
        both, zeros = np.concatenate([places, places + rank]), np.zeros(2 * rank, np.int64)
        return self._with_input(node, 1, zeros, both, node.input[:3])

    def _resize(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the Resize of all axes that one of some is."""
        attributes = attributes_of(node) if is_standard(node, "Resize") else {}
        if "axes" not in attributes or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        rank = self.ranks.get(node.input[0], 0)
        places = _places(np.array(attributes["axes"]), rank)
        inputs = ["" if self._is_empty(name) else name for name in node.input]
        if places is None or inputs[1]:
            return None
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.attribute[:]
        copy.attribute.extend(attribute for attribute in node.attribute if attribute.name != "axes")
        if inputs[2]:
            return self._with_input(copy, 2, np.ones(rank, np.float32), places, inputs)
        sizes = f"{node.output[0]}_sizes_before"
        made = self._with_input(copy, 3, sizes, places, inputs)
        return None if made is None else [helper.make_node("Shape", [node.input[0]], [sizes]), *made]

    def _is_empty(self, name: str) -> bool:
        return name in self.constants and 0 in self.constants[name].dims

    def _with_input(
        self,
        node: onnx.NodeProto,
        at: int,
        whole: NDArray[Any] | str,
        places: NDArray[np.int64],
        inputs: Sequence[str],
    ) -> list[onnx.NodeProto] | None:
        """Return an operator that reads `whole`, with the values of its input `at` in some places.

        Args:
            node: The operator.
            at: Position of the input.
            whole: An array, or the name of a tensor that is computed.
            places: Where the values belong.
            inputs: All inputs.
        """
        values, name = inputs[at], f"{node.output[0]}_of_all_axes"
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [*inputs[:at], name, *inputs[at + 1 :]]
        if values in self.constants and list(self.constants[values].dims) != [len(places)]:
            return None  # onnxruntime tells what is wrong
        if values in self.constants and not isinstance(whole, str):
            whole[places] = numpy_helper.to_array(self.constants[values])
            self._new_constant(name, whole)
            return [copy]
        where = self._new_constant(f"{name}_places", places)
        whole = whole if isinstance(whole, str) else self._new_constant(f"{name}_others", whole)
        return [helper.make_node("ScatterElements", [whole, where, values], [name]), copy]

    def _new_constant(self, name: str, values: NDArray[Any]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _slices(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the slices of real values that a Split of known sizes computes."""
        if not is_standard(node, "Split") or self.ranks.get(node.input[0], 0) < 2:
            return None
        kind, attributes = self.types[node.input[0]], attributes_of(node)
        axis = attributes.get("axis", 0) % self.ranks[node.input[0]]
        if kind.elem_type != onnx.TensorProto.FLOAT or any(not name for name in node.output):
            return None
        if len(node.input) > 1 and node.input[1]:
            sizes = self.constants.get(node.input[1])
            lengths = None if sizes is None else numpy_helper.to_array(sizes).tolist()
        else:
            size, parts = kind.shape.dim[axis].dim_value, len(node.output)
            each = -(-size // parts)
            lengths = [min(each, size - i * each) for i in range(parts)] if size > 0 else None
        if not lengths or len(lengths) != len(node.output) or min(lengths) <= 0:
            return None
        made, ends = [], np.cumsum(lengths)
        for name, end, length in zip(node.output, ends, lengths, strict=True):
            bounds = []
            for key, value in (("start", end - length), ("end", end), ("axis", axis)):
                bounds.append(f"{name}_{key}")
                self.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), bounds[-1]))
            made.append(helper.make_node("Slice", [node.input[0], *bounds], [name], name))
        return made


def _places(axes: NDArray[Any], rank: int) -> NDArray[np.int64] | None:
    """Return axes counted from the first; None if a tensor of a rank, or of none that is known, has not all of them."""
    if axes.ndim != 1 or not rank or (axes < -rank).any() or (axes >= rank).any():
        return None
    return axes.astype(np.int64) % rank


def _hard_sigmoid(source: str, output: str) -> onnx.NodeProto:
    return helper.make_node("HardSigmoid", [source], [output], output, alpha=1 / 6, beta=0.5)
