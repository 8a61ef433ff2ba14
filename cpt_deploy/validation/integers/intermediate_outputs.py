"""Add a model's quantized tensors as intermediate outputs without changing the operators that onnxruntime runs.

Needs the `onnx` package.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cpt_deploy.bundle.runtime.operators import optimized_operators, require_onnx
from cpt_deploy.bundle.runtime.providers import keeps_operators
from cpt_deploy.onnx_graph.outputs import IN_BODY, add_outputs, scans, tensors_of

T = TypeVar("T")

MOVING = frozenset(
    {
        "Concat", "DepthToSpace", "Flatten", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True)
class IntermediateOutput:
    """A quantized tensor.

    Args:
        name: Its name in the ONNX graph.
        operator: The operator whose result it holds; "input" for the quantized input.
    """

    name: str
    operator: str


@dataclass(frozen=True)
class ObservableModel:
    """A model with intermediate outputs.

    Args:
        model: The serialized ONNX model.
        intermediates: The tensors that were added as outputs, in graph order.
        hidden: The tensors that were not added, since as outputs they would prevent fusions of onnxruntime.
    """

    model: bytes
    intermediates: tuple[IntermediateOutput, ...]
    hidden: tuple[IntermediateOutput, ...]


def quantized_tensors(model: bytes) -> tuple[IntermediateOutput, ...]:
    """List the quantized activations (uint8 or int8) between a model's operators, in graph order.

    If a QuantizeLinear is followed by a Clip (below 8 bits), the clipped tensor is listed. Tensors whose integers are
    only moved (such as padded) are not listed a second time.

    Args:
        model: The serialized ONNX model.
    """
    onnx = require_onnx()
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    made_by = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return tuple(
        IntermediateOutput(name, _origin(node, made_by))
        for node in graph.node
        for name in node.output
        if _holds_codes(node, types.get(name), onnx.TensorProto)
        and not (node.op_type in MOVING and types.get(node.input[0]) == onnx.TensorProto.UINT8)
        and not (readers.get(name) and all(reader.op_type == "Clip" for reader in readers[name]))
    ) + tuple(IntermediateOutput(name, node.op_type) for node, body in scans(graph) for name in _quantized_in(body))


def add_intermediate_outputs(model: bytes, names: Collection[str], real: Collection[str] = ()) -> bytes:
    """Return a model with quantized tensors as further outputs, in the given order.

    Args:
        model: The serialized ONNX model.
        names: Names of these tensors.
        real: Names of those that hold real values instead.
    """
    onnx = require_onnx()
    types, signed = onnx.TensorProto, _signed_tensors(onnx.load_from_string(model).graph, onnx)
    return add_outputs(
        model,
        {name: types.FLOAT if name in real else types.INT8 if name in signed else types.UINT8 for name in names},
    )


def with_intermediate_outputs(model: bytes, provider: str = "cpu", products: Collection[str] = ()) -> ObservableModel:
    """Add the quantized tensors of a model as outputs, as far as the optimized graph stays the same.

    An output between two operators can prevent a fusion, and then kernels other than the served ones would be compared.
    So the operators of the optimized graph are counted with and without each output, and a tensor that changes them is
    not added. Differences of layout are ignored: convolutions run channels-last, and outputs are transposed back.
    If a provider compiles the graph, operators cannot be counted, and all tensors become outputs.

    Args:
        model: The serialized ONNX model.
        provider: The execution provider that will run it.
        products: Names of layers' real-valued results to add as outputs too.

    Raises:
        BundleError: If onnxruntime cannot load the model.
        MissingExtraError: If `onnx` is not installed.
    """
    counted = keeps_operators(provider)
    plain = computing_operators(model, provider) if counted else {}

    def harmless(intermediates: tuple[IntermediateOutput, ...]) -> bool:
        return (
            not counted
            or computing_operators(
                add_intermediate_outputs(model, [intermediate.name for intermediate in intermediates], products),
                provider,
            )
            == plain
        )

    everything = _in_graph_order(model, (*quantized_tensors(model), *_real_results(model, products)))
    kept = largest_harmless(everything, harmless)
    return ObservableModel(
        model=add_intermediate_outputs(model, [intermediate.name for intermediate in kept], products),
        intermediates=kept,
        hidden=tuple(intermediate for intermediate in everything if intermediate not in kept),
    )


def largest_harmless(candidates: tuple[T, ...], harmless: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Return the candidates that can be added together, by bisection."""

    def add(kept: tuple[T, ...], candidates: tuple[T, ...]) -> tuple[T, ...]:
        if not candidates or harmless(kept + candidates):
            return kept + candidates
        if len(candidates) == 1:
            return kept
        middle = len(candidates) // 2
        return add(add(kept, candidates[:middle]), candidates[middle:])

    return add((), candidates)


