"""Sessions of onnxruntime that compute a model's integers exactly on every processor.

x86 processors without VNNI multiply uint8 by int8 and add two products each in 16 bits, which saturates silently
(`vpmaddubsw`). onnxruntime can be told to turn the int8 weights into uint8 ones at load, weight and zero point by 128
alike, for which it has kernels that add in 32 bits: the same integers, at the price of speed. Where the processor has
VNNI it would only cost speed, so this is done where it is needed: for native models, since portable ones cannot
saturate, and neither can those with int8 activations, whose kernels add in 32 bits everywhere.
"""

from pathlib import Path
from typing import Any

from cpt_deploy.bundle.runtime.cpu import read_cpu
from cpt_deploy.bundle.runtime.providers import check_started, choose_provider
from cpt_deploy.errors import BundleError, UsageError

PORTABLE_KEY = "cpt.portable"
"""Entry of a file's metadata, there only in models whose sums cannot saturate on any processor."""

EXACT_SUMS = "session.x64quantprecision"
"""The option of onnxruntime that trades int8 weights for uint8 ones; it exists on x86 and does nothing elsewhere."""


def open_session(
    model: Path | bytes,
    *,
    where: str | None = None,
    threads: int | None = 1,
    optimize: bool = True,
    provider: str = "cpu",
    rest_between_runs: bool = False,
) -> Any:
    """Return a session of onnxruntime, with the options that every model of this project needs.

    Args:
        model: Path of an ONNX file, or its bytes.
        where: How an error names it.
        threads: Threads that one call computes with; `None` takes one per physical core.
        optimize: Whether onnxruntime may fuse the graph to integer operators.
        provider: "cpu", "cuda", the name of one of onnxruntime's execution providers, or NAME=PATH of one in a library.
        rest_between_runs: Whether its threads stop at once after a call.

    Raises:
        BundleError: If onnxruntime cannot load it.
        UsageError: If the provider is not available here or `threads` is less than 1.
    """
    import onnxruntime

    if threads is not None and threads < 1:
        raise UsageError(f"Expected threads to be at least 1, but got {threads}")
    source: str | bytes = model if isinstance(model, bytes) else str(model)
    where = where or ("the given bytes" if isinstance(model, bytes) else str(model))
    options = session_options(optimize=optimize, exact_sums=needs_exact_sums(model))
    options.intra_op_num_threads = threads or 0
    if rest_between_runs:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    chosen = choose_provider(options, provider)
    # onnxruntime's exceptions have no common base of their own.
    try:
        session = onnxruntime.InferenceSession(source, options, **chosen)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"Expected onnxruntime to load {where}, but got: {reason}") from error
    check_started(session, provider)
    return session


def session_options(*, exact_sums: bool, optimize: bool = True) -> Any:
    """Return `onnxruntime.SessionOptions` under which an exported model gives its exact integers.

    Args:
        exact_sums: Whether int8 weights become uint8 ones, see `needs_exact_sums`.
        optimize: Whether onnxruntime may fuse the graph to integer operators.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    # int8 activations, where a model has them, stay int8: else half of their graph would be computed in float
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if exact_sums:
        options.add_session_config_entry(EXACT_SUMS, "1")
    return options


def may_saturate() -> bool:
    """Return whether this processor adds products of 8 bits in 16 bits, or does not say that it does not."""
    return read_cpu().saturates is not False


def needs_exact_sums(model: Path | bytes) -> bool:
    """Return whether a model's sums could saturate here, by what the file says without being loaded.

    Its metadata stand in it as plain text.
    """
    if not may_saturate():
        return False
    content = model if isinstance(model, bytes) else model.read_bytes() if model.is_file() else b""
    return PORTABLE_KEY.encode() not in content
