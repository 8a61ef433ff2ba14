"""Inspect and validate ONNX files of any tool, and give rows of tensors to bundles that were made from one."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.formatting import json_bytes
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.tasks import SILENT, Reporter

if TYPE_CHECKING:
    from cpt_deploy.validation import Batch, Samples
    from cpt_deploy.validation.onnx_files.inspection import Inspection
    from cpt_deploy.validation.onnx_files.validation import FileReport

_ROWS = 8


def inspect_model(path: Path) -> "Inspection":
    """Inspect an ONNX file, or the model of a bundle.

    Raises:
        DataError: If there is no such file, or it is damaged.
        BundleError: If onnxruntime cannot load it.
        MissingExtraError: If `onnx` is not installed.
    """
    from cpt_deploy.bundle.runtime.operators import require_onnx

    require_onnx()
    from cpt_deploy.validation.onnx_files.files import read_file
    from cpt_deploy.validation.onnx_files.inspection import inspect_file

    return inspect_file(read_file(Bundle.open(path).onnx_path if path.is_dir() else path))


def validate_onnx_file(
    path: Path,
    data: Path | None = None,
    source: Path | None = None,
    *,
    limit: int | None = None,
    reporter: Reporter = SILENT,
) -> "FileReport":
    """Validate a quantized ONNX file of any tool.

    Args:
        path: The file.
        data: A file .npz of inputs, and perhaps of `labels`; `None` draws random inputs.
        source: The float model that it was made from.
        limit: Number of rows; `None` is all.
        reporter: Receives the progress.

    Raises:
        DataError: If a file is missing or damaged.
        UsageError: If the file is not quantized, or data or source do not fit it.
        MissingExtraError: If `onnx` or PyTorch is not installed.
    """
    from cpt_deploy.bundle.runtime.operators import require_onnx

    require_onnx()
    from cpt_deploy.validation.onnx_files.files import read_file
    from cpt_deploy.validation.onnx_files.validation import validate_file

    arrays = None if data is None else read_arrays(data, limit)
    with reporter.bar("validating", 1) as bar:
        return validate_file(
            read_file(path),
            arrays,
            data_name=None if data is None else data.name,
            source=None if source is None else read_file(source),
            reporter=bar,
        )


def write_file_report(report: "FileReport", path: Path, page: Path | None = None) -> Path:
    """Write the evidence of a file beside it, as `FILE.validation.json` and `FILE.validation.html`; return the page.

    Args:
        report: The evidence.
        path: The ONNX file.
        page: Another place for the page.

    Raises:
        UsageError: If it cannot be written.
    """
    from cpt_deploy.report.pages.onnx_file_page import render_file_page

    content = report.to_dict()
    target = page or path.with_name(f"{path.name}.validation.html")
    try:
        path.with_name(f"{path.name}.validation.json").write_bytes(json_bytes(content))
        target.write_text(render_file_page(content), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"Expected to write the evidence beside {path}, but got: {error.strerror or error}",
            hint="copy the file to a folder that can be written",
        ) from error
    return target


def read_arrays(path: Path, limit: int | None = None) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file .npz by name, (rows, ...) each.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name][:limit] if file[name].ndim else file[name] for name in file.files}
    except Exception as error:  # of zipfile, of zlib, of NumPy, of the file system
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"Expected a file .npz of arrays at {path}, but got: {reason}",
            hint="numpy.savez('inputs.npz', input=array)",
        ) from error


def tensor_samples(bundle: Bundle, data: Path, source: Path | None, limit: int | None) -> "Samples":
    """Return rows of tensors as samples of a bundle, whose targets are the outputs of its float model.

    Args:
        bundle: A bundle that takes and returns tensors.
        data: A file .npz of inputs.
        source: The float model; without one the targets are the bundle's own outputs with optimizations off.
        limit: Number of rows; `None` is all.

    Raises:
        DataError: If the file is missing or damaged.
        UsageError: If its arrays are not the inputs of the bundle.
    """
    from cpt_deploy.bundle.runtime.sessions import open_session
    from cpt_deploy.validation import Batch, Samples
    from cpt_deploy.validation.accuracy.scoring import side_by_side

    arrays, wanted = read_arrays(data), {tensor.name: tensor for tensor in bundle.signature.inputs}
    if arrays.keys() != wanted.keys():
        raise UsageError(f"Expected arrays {', '.join(wanted)} in {data.name}, but got {', '.join(arrays) or 'none'}")
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError(f"Expected equally many rows of each input in {data.name}, but got {sorted(lengths)}")
    size = lengths.pop()
    count = size if limit is None else min(size, limit)
    session = open_session(source or bundle.onnx_path, threads=None, optimize=source is not None)
    names = [tensor.name for tensor in bundle.signature.outputs]

    def batches() -> "Iterator[Batch]":
        for start in range(0, count, _ROWS):
            inputs = {name: array[start : min(start + _ROWS, count)] for name, array in arrays.items()}
            outputs = dict(zip(names, session.run(names, inputs), strict=True))
            yield Batch(inputs, side_by_side(outputs))

    compared = "the float model's" if source is not None else "its own with onnxruntime's optimizations off"
    note = f"sqnr compares the outputs with {compared}"
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    return Samples(data.name, "rows", digest, size, count, batches, (note,))
