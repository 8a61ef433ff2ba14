"""An ONNX network in the form in which it is read: operators in order, constants, and what is known of its tensors."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cpt_deploy.onnx_graph.onnx_parts import read_names

Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """An ONNX network.

    Attributes:
        nodes: The operators, in an order in which they can run.
        constants: Constant tensors by name.
        inputs: The inputs, without constants.
        outputs: The outputs.
        types: Types of tensors between them, as far as onnx knows them.
        opsets: Versions of the operator sets by domain; ONNX's own is "".
        ir_version: Version of the file format.
        name: Name of the file, for messages.
        original: The file as it was, serialized, with external data inside.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, onnx.TensorProto]
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    types: Mapping[str, onnx.TypeProto]
    opsets: Mapping[str, int]
    ir_version: int
    name: str = ""
    original: bytes = field(default=b"", repr=False)

    @classmethod
    def from_model(cls, model: onnx.ModelProto, *, name: str = "", original: bytes = b"") -> "OnnxNetwork":
        """Return the network of a model without functions."""
        graph = model.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        inputs = tuple(value for value in graph.input if value.name not in constants)
        known = {value.name: value.type for value in (*graph.value_info, *graph.output, *graph.input)}
        opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
        nodes, outputs = tuple(graph.node), tuple(graph.output)
        return cls(nodes, constants, inputs, outputs, known, opsets, model.ir_version, name, original)

    def to_model(self, extra: Sequence[onnx.NodeProto] = (), more_outputs: Sequence[str] = ()) -> onnx.ModelProto:
        """Return the network as a model, with further operators and outputs."""
        outputs = [*self.outputs, *(onnx.ValueInfoProto(name=name) for name in more_outputs)]
        body = helper.make_graph(
            [*self.nodes, *extra], "network", list(self.inputs), outputs, list(self.constants.values())
        )
        return self.model_of(body)

    def model_of(self, body: onnx.GraphProto) -> onnx.ModelProto:
        """Return a graph of operators of this network as a model."""
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return helper.make_model(body, opset_imports=opsets, ir_version=max(self.ir_version, 7))

    @cached_property
    def producers(self) -> dict[str, int]:
        """The position of the operator that computes each tensor."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """The positions of the operators that read each tensor, also inside of their subgraphs."""
        found: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(read_names(node)):
                found[name].append(i)
        return found

    @cached_property
    def output_names(self) -> frozenset[str]:
        """The names of the outputs."""
        return frozenset(value.name for value in self.outputs)

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def array(self, name: str) -> NDArray[Any] | None:
        """Return the values of a constant; None if a tensor is computed."""
        if name not in self.constants:
            return None
        if name not in self._arrays:
            self._arrays[name] = np.asarray(numpy_helper.to_array(self.constants[name]))
        return self._arrays[name]

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a tensor, None where a size is free; None as a whole if not even its rank is known."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        kind = self.types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        return sizes_of(kind.tensor_type)


def sizes_of(kind: onnx.TypeProto.Tensor) -> Shape:
    """Return the sizes of a tensor type, None where they are free; some files write these as -1."""
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in kind.shape.dim)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of an operator as Python values."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def is_standard(node: onnx.NodeProto, *kinds: str) -> bool:
    """Return whether an operator is ONNX's own, and one of some kinds."""
    return node.domain in ("", "ai.onnx") and node.op_type in kinds
