"""The models that onnx tests its backends with: each is read, quantized and written, and computes the same."""

import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from cpt_deploy.errors import ConversionError
from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers
from tests.unit.onnx_graph.reading.networks import Array, run

DATA = Path(onnx.__file__).parent / "backend/test/data"
FOLDERS = ("simple", "pytorch-converted", "pytorch-operator")
STRIDE = 24
"""Without the marker `slow`, one model of so many is tested."""

#: What an integer graph cannot hold as an input or output.
NO_NUMBERS = r"Expected numbers as inputs and outputs|Expected tensors as inputs and outputs"
#: Models that are refused: the Scan of opset 8 has a batch dimension, which onnx does not convert.
REFUSED = {"test_scan_sum"}
#: Allowed difference of outputs behind integer layers, as a share of the greatest value: of small random models.
ROUNDED = 0.1
RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}


Model = tuple[str, bytes, list[Any]]
"""Name, serialized model, and values of its inputs in order."""


@cache
def models() -> tuple[Model, ...]:
    """Return all models, also those that onnxruntime cannot run."""
    return tuple(sorted((*_of_operators(), *_in_folders()), key=lambda model: model[0]))


def inputs_of(model: Model) -> dict[str, Any] | None:
    """Return the inputs of a model by name; None if onnxruntime cannot run it."""
    _, content, values = model
    names = [value.name for value in onnx.load_model_from_string(content).graph.input]
    inputs = {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value in zip(names, values, strict=False)
    }
    try:
        run(content, inputs, optimize=False)
    except Exception:  # operators that it lacks: its exceptions have no common base class
        return None
    return inputs


def _of_operators() -> Iterator[Model]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        values = [numpy_helper.to_array(x) if isinstance(x, TensorProto) else x for x in case.data_sets[0][0]]
        yield case.name, case.model.SerializeToString(), values


def _in_folders() -> Iterator[Model]:
    for folder in FOLDERS:
        for path in sorted((DATA / folder).glob("*/model.onnx")):
            files = sorted(path.parent.glob("test_data_set_0/input_*.pb"), key=lambda file: int(file.stem[6:]))
            try:
                values = [numpy_helper.to_array(onnx.load_tensor(file)) for file in files]
            except Exception:  # a sequence
                continue
            yield f"{folder}/{path.parent.name}", path.read_bytes(), values


def check(model: bytes, inputs: dict[str, Any]) -> bool:
    """Check that a model computes the same when it was read, and quantized; return whether it could be."""
    read = read_onnx(model)
    random = any(node.op_type in RANDOM for node in read.nodes)
    wanted = run(model, inputs)
    assert_same(wanted, run(read.to_model().SerializeToString(), inputs), 0 if random else 1e-3)
    if not all(isinstance(value, np.ndarray) and value.size for value in inputs.values()):
        return False
    try:
        graph = quantize_onnx(read, [inputs]).graph
    except ConversionError as error:
        if not re.match(NO_NUMBERS, str(error)):
            raise
        return False
    written = write_onnx(graph)
    assert_same(wanted, run(written, inputs), 0 if random else ROUNDED if graph.weighted() else 1e-3)
    comparison = compare_integers(graph, written, inputs)
    assert comparison.mismatches == 0
    assert random or max(comparison.outputs.values(), default=0.0) < 1e-4
    return True


def assert_same(wanted: Any, got: Any, tolerance: float) -> None:
    """Compare outputs; with a tolerance of 0 only their types and shapes."""
    if isinstance(wanted, list):
        assert len(wanted) == len(got)
        for one, other in zip(wanted, got, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(wanted, np.ndarray):
        assert wanted.shape == got.shape
        assert wanted.dtype == got.dtype
        _assert_near(wanted, got, tolerance)
    else:
        assert wanted == got or not tolerance


def _assert_near(wanted: Array, got: Array, tolerance: float) -> None:
    if not tolerance or not wanted.size:
        return
    if wanted.dtype.kind not in "fc":
        np.testing.assert_array_equal(wanted, got)
        return
    exact = wanted.astype(np.complex128 if wanted.dtype.kind == "c" else np.float64)
    finite = np.abs(exact[np.isfinite(exact)]).max(initial=1e-6)
    np.testing.assert_allclose(got.astype(exact.dtype), exact, rtol=tolerance, atol=tolerance * finite)


def sweep(stride: int) -> tuple[int, int]:
    """Check models; return the number of those that onnxruntime runs, and of those that were quantized."""
    count = quantized = 0
    for model in models()[::stride]:
        inputs = inputs_of(model)
        if inputs is None or model[0] in REFUSED:
            continue
        try:
            quantized += check(model[1], inputs)
        except Exception as error:
            error.add_note(f"the model {model[0]}")
            raise
        count += 1
    return count, quantized


def test_models_of_onnx_compute_the_same() -> None:
    count, quantized = sweep(STRIDE)
    assert count >= 60
    assert quantized > 0.85 * count


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_models_of_onnx_compute_the_same() -> None:
    count, quantized = sweep(1)
    assert count >= 1600
    assert quantized >= 1500
