"""Inspect and validate ONNX files of any tool, and give rows of tensors to bundles that were made from one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.formatting import json_bytes
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.tasks import SILENT, Reporter
from cpt_deploy.workflows.imported.input_files import Arrays, InputFiles

if TYPE_CHECKING:
    from cpt_deploy.validation import Batch, Samples
    from cpt_deploy.validation.accuracy.tensor_scoring import SignalToNoise
    from cpt_deploy.validation.onnx_files.inspection import Inspection
    from cpt_deploy.validation.onnx_files.validation import FileReport


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


def tensor_samples(
    bundle: Bundle, data: Path, source: Path | None, limit: int | None
) -> "tuple[Samples, SignalToNoise]":
    """Return rows of tensors as samples of a bundle, and their scoring against the outputs of its float model.

    Args:
        bundle: A bundle that takes and returns tensors.
        data: A file .npz of inputs, or a folder, as for calibration.
        source: The float model; without one the outputs of the bundle itself with optimizations off are compared with.
        limit: Number of rows; `None` is all.

    Raises:
        DataError: If the data are missing or damaged.
        UsageError: If they are not the inputs of the bundle.
    """
    from cpt_deploy.bundle.runtime.sessions import open_session
    from cpt_deploy.validation import Batch, Samples
    from cpt_deploy.validation.accuracy.tensor_scoring import SignalToNoise

    signature = bundle.signature
    files = InputFiles.find(data, signature.inputs)
    joined, ranks = signature.joins_rows, {tensor.name: tensor.whole_shape for tensor in signature.inputs}
    size = files.count if joined else files.number_of_calls(ranks)
    if not size:
        raise UsageError(f"Expected at least one {'row' if joined else 'whole call'} in {data.name}, but got none")
    count = size if limit is None else min(size, limit)
    session = open_session(source or bundle.onnx_path, threads=None, optimize=source is not None)
    names, truth = [tensor.name for tensor in signature.outputs], dict[int, Arrays]()

    def batches() -> "Iterator[Batch]":
        left = count
        for number, inputs in enumerate(files.batches() if joined else files.calls(ranks)):
            if left <= 0:
                return
            part = {name: array[:left] for name, array in inputs.items()} if joined else inputs
            rows = len(next(iter(part.values()))) if joined else 1
            left -= rows
            if number not in truth:
                truth[number] = dict(zip(names, _outputs(session, names, part, joined=joined), strict=True))
            yield Batch(part, np.full(rows, number, np.int64))

    compared = "the float model's" if source is not None else "its own with onnxruntime's optimizations off"
    scoring = SignalToNoise(names[0], truth, own=source is None)
    notes = (f"{scoring.metric.name} compares the outputs with {compared}",)
    return Samples(data.name, "rows", files.sha256(), size, count, batches, notes), scoring


def _outputs(session: Any, names: list[str], inputs: Arrays, *, joined: bool) -> list[npt.NDArray[Any]]:
    """Return the outputs of a model for rows, in calls of as many as it is written for if that number is fixed."""
    sizes = {shape[0] for entry in session.get_inputs() if (shape := entry.shape)}
    fixed = sizes.pop() if joined and len(sizes) == 1 else None
    rows = len(next(iter(inputs.values())))
    if not isinstance(fixed, int) or fixed == rows:
        found: list[npt.NDArray[Any]] = session.run(names, inputs)
        return found
    # the last call is filled up with its last row
    calls = [np.minimum(np.arange(start, start + fixed), rows - 1) for start in range(0, rows, fixed)]
    parts = [session.run(names, {name: array[places] for name, array in inputs.items()}) for places in calls]
    return [np.concatenate(values)[:rows] for values in zip(*parts, strict=True)]
