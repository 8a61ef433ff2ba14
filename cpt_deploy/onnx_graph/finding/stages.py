"""Group the operators of an ONNX network that stay in float into parts between its integer operations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from cpt_deploy.integer.operations import OnnxPart
from cpt_deploy.onnx_graph.finding.found import Found
from cpt_deploy.onnx_graph.onnx_parts import read_names, renamed
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, is_standard
from cpt_deploy.onnx_graph.reading.running import Measured

_OF_CODES = ":codes"


@dataclass(frozen=True)
class Stages:
    """An order of execution: the float operators of a stage run before its integer operations.

    Attributes:
        floats: Positions of the float operators of each stage.
        integers: The integer operations of each stage.
    """

    floats: tuple[tuple[int, ...], ...]
    integers: tuple[tuple[Found, ...], ...]


def stages_of(network: OnnxNetwork, operations: Sequence[Found]) -> Stages:
    """Return the stages of a network: a float operator comes in the stage after the last integers that it reads."""
    last_node = {operation.nodes[-1]: operation for operation in operations}
    inside = {node for operation in operations for node in operation.nodes}
    stage: dict[str, int] = {}
    of_integers: set[str] = set()
    floats: dict[int, list[int]] = {}
    integers: dict[int, list[Found]] = {}
    for i, node in enumerate(network.nodes):
        if i in last_node:
            operation = last_node[i]
            reads = [name for place in operation.nodes for name in read_names(network.nodes[place])]
            at = max((stage.get(name, 0) for name in reads), default=0)
            integers.setdefault(at, []).append(operation)
            stage[operation.output] = at
            of_integers.add(operation.output)
        elif i in inside:
            for name in node.output:  # of a chain, whose end has the stage of all that it reads
                stage[name] = max((stage.get(read, 0) for read in read_names(node)), default=0)
        else:
            at = max((stage.get(name, 0) + (name in of_integers) for name in read_names(node)), default=0)
            floats.setdefault(at, []).append(i)
            for name in node.output:
                stage[name] = at
    number = max([*floats, *integers], default=0) + 1
    return Stages(
        tuple(tuple(floats.get(at, ())) for at in range(number)),
        tuple(tuple(integers.get(at, ())) for at in range(number)),
    )


def crossing_values(network: OnnxNetwork, measured: Mapping[str, Measured], stages: Stages) -> list[str]:
    """Return values that are no tensors, such as sequences, but are read in another stage than they are made in."""
    at = {name: s for s, part in enumerate(stages.floats) for i in part for name in network.nodes[i].output}
    crossing = []
    for s, part in enumerate(stages.floats):
        for name in (name for i in part for name in read_names(network.nodes[i])):
            if at.get(name, s) != s and name not in measured:
                crossing.append(name)
    return crossing


def float_part(
    network: OnnxNetwork,
    nodes: Sequence[int],
    wanted: set[str],
    value_of: Callable[[str], onnx.ValueInfoProto],
    name_of: Mapping[str, str],
    *,
    signed: bool,
) -> OnnxPart | None:
    """Return float operators as one operation of an integer graph; None if nothing reads their results.

    Args:
        network: The network.
        nodes: Positions of the operators.
        wanted: Tensors that are read outside of the part.
        value_of: Returns type and shape of a tensor.
        name_of: Names in the integer graph of tensors that are quantized; others keep theirs.
        signed: Whether quantized values are int8.
    """
    kind = onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8
    made = {name for i in nodes for name in network.nodes[i].output if name}
    results = [name for i in nodes for name in network.nodes[i].output if name in wanted]
    if not results:
        return None
    copies, inputs, codes = [], dict[str, onnx.ValueInfoProto](), list[str]()
    for i in nodes:
        node = network.nodes[i]
        names = {}
        for name in read_names(node):
            if name in made or name in network.constants:
                continue
            if name in name_of and is_standard(node, "Shape", "Size"):
                names[name] = name + _OF_CODES
                # With its rank: onnxruntime computes sizes of shapes while it loads, and takes an unknown one for none.
                inputs[names[name]] = onnx.ValueInfoProto(name=names[name], type=value_of(name).type)
                inputs[names[name]].type.tensor_type.elem_type = kind
                codes.append(name)
            else:
                inputs[name] = value_of(name)
        copies.append(renamed(node, names))
    read = {name for i in nodes for name in read_names(network.nodes[i])}
    constants = [network.constants[name] for name in dict.fromkeys(read) if name in network.constants]
    outputs = [onnx.ValueInfoProto(name=name) for name in results]
    body = helper.make_graph(copies, "part", list(inputs.values()), outputs, constants)
    return OnnxPart(
        inputs=tuple(name_of.get(key.removesuffix(_OF_CODES), key) for key in inputs),
        output=results[0],
        results=tuple(results),
        codes=tuple(i for i, key in enumerate(inputs) if key.endswith(_OF_CODES)),
        content=serialized(network, body),
    )


def serialized(network: OnnxNetwork, body: onnx.GraphProto) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return operators of a network as a serialized model, uint8."""
    content = network.model_of(body).SerializeToString(deterministic=True)
    return np.frombuffer(content, dtype=np.uint8)
