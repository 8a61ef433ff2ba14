"""The ONNX operators that a frozen graph holds as they are: read them back for the file that is written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Movement, OnnxPart


@dataclass(frozen=True)
class OnnxParts:
    """The ONNX operators of a graph.

    Attributes:
        bodies: By the (first) output of each operation, its operators as an ONNX graph.
        domains: Versions of the operator sets that they use.
        opset: Version of ONNX's own operators; 0 if there are no parts.
    """

    bodies: Mapping[str, onnx.GraphProto]
    domains: Mapping[str, int]
    opset: int

    @property
    def kinds(self) -> dict[str, None]:
        """The kinds of the operators, in order."""
        return dict.fromkeys(node.op_type for body in self.bodies.values() for node in body.node)


NO_PARTS = OnnxParts({}, {}, 0)


def read_parts(graph: IntegerGraph) -> OnnxParts:
    """Return the ONNX operators of a graph."""
    bodies: dict[str, onnx.GraphProto] = {}
    domains: dict[str, int] = {}
    for operation in graph.operations:
        if isinstance(operation, OnnxPart | Movement):
            model = onnx.load_model_from_string(operation.content.tobytes())
            bodies[operation.output] = model.graph
            domains |= {entry.domain: entry.version for entry in model.opset_import}
    return OnnxParts(bodies, domains, domains.get("", 0))


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """Return a copy of an operator that reads tensors by new names, also inside of its subgraphs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    for attribute in copy.attribute:
        for body in subgraphs(attribute):
            made = {*(value.name for value in body.input), *(tensor.name for tensor in body.initializer)}
            made |= {name for inner in body.node for name in inner.output}
            outer = {name: new for name, new in names.items() if name not in made}
            nodes = [renamed(inner, outer) for inner in body.node]
            for value in body.output:
                value.name = outer.get(value.name, value.name)
            del body.node[:]
            body.node.extend(nodes)
    return copy


def read_names(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that an operator reads, with those that its subgraphs read from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in subgraphs(attribute):
            inside = {*(value.name for value in body.input), *(tensor.name for tensor in body.initializer)}
            inside |= {tensor.values.name for tensor in body.sparse_initializer}
            inside |= {name for inner in body.node for name in inner.output}
            for inner in body.node:
                yield from (name for name in read_names(inner) if name not in inside)
            yield from (value.name for value in body.output if value.name not in inside)


def inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield the operators in the subgraphs of an operator, and in theirs."""
    for attribute in node.attribute:
        for body in subgraphs(attribute):
            for inner in body.node:
                yield inner
                yield from inner_nodes(inner)


def subgraphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """Return the subgraphs of an attribute."""
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == onnx.AttributeProto.GRAPHS else []