def _real_results(model: bytes, names: Collection[str]) -> tuple[IntermediateOutput, ...]:
    """Return real-valued results of layers with their multiplying operator, which a bias Add may follow."""
    graph = require_onnx().load_from_string(model).graph
    made_by = {name: node for node in graph.node for name in node.output}
    nodes = {name: made_by[name] for name in names if name in made_by}
    multiplied = {name: made_by.get(node.input[0]) if node.op_type == "Add" else node for name, node in nodes.items()}
    stepped = {name for _, body in scans(graph) for name in tensors_of(body) if name in names}
    return tuple(
        IntermediateOutput(name, "MatMul" if node is None else str(node.op_type)) for name, node in multiplied.items()
    ) + tuple(IntermediateOutput(name, "MatMulInteger") for name in names if name in stepped)


def _in_graph_order(model: bytes, intermediates: tuple[IntermediateOutput, ...]) -> tuple[IntermediateOutput, ...]:
    graph = require_onnx().load_from_string(model).graph
    bodies = {node.name: tensors_of(body) for node, body in scans(graph)}
    made = [name for node in graph.node for name in (*bodies.get(node.name, ()), *node.output)]
    order = {name: i for i, name in enumerate(made)}
    return tuple(sorted(intermediates, key=lambda intermediate: order[intermediate.name]))


def _holds_codes(node: Any, kind: int | None, types: Any) -> bool:
    """Return whether a result is a quantized activation; int8 weights are no outputs of QuantizeLinear."""
    return bool(kind == types.UINT8 or (kind == types.INT8 and node.op_type == "QuantizeLinear"))


def _quantized_in(body: Any) -> Iterator[str]:
    """Yield the quantized tensors in the body of a Scan, by their names as outputs."""
    clipped = {node.input[0] for node in body.node if node.op_type == "Clip"}
    for node in body.node:
        name = str(node.output[0])
        if node.op_type in {"Clip", "QuantizeLinear"} and name.endswith(IN_BODY) and name not in clipped:
            yield name.removesuffix(IN_BODY)


def _signed_tensors(graph: Any, onnx: Any) -> set[str]:
    """Return the names of the int8 outputs of a graph's QuantizeLinear nodes, also in the bodies of Scans."""
    kinds = {entry.name: entry.data_type for entry in graph.initializer}
    signed = {
        node.output[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and kinds.get(node.input[2]) == onnx.TensorProto.INT8
    }
    inner = (_signed_tensors(body, onnx) for _, body in scans(graph))
    return signed | {name.removesuffix(IN_BODY) for names in inner for name in names}


def computing_operators(model: bytes, provider: str = "cpu") -> dict[str, int]:
    """Return the number of operators by name, whatever their layout; max pooling of integers is the same in any."""
    operators = optimized_operators(model, provider)
    operators.pop("Transpose", None)
    operators.pop("Identity", None)  # appears if a layer's result is an output under two names
    pools = operators.pop("NhwcMaxPool", 0) + operators.pop("MaxPool", 0)
    return operators | {"MaxPool": pools}


def _origin(node: Any, made_by: dict[str, Any]) -> str:
    """Walk back from a quantizer to the operator whose result it quantizes."""
    while node is not None and node.op_type in {"Clip", "QuantizeLinear", "Relu"}:
        node = made_by.get(node.input[0])
    return "input" if node is None else str(node.op_type)
