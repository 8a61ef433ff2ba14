"""Models of tensors whose outputs are known in closed form, as ONNX, and as bundles of no particular task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle import Bundle, BundleContents, Golden, TensorProcessor, write_bundle
from cpt_deploy.signature import FreeSize, Signature, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]

WEIGHTS = np.array([[0.5], [-2.0], [1.25]], np.float32)
TABLE = np.array([10.0, 20.0, 30.0, 40.0], np.float32)
"""Price of a house of each district."""

WIDTH = 4


def prices(inputs: Arrays) -> Arrays:
    """The regression in plain arithmetic: measures (N, 3) and a district (N, 1) to a price (N, 1)."""
    return {"price": (inputs["measures"].astype(np.float64) @ WEIGHTS + TABLE[inputs["district"]]).astype(np.float32)}


def running_means(inputs: Arrays) -> Arrays:
    """The series in plain arithmetic: values (N, length, 4) to their sums so far, and a mask (N, length) of them."""
    sums = np.cumsum(inputs["values"], axis=1)
    return {"sums": sums, "last": sums[:, -1].copy()}


def model_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Arrays) -> bytes:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tensors", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def price_onnx() -> bytes:
    info = helper.make_tensor_value_info
    return model_of(
        [
            helper.make_node("MatMul", ["measures", "weights"], ["product"]),
            helper.make_node("Gather", ["table", "district"], ["base"]),
            helper.make_node("Add", ["product", "base"], ["price"]),
        ],
        [info("measures", TensorProto.FLOAT, ["N", 3]), info("district", TensorProto.INT64, ["N", 1])],
        [info("price", TensorProto.FLOAT, ["N", 1])],
        {"weights": WEIGHTS, "table": TABLE},
    )


def series_onnx() -> bytes:
    info = helper.make_tensor_value_info
    return model_of(
        [
            helper.make_node("CumSum", ["values", "axis"], ["sums"]),
            helper.make_node("ReduceSum", ["values", "axes"], ["last"], keepdims=0),
        ],
        [info("values", TensorProto.FLOAT, ["N", "length", WIDTH])],
        [info("sums", TensorProto.FLOAT, ["N", "length", WIDTH]), info("last", TensorProto.FLOAT, ["N", WIDTH])],
        {"axis": np.array(1, np.int64), "axes": np.array([1], np.int64)},
    )


def bundle_of(
    path: Path, name: str, model: bytes, signature: Signature, golden: Golden, processor: TensorProcessor
) -> Bundle:
    contents = BundleContents(
        name=name,
        task="tabular-regression",
        signature=signature,
        processor=processor,
        onnx=model,
        tensors={"weights": WEIGHTS},
        graph={},
        quantization={},
        golden=golden,
        architecture=name,
        facts={"bits": 8},
    )
    return write_bundle(path / name, contents=contents)


@pytest.fixture(scope="session")
def price_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A regression of two inputs, of real numbers and of integers."""
    inputs = {"measures": np.array([[1, 2, 3], [0, -1, 2]], np.float32), "district": np.array([[0], [3]])}
    signature = Signature(
        (TensorSpec("measures", "float32", (3,)), TensorSpec("district", "int64", (1,))),
        (TensorSpec("price", "float32", (1,)),),
    )
    golden = Golden(inputs, prices(inputs), tolerances={"price": 1e-5})
    processor = TensorProcessor({"measures": ("area", "age", "rooms")}, {"price": "EUR"})
    return bundle_of(tmp_path_factory.mktemp("tensors"), "prices", price_onnx(), signature, golden, processor)


@pytest.fixture(scope="session")
def make_series_bundle() -> Callable[..., Bundle]:
    """Makes a model of series of a free length, whose maximum is the argument."""

    def make(path: Path, most: int | None = None) -> Bundle:
        inputs = {"values": np.arange(24, dtype=np.float32).reshape(2, 3, WIDTH)}
        signature = Signature(
            (TensorSpec("values", "float32", ("length", WIDTH)),),
            (TensorSpec("sums", "float32", ("length", WIDTH)), TensorSpec("last", "float32", (WIDTH,))),
            (),
            {"length": FreeSize(example=3, most=most)},
        )
        golden = Golden(inputs, running_means(inputs), tolerances={"sums": 1e-4, "last": 1e-4})
        return bundle_of(path, "series", series_onnx(), signature, golden, TensorProcessor())

    return make


@pytest.fixture(scope="session")
def series_bundle(make_series_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The model of series without a maximum length."""
    return make_series_bundle(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="session")
def language_like(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Running sums: a state without tokens."""
    info = helper.make_tensor_value_info
    model = model_of(
        [
            helper.make_node("Add", ["step", "total"], ["total_after"]),
            helper.make_node("Identity", ["total_after"], ["sum"]),
        ],
        [info("step", TensorProto.FLOAT, ["N", 1]), info("total", TensorProto.FLOAT, ["N", 1])],
        [info("sum", TensorProto.FLOAT, ["N", 1]), info("total_after", TensorProto.FLOAT, ["N", 1])],
        {},
    )
    spec = {name: TensorSpec(name, "float32", (1,)) for name in ("step", "total", "sum", "total_after")}
    signature = Signature(
        (spec["step"], spec["total"]), (spec["sum"], spec["total_after"]), (("total", "total_after"),)
    )
    golden = Golden({"step": np.ones((1, 1), np.float32)}, {"sum": np.ones((1, 1), np.float32)}, tolerances={"sum": 0})
    return bundle_of(tmp_path_factory.mktemp("sums"), "sums", model, signature, golden, TensorProcessor())


@pytest.fixture(scope="session")
def two_rows_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of the first two rows, as a network with a constant slice over the batch makes it."""
    info = helper.make_tensor_value_info
    model = model_of(
        [helper.make_node("Slice", ["x", "start", "end"], ["y"])],
        [info("x", TensorProto.FLOAT, ["N", 1])],
        [info("y", TensorProto.FLOAT, ["M", 1])],
        {"start": np.array([0]), "end": np.array([2])},
    )
    signature = Signature((TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),))
    rows = np.array([[1], [2]], np.float32)
    golden = Golden({"x": rows}, {"y": rows}, tolerances={"y": 0})
    return bundle_of(tmp_path_factory.mktemp("slices"), "slices", model, signature, golden, TensorProcessor())


@pytest.fixture(scope="session")
def priced() -> Callable[[Arrays], Arrays]:
    """The regression in plain arithmetic."""
    return prices


@pytest.fixture(scope="session")
def summed() -> Callable[[Arrays], Arrays]:
    """The series in plain arithmetic."""
    return running_means
