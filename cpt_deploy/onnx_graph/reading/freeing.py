"""Replace what is constant in a network because its batch was fixed: sizes, and tensors that repeat for each sample.

Shapes are inferred operator by operator for a batch of a large prime number; so the batch is in those sizes
that are multiples of it.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, attributes_of, is_standard

#: The batch for which shapes are inferred: no size of a network is a multiple of it.
PRIME = 1_000_003
#: Constants with more elements are not given to shape inference: they are no sizes.
_MOST_SIZES = 64
_RECURRENT = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""The inputs that are states before the first step, (directions, N, size)."""

Sizes = list[int]


class Freeing:
    """Frees the batch in the operators of a network, which are given in their order.

    Args:
        network: The network.
        batch: The number of samples that it is fixed to.

    Attributes:
        added: New constants by name.
    """

    def __init__(self, network: OnnxNetwork, batch: int) -> None:
        self.network, self.batch = network, batch
        self.added: dict[str, onnx.TensorProto] = {}
        self._opsets = [helper.make_opsetid(domain, version) for domain, version in network.opsets.items()]
        self._types: dict[str, onnx.TypeProto] = {}
        for name, tensor in network.constants.items():
            self._types[name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        for value in network.inputs:
            kind = onnx.TypeProto()
            kind.CopyFrom(value.type)
            if kind.tensor_type.shape.dim:
                kind.tensor_type.shape.dim[0].dim_value = PRIME
            self._types[value.name] = kind

    def freed(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return an operator for any number of samples, after those that compute sizes for it."""
        node = _copied(node)
        before: list[onnx.NodeProto] = []
        if is_standard(node, "Reshape"):
            self._free_reshape(node)
        elif is_standard(node, "Expand"):
            self._free_expand(node)
        elif is_standard(node, "Resize"):
            before = self._free_resize(node)
        elif is_standard(node, "Concat"):
            before = self._free_concat(node)
        elif is_standard(node, *_RECURRENT):
            before = self._free_states(node)
        elif self.batch > 1 and not is_standard(node, "Conv", "Gemm", "MatMul", "Gather", "Slice"):
            self._free_repeated(node)
        for new in (*before, node):
            self._infer(new)
        return [*before, node]

    # --- operators ----------------------------------------------------------------------------------------------------

    def _free_reshape(self, node: onnx.NodeProto) -> None:
        source, target = self._sizes(node.input[0]), self.network.array(node.input[1])
        made = self.network.shape(node.output[0])
        if source is None or target is None or not made or None in made:
            return
        places, sizes = _places(source), [int(size or 0) for size in made]
        if len(places) != 1:
            return
        old = [size // PRIME * self.batch if axis in places else size for axis, size in enumerate(source)]
        if min(old) < 1 or math.prod(old) != math.prod(sizes):
            return
        place = _place_after_reshape(old, places[0], sizes, self.batch)
        node.input[1] = self._constant(node, "sizes", [*sizes[:place], -1, *sizes[place + 1 :]])

    def _free_expand(self, node: onnx.NodeProto) -> None:
        """Let a tensor that contains the batch keep its size: Expand leaves sizes as they are where it is given 1."""
        source, target = self._sizes(node.input[0]), self.network.array(node.input[1])
        if source is None or target is None:
            return
        sizes = [int(size) for size in target.reshape(-1)]
        for axis in (axis - len(source) for axis in _places(source)):
            if -axis <= len(sizes):
                sizes[axis] = 1
        node.input[1] = self._constant(node, "sizes", sizes)

    def _free_resize(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        source = self._sizes(node.input[0])
        target = self.network.array(node.input[3]) if len(node.input) > 3 else None
        if source is None or target is None or _places(source) != [0] or attributes_of(node).get("axes"):
            return []
        rest = [int(size) for size in target[1:]]
        before, node.input[3] = self._sizes_with_batch(node, node.input[0], 0, [1, *rest], 0)
        self._types[node.output[0]] = helper.make_tensor_type_proto(self._element(node.input[0]), [PRIME, *rest])
        return before

    def _free_concat(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Repeat operands for each sample that were as many as the samples were."""
        known = [self._sizes(name) for name in node.input]
        like = next((i for i, sizes in enumerate(known) if sizes is not None and _places(sizes)), None)
        if like is None:
            return []
        model_sizes = known[like] or []
        (place, *others) = _places(model_sizes)
        axis = attributes_of(node)["axis"] % len(model_sizes)
        before: list[onnx.NodeProto] = []
        if others or place == axis or model_sizes[place] != PRIME:
            return []
        for i, sizes in enumerate(known):
            if sizes is None or len(sizes) != len(model_sizes) or sizes[place] != self.batch:
                continue
            row = self._one_row(node.input[i], place, f"{node.output[0]}_row_{i}")
            if row is not None:
                before += self._repeated(node, i, row, place, node.input[like], place)
        return before

    def _free_states(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Leave out initial states that are zeros, and repeat others for each sample."""
        before: list[onnx.NodeProto] = []
        if attributes_of(node).get("layout", 0):
            return before
        for place in (place for place in _RECURRENT[node.op_type] if place < len(node.input) and node.input[place]):
            name = node.input[place]
            array = self.network.array(name)
            if array is not None and not array.any():
                node.input[place] = ""
            elif array is not None and (row := self._one_row(name, 1, f"{node.output[0]}_row_{place}")) is not None:
                before += self._repeated(node, place, row, 1, node.input[0], 1)
        while node.input and not node.input[-1]:
            del node.input[-1]
        return before

    def _free_repeated(self, node: onnx.NodeProto) -> None:
        """Let operators broadcast one row of a constant that was repeated for each sample."""
        known = [self._sizes(name) for name in node.input]
        rank = max((len(sizes) for sizes in known if sizes), default=0)
        batches = {place - len(sizes) for sizes in known if sizes for place in _places(sizes)}
        for i, sizes in enumerate(known):
            for axis in batches if sizes is not None and len(sizes) == rank else ():
                if sizes is not None and sizes[axis] == self.batch:
                    row = self._one_row(node.input[i], axis % rank, f"{node.output[0]}_row_{i}")
                    node.input[i] = row or node.input[i]

    # --- constants and sizes ------------------------------------------------------------------------------------------

    def _one_row(self, name: str, axis: int, new: str) -> str | None:
        """Return a tensor with one of the equal rows of another; None if they differ."""
        if self.batch == 1:
            return name
        array = self.network.array(name)
        if array is None:
            return None
        first = np.take(array, [0], axis)
        if not np.array_equal(np.broadcast_to(first, array.shape), array):
            return None
        self.added[new] = numpy_helper.from_array(np.ascontiguousarray(first), new)
        self._types[new] = helper.make_tensor_type_proto(self.added[new].data_type, list(first.shape))
        return new

    def _repeated(
        self, node: onnx.NodeProto, number: int, row: str, at: int, like: str, axis: int
    ) -> list[onnx.NodeProto]:
        """Give an operator one row for each sample of another tensor; return the operators that repeat it.

        Args:
            node: The operator.
            number: Number of its input.
            row: The tensor to repeat.
            at: Its axis of the batch.
            like: The other tensor.
            axis: That one's axis of the batch.
        """
        sizes = self._sizes(row) or []
        before, wanted = self._sizes_with_batch(node, like, axis, [1] * len(sizes), number, at=at)
        name = f"{node.output[0] or node.output[1]}_rows_{number}"
        sizes[at] = PRIME
        self._types[name] = helper.make_tensor_type_proto(self._element(row), sizes)
        node.input[number] = name
        return [*before, helper.make_node("Expand", [row, wanted], [name])]

    def _sizes_with_batch(
        self, node: onnx.NodeProto, like: str, axis: int, sizes: Sequence[int], number: int, *, at: int = 0
    ) -> tuple[list[onnx.NodeProto], str]:
        """Return operators that compute sizes with the batch of a tensor at one place, and the name of their result."""
        begin = f"{node.output[0] or node.output[1]}_{number}"
        shape, batch, wanted = f"{begin}_shape", f"{begin}_batch", f"{begin}_sizes"
        place = self._constant(node, f"{number}_place", [axis])
        parts = [part for part in (sizes[:at], None, sizes[at + 1 :]) if part is None or part]
        names = [batch if p is None else self._constant(node, f"{number}_part_{i}", p) for i, p in enumerate(parts)]
        return [
            helper.make_node("Shape", [like], [shape]),
            helper.make_node("Gather", [shape, place], [batch]),
            helper.make_node("Concat", names, [wanted], axis=0),
        ], wanted

    def _constant(self, node: onnx.NodeProto, part: str, values: Sequence[int | None]) -> str:
        name = f"{node.output[0] or node.output[1]}_free_{part}"
        self.added[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        self._types[name] = helper.make_tensor_type_proto(onnx.TensorProto.INT64, [len(values)])
        return name

    def _element(self, name: str) -> int:
        return int(self._types[name].tensor_type.elem_type)

    def _sizes(self, name: str) -> Sizes | None:
        kind = self._types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        dims = kind.tensor_type.shape.dim
        return [d.dim_value if d.HasField("dim_value") else -1 for d in dims]

    def _infer(self, node: onnx.NodeProto) -> None:
        """Record the types of an operator's outputs; those that onnx cannot infer stay unknown."""
        if all(name in self._types for name in node.output):
            return
        data: dict[str, onnx.TensorProto] = {}
        for name in node.input:
            tensor = self.added.get(name) or self.network.constants.get(name)
            if tensor is not None and math.prod(tensor.dims) <= _MOST_SIZES:
                data[name] = tensor
        given = {name: self._types[name] for name in node.input if name in self._types}
        try:
            schema = onnx.defs.get_schema(node.op_type, self.network.opsets.get(node.domain, 1), node.domain)
            found = onnx.shape_inference.infer_node_outputs(schema, node, given, data, opset_imports=self._opsets)
        except Exception:  # errors of onnx's C++ library have no common base class; the operator stays as it is
            return
        self._types.update(found)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _places(sizes: Sequence[int]) -> list[int]:
    return [axis for axis, size in enumerate(sizes) if size > 0 and size % PRIME == 0]


def _place_after_reshape(old: Sizes, place: int, made: Sizes, batch: int) -> int:
    """Return the place of the batch after a Reshape.

    It is at a size of the batch itself, at the positions that the batch had; otherwise the batch is joined with a
    neighbour: with those before it, if the sizes after it stay or are joined too, and otherwise with the next one.

    Args:
        old: The sizes before.
        place: Place of the batch in them.
        made: The sizes after, of the same product.
        batch: The number of samples.
    """
    outer, begins = math.prod(old[:place]), [math.prod(made[:axis]) for axis in range(len(made))]
    for begin in (outer, outer * old[place] // batch):
        found = [axis for axis, size in enumerate(made) if begins[axis] == begin and size == batch]
        if found:
            return place if place in found else found[0]
    first = next((axis for axis, size in enumerate(made) if begins[axis] * size > outer), len(made) - 1)
    joined = old[place] == 1 and first > 0 and len(made) - first <= len(old) - place - 1
    return first - 1 if joined else first
