"""Load an ONNX file of any opset, and bring it to one form: functions inlined, opset 13 or later, constants folded."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime
from onnx import helper

from cpt_deploy.errors import ConversionError, DataError
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.onnx_graph.reading.old_meanings import restore_meanings
from cpt_deploy.onnx_graph.reading.ordering import in_order
from cpt_deploy.onnx_graph.reading.rewriting import rewrite_activations
from cpt_deploy.onnx_graph.reading.running import element_of
from cpt_deploy.onnx_graph.reading.simplify import simplify
from cpt_deploy.onnx_graph.reading.sparse import make_dense
from cpt_deploy.signature import BATCH

#: The lowest opset of ONNX with quantizers per channel, which integer layers need.
LEAST_OPSET = 13
#: The opset of files that have operators of other domains alone.
NEW_OPSET = 17
#: The opset in which Scan lost its batch dimension, which onnx does not convert.
SCAN_OPSET = 9
#: The format of converted files: in older ones constants have to be inputs, too.
CONVERTED_IR = 7
#: protobuf's limit of one message.
MOST_BYTES = 2**31 - 1


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its functions inlined, those of another opset converted.

    Raises:
        ConversionError: If one cannot be inlined.
    """
    if not model.functions:
        return model
    inlined = onnx.inliner.inline_local_functions(model, convert_version=True)
    if inlined.functions:
        names = ", ".join(f"{function.domain}:{function.name}" for function in inlined.functions)
        raise ConversionError(f"Expected functions that can be written as their operators, but got {names}")
    return inlined


def read_onnx(source: Path | bytes, name: str = "") -> OnnxNetwork:
    """Read an ONNX file, or its content, with external data beside it.

    Functions are inlined, sparse constants become dense, older opsets are converted to opset 13, constant operators are
    computed, and activation functions that are spelt out in several operators are written as one where ONNX has it.

    Args:
        source: The file, or its content.
        name: Its name in messages; that of the file by default.

    Raises:
        DataError: If it is damaged or no ONNX file.
        ConversionError: If onnxruntime cannot run it.
    """
    model = parsed(source)
    name = name or ("the given bytes" if isinstance(source, bytes) else source.name)
    if not model.graph.output:
        raise DataError(f"Expected an ONNX model in {name}, but it has no outputs")
    outputs = [value.name for value in model.graph.output]
    twice = next((output for output in outputs if outputs.count(output) > 1), None)
    if twice is not None:
        raise DataError(f"Expected outputs of different names in {name}, but got {twice!r} more than once")
    in_order(model.graph)
    _rename_others(model.graph)
    plain = model.SerializeToString()
    _declare_outputs(model.graph, _loaded(model, name))
    inlined = _attempt(lambda: without_functions(model), name)
    _attempt(lambda: make_dense(inlined.graph), name)
    current = _converted(inlined, name)
    simplified = rewrite_activations(simplify(current))
    return OnnxNetwork.from_model(simplified, name=name, original=plain)


def parsed(source: Path | bytes) -> onnx.ModelProto:
    """Return the content of an ONNX file, with external data.

    Raises:
        DataError: If it is missing, damaged or no ONNX file.
    """
    where = "the given bytes" if isinstance(source, bytes) else str(source)
    if isinstance(source, Path) and not source.is_file():
        found = "a directory" if source.is_dir() else "nothing"
        raise DataError(f"Expected an ONNX model in {where}, but there is {found}")
    try:
        model = onnx.load_model_from_string(source) if isinstance(source, bytes) else _with_data(source)
        ok = bool(model.ir_version and model.opset_import)
        _check_names(model.graph)
    except DataError:
        raise
    except Exception as error:  # protobuf's DecodeError, or any error of missing external data
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"Expected an ONNX model in {where}, but it is damaged or of another kind: {reason}") from error
    if not ok:
        raise DataError(f"Expected an ONNX model in {where}, but it states no version of its operators")
    return model


def _check_names(graph: onnx.GraphProto) -> None:
    """Raise if a name is no UTF-8: protobuf hands it out as bytes.

    Raises:
        ValueError: With the name.
    """
    names = [value.name for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer)]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        for attribute in node.attribute:
            names.append(attribute.name)
            for inner in (attribute.g, *attribute.graphs):
                _check_names(inner)
    bad = next((name for name in names if not isinstance(name, str)), None)
    if bad is not None:
        raise ValueError(f"the name {bad!r} is no UTF-8")


def _with_data(path: Path) -> onnx.ModelProto:
    """Load a file with its external data, after its size.

    Raises:
        DataError: If both are larger than 2 GB, so that onnx cannot hold them; the data is not read then.
    """
    size = path.stat().st_size
    if size <= MOST_BYTES:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                size += math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if size > MOST_BYTES:
        raise DataError(
            f"Expected an ONNX model of at most 2 GB with its data, the limit of its format, but {path} has "
            f"{size / 2**30:.1f} GB",
            hint=f"cpt serve {path} serves it as it is",
        )
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


def _loaded(model: onnx.ModelProto, name: str) -> Any:
    """Return a session of a model.

    Raises:
        ConversionError: If onnxruntime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        reason = str(error).strip().partition("\n")[0]
        raise ConversionError(f"Expected a model that onnxruntime runs in {name}, but got: {reason}") from error


def _rename_others(graph: onnx.GraphProto) -> None:
    """Give sizes that are no batch another name than `BATCH`, which the batch gets."""
    sizes = [list(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.output, *graph.value_info)]
    if any(size.dim_param == BATCH for dims in sizes for size in dims[:1]):
        return  # it is the batch here, too
    known = {size.dim_param for dims in sizes for size in dims}
    free = next(name for number in itertools.count(1) if (name := f"{BATCH}_{number}") not in known)
    for size in (size for dims in sizes for size in dims[1:]):
        if size.dim_param == BATCH:
            size.dim_param = free


def _declare_outputs(graph: onnx.GraphProto, session: Any) -> None:
    """Declare types of outputs that the file leaves open, as behind operators that only onnxruntime knows."""
    elements = {output.name: element_of(output.type) for output in session.get_outputs()}
    for output in graph.output:
        if output.type.WhichOneof("value") in (None, "tensor_type") and elements.get(output.name):
            output.type.tensor_type.elem_type = elements[output.name]


def _attempt(step: Callable[[], Any], name: str) -> Any:
    try:
        return step()
    except Exception as error:  # onnx raises errors of its C++ library, which have no common base class
        reason = str(error).strip().partition("\n")[0]
        raise ConversionError(f"Expected a model that can be converted in {name}, but got: {reason}") from error


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators in a model; 0 if it has none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _converted(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a model with at least opset 13, so that it can hold quantizers per channel."""
    opset = opset_of(model)
    if not opset:
        own = onnx.ModelProto()
        own.CopyFrom(model)
        own.opset_import.append(helper.make_opsetid("", NEW_OPSET))
        return own
    if opset >= LEAST_OPSET:
        return model
    if opset < SCAN_OPSET and any(node.op_type == "Scan" for node in model.graph.node):
        raise ConversionError(f"Expected opset {SCAN_OPSET} or later in {name}, whose Scan changed, but got {opset}")
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.ir_version = max(model.ir_version, CONVERTED_IR)
    converted: onnx.ModelProto = _attempt(lambda: onnx.version_converter.convert_version(newer, LEAST_OPSET), name)
    restore_meanings(converted, opset)
    return converted
