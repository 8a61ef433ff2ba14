"""The integer graph: operations in order, with inputs, outputs and states, and its form as JSON and arrays."""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpt_deploy.integer.operations import (
    OPERATIONS,
    Embed,
    Float,
    OnnxPart,
    Operation,
    Quantize,
    Recurrent,
    WeightedOperation,
)
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.signature import Signature, from_json, to_json


@dataclass(frozen=True, slots=True)
class IntegerGraph:
    """A frozen network.

    Attributes:
        signature: Inputs and outputs. Operations read the inputs by their names; `Quantize` quantizes them.
        outputs: Name of the tensor of each output, real or quantized.
        operations: In an order in which they can run.
        tensors: All quantized tensors by name, in the order in which they are computed.
    """

    signature: Signature
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    tensors: dict[str, QuantizedTensor] = field(default_factory=dict)

    @property
    def entries(self) -> tuple[str, ...]:
        """The tensors that are quantized from results of float operations: where stretches of integers begin."""
        given = {tensor.name for tensor in self.signature.inputs}
        return tuple(
            o.hidden if isinstance(o, Recurrent) else o.output
            for o in self.operations
            if isinstance(o, Recurrent) or (isinstance(o, Quantize) and o.inputs[0] not in given)
        )

    @property
    def has_float_operations(self) -> bool:
        """Whether some operations compute in float."""
        return any(isinstance(operation, Float | OnnxPart) for operation in self.operations)

    def weighted(self) -> list[WeightedOperation]:
        """Return the operations that have weights, in order."""
        return [operation for operation in self.operations if isinstance(operation, WeightedOperation)]

    def products(self) -> list[WeightedOperation]:
        """Return the operations that multiply activations by weights, in order: all with weights but embeddings."""
        return [operation for operation in self.weighted() if not isinstance(operation, Embed)]

    def multiplied(self, operation: WeightedOperation) -> QuantizedTensor:
        """Return the tensor that an operation multiplies by its weights."""
        return self.tensors[operation.hidden if isinstance(operation, Recurrent) else operation.inputs[0]]


def product_units(graph: IntegerGraph) -> dict[str, float]:
    """Return the layers with real results, each with the minimum accumulator scale of its channels."""
    return {
        operation.product if isinstance(operation, Recurrent) else operation.output: (
            float(operation.scales.min()) * graph.multiplied(operation).scale
        )
        for operation in graph.products()
        if operation.output not in graph.tensors
    }


def reached_from(graph: IntegerGraph, entries: Set[str]) -> set[str]:
    """Return the tensors that are computed from some entries by integer operations alone."""
    reached = set(entries)
    for operation in graph.operations:
        if isinstance(operation, Recurrent):
            if operation.hidden in reached:
                reached.add(operation.product)
        elif not isinstance(operation, Float | OnnxPart | Quantize) and reached & set(operation.inputs):
            reached.add(operation.output)
    return reached


def with_names(graph: IntegerGraph, names: Mapping[str, str]) -> IntegerGraph:
    """Rename tensors of a graph; inputs and outputs keep their names.

    Args:
        graph: The graph.
        names: New names by old ones.
    """
    operations = tuple(
        replace(
            operation,
            inputs=tuple(names.get(name, name) for name in operation.inputs),
            output=names.get(operation.output, operation.output),
            **({"hidden": names.get(operation.hidden, operation.hidden)} if isinstance(operation, Recurrent) else {}),
        )
        for operation in graph.operations
    )
    tensors = [replace(tensor, name=names.get(tensor.name, tensor.name)) for tensor in graph.tensors.values()]
    outputs = tuple(names.get(name, name) for name in graph.outputs)
    return IntegerGraph(graph.signature, outputs, operations, {tensor.name: tensor for tensor in tensors})


def to_dict(graph: IntegerGraph) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Split a graph into JSON values and arrays; `from_dict` is the inverse.

    Returns:
        A dictionary of JSON values, with `{"tensor": name}` in place of arrays, and the arrays by name; equal ones,
        as layers have that share their weights, are one.
    """
    arrays: dict[str, NDArray[Any]] = {}
    known: dict[tuple[Any, ...], str] = {}
    operations = []
    for operation in graph.operations:
        entry: dict[str, Any] = {"type": type(operation).__name__}
        for name in operation.__dataclass_fields__:
            value = getattr(operation, name)
            if isinstance(value, np.ndarray):
                same = (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest())
                key = known.setdefault(same, f"{operation.output}.{name}")
                arrays[key] = value
                value = {"tensor": key}
            entry[name] = value
        operations.append(entry)
    tensors = [
        {"name": t.name, "scale": t.scale, "zero_point": t.zero_point, "bits": t.bits, "shape": list(t.shape)}
        | ({"signed": True} if t.signed else {})
        for t in graph.tensors.values()
    ]
    return {
        "signature": to_json(graph.signature),
        "outputs": list(graph.outputs),
        "tensors": tensors,
        "operations": operations,
    }, arrays


def from_dict(data: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> IntegerGraph:
    """Rebuild a graph from the two results of `to_dict`.

    Raises:
        KeyError: If a part is missing.
    """
    operations = []
    for entry in data["operations"]:
        values: dict[str, Any] = {}
        for name, value in entry.items():
            if name == "type":
                continue
            if isinstance(value, dict):
                values[name] = arrays[value["tensor"]]
            else:
                values[name] = tuple(value) if isinstance(value, list) else value
        operations.append(OPERATIONS[entry["type"]](**values))
    tensors = {
        t["name"]: QuantizedTensor(
            t["name"], t["scale"], t["zero_point"], t["bits"], tuple(t["shape"]), t.get("signed", False)
        )
        for t in data["tensors"]
    }
    return IntegerGraph(from_json(data["signature"]), tuple(data["outputs"]), tuple(operations), tensors)
