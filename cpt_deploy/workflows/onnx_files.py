"""Quantize an ONNX file of any inputs and outputs on a file of inputs, and write its bundle."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cpt_deploy.bundle import FORMATS
from cpt_deploy.errors import ConversionError, DataError, UsageError
from cpt_deploy.signature import BATCH, Signature
from cpt_deploy.tasks import SILENT, ExportOptions, Reporter
from cpt_deploy.tasks.exporting import MAX_BITS, SOURCE_DIGEST, SOURCE_FILE
from cpt_deploy.workflows.origins import file_digest

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.onnx_graph.reading import OnnxNetwork, QuantizedOnnx

Arrays = dict[str, NDArray[Any]]

TASK = "tensors"
"""Task of models that are known by their inputs and outputs alone."""
CALIBRATION_ROWS = 8
"""Rows of a calibration batch."""
_GOLDEN_ROWS = 2
_INDEPENDENT = 1e-3
"""Allowed difference of a row's outputs if it is in a batch with others, as a share of the greatest output."""


def export_onnx_file(
    path: Path,
    inputs: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  it is frozen
    *,
    destination: Path | None = None,
    name: str | None = None,
    reporter: Reporter = SILENT,
) -> "Bundle":
    """Quantize a float ONNX model on inputs, and write its bundle, which takes and returns tensors.

    Args:
        path: The ONNX file.
        inputs: A file .npz with an array (rows, ...) of each input.
        options: Options of the bundle; bits and further formats cannot be chosen.
        destination: Directory of the bundle; None is `<file>-bundle-8bit` beside the file.
        name: Name of the model in the bundle; None is the file's.
        reporter: Receives messages.

    Raises:
        DataError: If a file is missing or damaged.
        UsageError: If an option is not supported, or the inputs are not those of the model.
        ConversionError: If the model has no layer with an integer form, or its rows depend on each other.
        BundleError: If the bundle cannot be written.
    """
    from cpt_deploy.bundle import TensorProcessor
    from cpt_deploy.export.bundle_export import ModelIdentity, export_graph
    from cpt_deploy.integer.float_costs import FloatCosts
    from cpt_deploy.onnx_graph.onnx_parts import read_parts
    from cpt_deploy.onnx_graph.packing import smallest_opset
    from cpt_deploy.onnx_graph.reading import quantize_onnx, read_onnx

    _check_options(options)
    network = read_onnx(path)
    rows = read_inputs(inputs, [value.name for value in network.inputs])
    quantized = quantize_onnx(network, batches(rows), portable=not options.native)
    graph, placement = quantized.graph, quantized.placement
    _check_rows(network, graph.signature, rows)
    if not graph.weighted():
        raise ConversionError(
            f"Expected a layer with an integer form in {path.name}, but found none: {_in_words(quantized)}"
        )
    note_placement(quantized, reporter)
    kinds = Counter(layer.operator for layer in placement.float_layers) + Counter(placement.float_operators)
    float_macs = sum(layer.macs for layer in placement.float_layers)
    floats = FloatCosts(dict(kinds.most_common()), placement.integer_macs, float_macs)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "model"
    opset = read_parts(graph).opset or options.opset or smallest_opset(graph)
    identity = ModelIdentity(
        name=name or stem,
        architecture=path.stem,
        task=TASK,
        processor=TensorProcessor(),
        facts={SOURCE_FILE: path.name, SOURCE_DIGEST: file_digest(path), "calibration_rows": _length(rows)},
        calibrated=True,
    )
    import torch

    return export_graph(
        graph,
        destination or path.with_name(f"{path.stem}-bundle-{MAX_BITS}bit{options.suffix}"),
        identity,
        {key: torch.from_numpy(array[:_GOLDEN_ROWS].copy()) for key, array in rows.items()},
        facts={"weight_bits": MAX_BITS, "activation_bits": MAX_BITS, "opset": opset, "reduced_layers": []},
        floats=(floats, "they have no integer form") if graph.has_float_operations else None,
    )


