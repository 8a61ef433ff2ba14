"""List the operators of a model in onnxruntime's optimized graph, and those of them that compute in float.

Needs the `onnx` package.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cpt_deploy.bundle.runtime.providers import check_started, provider_names
from cpt_deploy.bundle.runtime.sessions import is_portable, needs_exact_sums, session_options, start_session
from cpt_deploy.errors import BundleError, DataError, MissingExtraError

_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")

MOVEMENTS = frozenset(
    {
        "Cast", "Concat", "DepthToSpace", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity", "Pad",
        "QuantizeLinear", "ReorderInput", "ReorderOutput", "Reshape", "Shape", "Slice", "SpaceToDepth", "Split",
        "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that only move or convert values; in float they cost little and are not reported."""

_MULTIPLYING = frozenset(
    {
        "Attention", "BatchNormalization", "Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul",
        "MultiHeadAttention", "RNN",
    }
)  # fmt: skip
"""Operators that multiply weights; in this form, in float."""

_INTEGER_TO_FLOAT = frozenset(
    {"DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)

_INPUTS_OF_QUANTIZED_QGEMM = 9
"""A QGemm returns integers if it has a ninth input, the zero point of the output, and floats otherwise."""


def optimized_operators(model: bytes, provider: str = "cpu") -> dict[str, int]:
    """Return the number of occurrences of each operator in onnxruntime's optimized graph and its sub-graphs, by name.

    Args:
        model: The serialized ONNX model.
        provider: The execution provider to optimize for, one that `keeps_operators`.

    Raises:
        BundleError: If onnxruntime cannot load the model.
        MissingExtraError: If `onnx` is not installed.
    """
    return _count(_all_nodes(optimize(model, provider).graph))


def float_operators(model: bytes, provider: str = "cpu") -> dict[str, int]:
    """Return the number of occurrences of each operator of the optimized graph that computes in float, by name.

    Quantizers, dequantizers and operators that only move values do not count, nor do integer kernels whose scales or
    results are in float (QLinearConv, QGemm, MatMulIntegerToFloat, ...).

    Args:
        model: The serialized ONNX model.
        provider: The execution provider to optimize for, one that `keeps_operators`.

    Raises:
        BundleError: If onnxruntime cannot load the model.
        MissingExtraError: If `onnx` is not installed.
    """
    onnx = require_onnx()
    optimized = onnx.shape_inference.infer_shapes(optimize(model, provider))
    return _count(_in_float(optimized.graph, frozenset()))


def announced_operators(model: bytes) -> dict[str, Any]:
    """Return the entry of quantization.json in which export announces the operators that run in float.

    Args:
        model: The serialized ONNX model.

    Raises:
        BundleError: If onnxruntime cannot load the model.
        MissingExtraError: If `onnx` is not installed.
    """
    import onnxruntime

    return {"version": str(onnxruntime.__version__), "float_operators": float_operators(model)}


def unannounced_operators(found: Mapping[str, int], announced: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the number of float operators in excess of those that export announced, by name.

    Fused forms count as the plain operator. Which operators are fused depends on the version of onnxruntime: if it
    differs from that at export, only operators that multiply are counted, which are the same in all versions.

    Args:
        found: The operators that compute in float here.
        announced: The result of `announced_operators` at export; `None` if nothing was announced.
    """
    import onnxruntime

    announced = announced or {}
    known = _plain(announced.get("float_operators", {}))
    same = announced.get("version") in {None, str(onnxruntime.__version__)}
    extra = {name: count - known.get(name, 0) for name, count in _plain(found).items()}
    return {name: count for name, count in extra.items() if count > 0 and (same or name in _MULTIPLYING)}


def _plain(operators: Mapping[str, int]) -> Counter[str]:
    plain: Counter[str] = Counter()
    for name, count in operators.items():
        plain[name.removeprefix("Nhwc").removeprefix("Fused")] += int(count)
    return plain


def optimize(model: bytes, provider: str = "cpu", *, exact_sums: bool | None = None) -> Any:
    """Return the graph that onnxruntime executes on this machine, as an `onnx.ModelProto`.

    Args:
        model: The serialized ONNX model.
        provider: The execution provider to optimize for, one that `keeps_operators`.
        exact_sums: Whether int8 weights are converted to uint8; `None` decides it as `open_session` does.

    Raises:
        BundleError: If onnxruntime cannot load the model.
        DataError: If there is no room for its temporary file.
        MissingExtraError: If `onnx` is not installed.
    """
    onnx, providers = require_onnx(), provider_names(provider)
    with tempfile.TemporaryDirectory(prefix="cpt-optimized-") as directory:
        path = Path(directory) / "optimized.onnx"
        exact = needs_exact_sums(model) if exact_sums is None else exact_sums
        options = session_options(exact_sums=exact, keep_int8=is_portable(model))
        options.optimized_model_filepath = str(path)
        options.intra_op_num_threads = 1
        # onnxruntime's exceptions have no common base class.
        try:
            session = start_session(model, options, providers=providers)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            if "serialization failed" in reason:
                raise DataError(
                    f"Expected room for a temporary file of onnxruntime in {directory}, but it cannot be written",
                    hint="free some space there, or set TMPDIR to another folder",
                ) from error
            raise BundleError(f"Expected a model that onnxruntime can load, but got: {reason}") from error
        check_started(session, provider)
        return onnx.load(path)


def require_onnx() -> Any:
    """Import and return `onnx`.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("Expected the package onnx, but it is not installed", extra="train") from error
    return onnx


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


def _in_float(graph: Any, outer: frozenset[str]) -> Iterator[Any]:
    """Yield the nodes that compute in float, of a graph and of its sub-graphs."""
    floats = outer | _float_tensors(graph, outer)
    for node in graph.node:
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        for body in bodies:
            yield from _in_float(body, floats)
        if not bodies and _computes_in_float(node, floats):
            yield node


def _float_tensors(graph: Any, outer: frozenset[str]) -> set[str]:
    """Return the names of the floating-point tensors of a graph, given those of the enclosing graph."""
    onnx = require_onnx()
    kinds = {onnx.TensorProto.DataType.Value(name) for name in _FLOATS}
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    floats = set(outer) | {initializer.name for initializer in graph.initializer if initializer.data_type in kinds}
    floats |= {name for name, kind in types.items() if kind in kinds}
    # ONNX infers no types for onnxruntime's own operators, nor for the operators after them.
    for node in graph.node:
        if _returns_floats(node, floats):
            floats |= {name for name in node.output if types.get(name, 0) == 0}
    return floats


def _returns_floats(node: Any, floats: set[str]) -> bool:
    if node.op_type == "QGemm":
        return len(node.input) < _INPUTS_OF_QUANTIZED_QGEMM or not node.input[_INPUTS_OF_QUANTIZED_QGEMM - 1]
    if node.op_type in _INTEGER_TO_FLOAT:
        return True
    if node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear"):
        return False
    return bool(node.input) and node.input[0] in floats


def _computes_in_float(node: Any, floats: frozenset[str]) -> bool:
    if node.op_type in MOVEMENTS or node.op_type.startswith(("QLinear", "Dynamic")):
        return False
    # onnxruntime's own integer kernels have integers as the first input and scales, which are float, after it.
    inputs = node.input[:1] if node.domain.startswith("com.microsoft") else node.input
    return any(name in floats for name in inputs)


def _count(nodes: Any) -> dict[str, int]:
    return dict(sorted(Counter(node.op_type for node in nodes).items()))
