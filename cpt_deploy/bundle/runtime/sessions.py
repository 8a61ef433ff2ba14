"""Open onnxruntime sessions that compute a model's integers exactly on every processor.

x86 processors without VNNI multiply uint8 by int8 and add pairs of products in 16 bits, which saturates silently
(`vpmaddubsw`). With a session option, onnxruntime converts int8 weights to uint8 at load (weight and zero point plus
128), for which it has kernels that add in 32 bits: the same integers, but slower. With VNNI this would only cost speed,
so the option is set only if needed: on processors without VNNI and for native models. Portable models cannot saturate,
nor can those with int8 activations, whose kernels add in 32 bits everywhere.
"""

from pathlib import Path
from typing import Any

from cpt_deploy.bundle.runtime.cpu import read_cpu
from cpt_deploy.bundle.runtime.providers import check_started, choose_provider
from cpt_deploy.errors import BundleError, MissingExtraError, UsageError

PORTABLE_KEY = "cpt.portable"
"""Metadata entry of files whose sums cannot saturate on any processor; other files do not have it."""

_SHARED = "Attempt to replace the existing tensor"
"""Part of onnxruntime's message if two weights that it converts share a tensor."""

EXACT_SUMS = "session.x64quantprecision"
"""The session option of onnxruntime that converts int8 weights to uint8 on x86; it has no effect elsewhere."""


def open_session(
    model: Path | bytes,
    *,
    where: str | None = None,
    threads: int | None = 1,
    optimize: bool = True,
    provider: str = "cpu",
    rest_between_runs: bool = False,
) -> Any:
    """Return an onnxruntime session with the options that every model of this project needs.

    Args:
        model: Path of an ONNX file, or its bytes.
        where: Name of the model in error messages.
        threads: Number of threads per call; `None` is one per physical core.
        optimize: Whether onnxruntime may fuse the graph to integer operators.
        provider: "cpu", "cuda", the name of one of onnxruntime's execution providers, or NAME=PATH of one in a library.
        rest_between_runs: Whether its threads stop at once after a call.

    Raises:
        BundleError: If onnxruntime cannot load it.
        UsageError: If the provider is not available here or `threads` is less than 1.
        MissingExtraError: See `start_session`.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"Expected threads to be at least 1, but got {threads}")
    source: str | bytes = model if isinstance(model, bytes) else str(model)
    where = where or ("the given bytes" if isinstance(model, bytes) else str(model))
    portable = is_portable(model)
    options = session_options(optimize=optimize, exact_sums=may_saturate() and not portable, keep_int8=portable)
    options.intra_op_num_threads = threads or 0
    if rest_between_runs:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    chosen = choose_provider(options, provider)
    # onnxruntime's exceptions have no common base class.
    try:
        session = start_session(source, options, **chosen)
    except MissingExtraError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"Expected onnxruntime to load {where}, but got: {reason}") from error
    check_started(session, provider)
    return session


def start_session(source: str | bytes, options: Any, **arguments: Any) -> Any:
    """Return an onnxruntime session; weights that share a zero point get one each if exact sums need that.

    onnxruntime fails to convert int8 weights to uint8 if two of them share a tensor, as files of other tools have it.

    Raises:
        MissingExtraError: If the file has to be changed, and `onnx` is not installed.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(source, options, **arguments)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        if _SHARED not in str(error):
            raise
    return onnxruntime.InferenceSession(_unshared(source), options, **arguments)


def _unshared(source: str | bytes) -> bytes:
    """Return a model in which no two operators read the same int8 constant."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Expected the package onnx, to give weights that share zero points their own, but it is not installed",
            hint="pip install onnx",
        ) from error
    model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    constants = {entry.name: entry for entry in model.graph.initializer if entry.data_type == onnx.TensorProto.INT8}
    nodes = list(model.graph.node)
    # onnxruntime gives each reader a dequantizer of its own, and these would share their constants.
    shared = {n.output[0]: n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    readers = [(node, place) for node in nodes for place, name in enumerate(node.input) if name in shared]
    read: set[str] = set()
    for index, (node, place) in enumerate(readers):
        name = node.input[place]
        if name in read:
            copy = onnx.NodeProto()
            copy.CopyFrom(shared[name])
            copy.name, copy.output[0] = f"{copy.name}/of_{index}", f"{name}/of_{index}"
            node.input[place] = copy.output[0]
            nodes.insert(nodes.index(shared[name]), copy)
        read.add(name)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        for place, name in enumerate(node.input):
            if name in constants and name in seen:
                constant = model.graph.initializer.add()
                constant.CopyFrom(constants[name])
                constant.name = node.input[place] = f"{name}/of_{index}_{place}"
            seen.add(name)
    content: bytes = model.SerializeToString()
    return content


def session_options(*, exact_sums: bool, optimize: bool = True, keep_int8: bool = True) -> Any:
    """Return `onnxruntime.SessionOptions` with which an exported model gives its exact integers.

    Args:
        exact_sums: Whether int8 weights are converted to uint8, see `needs_exact_sums`.
        keep_int8: Whether int8 activations stay int8, as bundles with symmetric activations need it to be exact; on x86
            onnxruntime's default, to convert them to uint8 where it can, is faster.
        optimize: Whether onnxruntime may fuse the graph to integer operators.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised as exceptions
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if keep_int8:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    if exact_sums:
        options.add_session_config_entry(EXACT_SUMS, "1")
    return options


def may_saturate() -> bool:
    """Return whether this processor adds 8-bit products in saturating 16 bits, or may do so."""
    return read_cpu().saturates is not False


def needs_exact_sums(model: Path | bytes) -> bool:
    """Return whether a model's sums could saturate here."""
    return may_saturate() and not is_portable(model)


def is_portable(model: Path | bytes) -> bool:
    """Return whether a file says that its sums cannot saturate anywhere, from its bytes without loading it.

    The file contains its metadata as plain text.
    """
    content = model if isinstance(model, bytes) else model.read_bytes() if model.is_file() else b""
    return PORTABLE_KEY.encode() in content
