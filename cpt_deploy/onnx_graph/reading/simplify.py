"""Simplify an ONNX model: compute what is constant, and remove operators that do nothing."""

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cpt_deploy.onnx_graph.onnx_parts import read_names, renamed, subgraphs
from cpt_deploy.onnx_graph.reading.network import attributes_of, is_standard, sizes_of
from cpt_deploy.onnx_graph.reading.shapes import SMALL, infer_shapes

Array = NDArray[Any]

#: Constants of more elements are not computed: operators that repeat values stay as they are.
MOST_ELEMENTS = 2**22
#: Folding constants makes shapes known, which makes constants: one Reshape after the other in a deep network.
ROUNDS = 100

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"})


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that computes the same with fewer operators.

    Operators of constants are computed by onnxruntime, shapes that are known become constants, a branch that is always
    taken replaces its `If`, and `Identity` and `Dropout` go, as do operators that nothing reads.

    Args:
        model: A model without functions, of opset 13 or later.
    """
    simplified = onnx.ModelProto()
    simplified.CopyFrom(model)
    graph = simplified.graph
    _without_default_inputs(graph)
    _compute_outputs(graph)
    for round_ in range(ROUNDS):
        before = len(graph.node)
        _take_constants(graph)
        _take_branches(graph)
        _remove_identities(graph)
        _Folding(simplified).fold()
        _remove_unread(graph)
        infer_shapes(simplified)
        if round_ and len(graph.node) == before:
            break
    return simplified


def _without_default_inputs(graph: onnx.GraphProto) -> None:
    """Remove constants from the inputs: old files list them there, and users could override them."""
    constants = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(kept)


def _compute_outputs(graph: onnx.GraphProto) -> None:
    """Let an operator compute each output that is a constant."""
    outputs = {value.name for value in graph.output}
    for tensor in graph.initializer:
        if tensor.name in outputs:
            made, tensor.name = tensor.name, f"{tensor.name}_constant"
            graph.node.append(helper.make_node("Identity", [tensor.name], [made]))
            for node in list(graph.node)[:-1]:
                node.CopyFrom(renamed(node, {made: tensor.name}))


def _take_constants(graph: onnx.GraphProto) -> None:
    """Turn `Constant` operators into initializers."""
    kept, outputs = [], {value.name for value in graph.output}
    for node in graph.node:
        computed = not is_standard(node, "Constant") or node.output[0] in outputs
        tensor = None if computed else constant_of(node)
        if tensor is None:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the tensor of a `Constant`; None for a sparse one."""
    if len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    tensor = onnx.TensorProto()
    match attribute.name:
        case "value":
            tensor.CopyFrom(attribute.t)
        case "value_float" | "value_floats":
            value = helper.get_attribute_value(attribute)
            tensor = numpy_helper.from_array(np.array(value, np.float32))
        case "value_int" | "value_ints":
            tensor = numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.int64))
        case _:
            return None
    tensor.name = node.output[0]
    return tensor


def _take_branches(graph: onnx.GraphProto) -> None:
    """Replace each `If` of a constant condition by the operators of its branch."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        known = is_standard(node, "If") and node.input[0] in constants
        condition = numpy_helper.to_array(constants[node.input[0]]) if known else np.empty(0)
        if condition.size != 1:
            nodes.append(node)
            continue
        taken = bool(condition.reshape(-1)[0])
        body = next(a.g for a in node.attribute if a.name == ("then_branch" if taken else "else_branch"))
        own = [name for inner in body.node for name in inner.output if name]
        names = {name: f"{name}_of_{node.output[0]}" for name in (*own, *(tensor.name for tensor in body.initializer))}
        for tensor in body.initializer:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = names[tensor.name]
        for inner in body.node:
            copy = renamed(inner, names)
            copy.output[:] = [names.get(name, name) for name in inner.output]
            nodes.append(copy)
        for value, name in zip(body.output, node.output, strict=False):
            if name:
                nodes.append(helper.make_node("Identity", [names.get(value.name, value.name)], [name]))
    del graph.node[:]
    graph.node.extend(nodes)


def _remove_identities(graph: onnx.GraphProto) -> None:
    """Let readers of an `Identity`, or of a `Dropout`, read its input; those that compute outputs stay."""
    outputs = {value.name for value in graph.output}
    constants = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        source = names.get(node.input[0], node.input[0]) if node.input else ""
        if _does_nothing(node, graph, constants) and node.output[0] not in outputs:
            names[node.output[0]] = source
        else:
            kept.append(renamed(node, names) if names else node)
    del graph.node[:]
    graph.node.extend(kept)


def _does_nothing(node: onnx.NodeProto, graph: onnx.GraphProto, constants: set[str]) -> bool:
    if is_standard(node, "Identity"):
        return True
    if not is_standard(node, "Dropout") or (len(node.input) > 2 and node.input[2]):
        return False
    mask = node.output[1] if len(node.output) > 1 else ""
    if not mask:
        return True
    return all(mask != value.name for value in graph.output) and not any(mask in read_names(n) for n in graph.node)


def _remove_unread(graph: onnx.GraphProto) -> None:
    """Remove operators and constants whose results nothing reads."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(read_names(node))
    kept.reverse()
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(constants)