def read_inputs(path: Path, names: list[str]) -> Arrays:
    """Return the inputs in a file .npz by name, (rows, ...) each.

    Raises:
        DataError: If it is missing or damaged.
        UsageError: If it has not these inputs, or not equally many rows of each.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # of zipfile, of zlib, of NumPy, of the file system
        raise DataError(f"Expected arrays in {path}, but got: {str(error).partition(chr(10))[0]}") from error
    if arrays.keys() != {*names}:
        raise UsageError(f"Expected arrays {', '.join(names)} in {path.name}, but got {', '.join(arrays) or 'none'}")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len({*lengths.values()}) != 1 or 0 in lengths.values():
        found = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise UsageError(f"Expected equally many rows of each input in {path.name}, but got {found}")
    return arrays


def batches(rows: Arrays) -> Iterator[Arrays]:
    """Yield a few rows at a time."""
    for start in range(0, _length(rows), CALIBRATION_ROWS):
        yield {name: array[start : start + CALIBRATION_ROWS] for name, array in rows.items()}


def note_placement(quantized: "QuantizedOnnx", reporter: Reporter) -> None:
    """Report what of a network runs on integers, and what does not and why."""
    reporter.note(
        f"{100 * quantized.placement.integer_share:.4g} % of the MACs run on integers; {_in_words(quantized)}"
    )


def _in_words(quantized: "QuantizedOnnx") -> str:
    layers, operators = quantized.placement.float_layers, quantized.placement.float_operators
    reasons = Counter((layer.operator, layer.reason) for layer in layers)
    named = [f"{count} {kind}, since {reason}" for (kind, reason), count in reasons.most_common(3)]
    others = ", ".join(f"{count} {kind}" for kind, count in [*operators.items()][:6])
    parts = [*named, *([others] if others else [])]
    return f"in float stay {'; '.join(parts)}" if parts else "nothing is computed in float"


def _length(rows: Arrays) -> int:
    return len(next(iter(rows.values())))


def _check_options(options: ExportOptions) -> None:
    """Check that only options are given that ONNX files of tensors have.

    Raises:
        UsageError: Otherwise.
    """
    given = {
        "--bits": options.bits not in (None, MAX_BITS),
        "--act-bits": options.activation_bits not in (None, MAX_BITS),
        "--activations symmetric": options.symmetric,
        "--format": any(not FORMATS[name].always for name in options.formats),
    }
    for option, found in given.items():
        if found:
            raise UsageError(f"Expected no {option} for an ONNX file with a file of inputs, but got it")


def _check_rows(network: "OnnxNetwork", signature: Signature, rows: Arrays) -> None:
    """Check that a row's outputs do not depend on the batch: the server joins rows of several requests.

    Raises:
        ConversionError: If they do, or the size of the batch is fixed.
    """
    from cpt_deploy.onnx_graph.quantizing.measuring import Runner

    for tensor in (*signature.inputs, *signature.outputs):
        if tensor.batch != BATCH:
            raise ConversionError(
                f"Expected tensors with a free batch dimension, but that of {tensor.name!r} is {tensor.batch}",
                hint="export the model with a free batch; cpt_deploy.onnx_graph.reading quantizes it as it is",
            )
    runner = Runner(network.original, network)
    pair = {name: array[[0, -1]] for name, array in rows.items()}
    together = runner.run(pair)
    for row in (0, 1):
        alone = runner.run({name: array[row : row + 1] for name, array in pair.items()})
        for name, wanted in alone.items():
            got = together[name][row : row + 1]
            scale = float(np.abs(wanted).max(initial=0)) or 1.0
            if got.shape != wanted.shape or not np.allclose(
                got, wanted, rtol=_INDEPENDENT, atol=_INDEPENDENT * scale, equal_nan=True
            ):
                raise ConversionError(f"Expected rows that do not depend on each other, but those of {name!r} do")