class _Folding:
    """Computes operators whose inputs are all constant, and shapes that are known."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        values = (*self.graph.value_info, *self.graph.input, *self.graph.output)
        kinds = ((value.name, value.type.tensor_type) for value in values)
        self.shapes = {name: list(sizes_of(kind)) for name, kind in kinds if kind.HasField("shape")}
        self.made_by = {name: node for node in self.graph.node for name in node.output}

    def fold(self) -> None:
        outputs = {value.name for value in self.graph.output}
        kept = []
        for node in self.graph.node:
            results = None if outputs.intersection(node.output) else self._results(node)
            if results is None:
                kept.append(node)
                continue
            for name, tensor in zip(node.output, results, strict=False):
                if name:
                    tensor.name = name
                    self.constants[name] = tensor
                    self.graph.initializer.append(tensor)
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def _results(self, node: onnx.NodeProto) -> list[onnx.TensorProto] | None:
        known = self._known_sizes(node)
        if known is not None:
            return [numpy_helper.from_array(known)]
        if not node.input or not all(name in self.constants for name in node.input if name):
            return None
        if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM | _QUANTIZERS:
            return None
        if any(subgraphs(attribute) for attribute in node.attribute) or self._size(node) > MOST_ELEMENTS:
            return None
        return self._computed(node)

    def _known_sizes(self, node: onnx.NodeProto) -> Array | None:
        """Return the value of `Shape`, or of `Gather` or `Slice` of a `Shape`, if the sizes are known."""
        if is_standard(node, "Shape"):
            sizes = self._sizes_of(node)
            return None if sizes is None or None in sizes else np.array(sizes, np.int64)
        before = self.made_by.get(node.input[0]) if node.input else None
        if before is None or not is_standard(before, "Shape") or (sizes := self._sizes_of(before)) is None:
            return None
        if is_standard(node, "Gather") and node.input[1] in self.constants:
            places = numpy_helper.to_array(self.constants[node.input[1]])
            chosen = [sizes[int(place)] for place in places.reshape(-1) if -len(sizes) <= place < len(sizes)]
            if len(chosen) < places.size or None in chosen:
                return None
            return np.array(chosen, np.int64).reshape(places.shape)
        if is_standard(node, "Slice") and all(name in self.constants for name in node.input[1:] if name):
            return self._slice(sizes, node)
        return None

    def _slice(self, sizes: list[int | None], node: onnx.NodeProto) -> Array | None:
        """Return the sizes that a `Slice` takes: its start, end, axis, which can only be 0, and step are inputs."""
        bounds = [numpy_helper.to_array(self.constants[name]) if name else None for name in node.input[1:]]
        if any(bound is not None and bound.size != 1 for bound in bounds):
            return None
        start, end, _, step = (None if bound is None else int(bound.item()) for bound in (*bounds, None, None)[:4])
        part = sizes[start:end:step] if step != 0 else [None]
        return None if None in part else np.array(part, np.int64)

    def _sizes_of(self, node: onnx.NodeProto) -> list[int | None] | None:
        name, attributes = node.input[0], attributes_of(node)
        if name in self.constants:
            sizes: list[int | None] | None = list(self.constants[name].dims)
        else:
            sizes = self.shapes.get(name)
        return None if sizes is None else sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))]

    def _size(self, node: onnx.NodeProto) -> float:
        """Return a bound of the number of elements of a result."""
        arrays = {name: numpy_helper.to_array(self.constants[name]) for name in node.input if name}
        first, *others = (arrays.get(name) for name in node.input)
        if node.op_type == "ConstantOfShape":
            return _product(first)
        if node.op_type == "Range":
            start, limit, delta = (float(arrays[name].reshape(-1)[0]) for name in node.input)
            return abs(limit - start) / abs(delta) if delta else math.inf
        sizes = float(sum(array.size for array in arrays.values()))
        if node.op_type in ("Concat", "ScatterElements", "ScatterND"):
            return sizes
        if node.op_type in ("Expand", "Tile") and others:
            return max(sizes, 1.0) * _product(others[0])
        if node.op_type in ("Resize", "Upsample", "Pad", "CenterCropPad", "OneHot", "EyeLike", "Col2Im"):
            return math.inf if sizes > SMALL else max([sizes, *map(_product, others)])
        return float(math.prod(array.size or 1 for array in arrays.values())) if sizes < SMALL else sizes

    def _computed(self, node: onnx.NodeProto) -> list[onnx.TensorProto] | None:
        inputs = [self.constants[name] for name in dict.fromkeys(node.input) if name]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        body = helper.make_graph([node], "constant", [], outputs, inputs)
        model = helper.make_model(body, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            results = iter(session.run(None, {}))
        except Exception:  # an operator that cannot be computed stays as it is, and fails where it runs
            return None
        found = [next(results) if name else np.zeros(0, np.float32) for name in node.output]
        if any(not isinstance(array, np.ndarray) or array.size > MOST_ELEMENTS for array in found):
            return None
        return [numpy_helper.from_array(array) for array in found]


def _product(sizes: Array | None) -> float:
    """Return the product of sizes, which may not be a number of 64 bits."""
    return math.prod(max(float(size), 1.0) for size in np.asarray([] if sizes is None else sizes).reshape(-1)[:16])
