"""A small network, and files that onnxruntime's quantizer makes of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SHAPE = (3, 8, 8)


def constant(name: str, values: object, dtype: object = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def model_of(nodes, inputs, outputs, constants=(), opset: int = 17) -> onnx.ModelProto:
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(constants))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def value(name: str, shape: object = None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def float_network() -> onnx.ModelProto:
    """Conv, Relu, Conv, Add, pool, Gemm."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return constant(name, random.standard_normal(shape) / np.sqrt(np.prod(shape[1:])))

    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"], "add"),
        helper.make_node("GlobalAveragePool", ["sum"], ["mean"], "pool"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"], "gemm", transB=1),
    ]
    constants = [weight("w1", 8, 3, 3, 3), weight("w2", 8, 8, 3, 3), weight("w3", 4, 8)]
    constants += [constant(f"b{i}", random.standard_normal(n) / 4) for i, n in ((1, 8), (2, 8), (3, 4))]
    return model_of(nodes, [value("image", ["N", *SHAPE])], [value("y", ["N", 4])], constants)


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, *SHAPE)).astype(np.float32)


def quantize(source: Path, target: Path, *, dynamic: bool = False, **options: object) -> Path:
    """Quantize a file with onnxruntime's own tool."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    if dynamic:
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
        return target

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"image": images(8)}])

        def get_next(self):
            return next(self.left, None)

    defaults = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(source, target, Reader(), **{**defaults, **options})
    return target


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("files") / "float.onnx"
    onnx.save(float_network(), path)
    return path


@pytest.fixture(scope="session")
def files(source) -> dict[str, Path]:
    from onnxruntime.quantization import QuantFormat, QuantType

    made = {
        "qdq": {},
        "operators": {"quant_format": QuantFormat.QOperator, "per_channel": False},
        "unsigned": {"weight_type": QuantType.QUInt8, "per_channel": False},
        "signed": {"activation_type": QuantType.QInt8},
        "reduced": {"reduce_range": True},
        "dynamic": {"dynamic": True},
    }
    return {name: quantize(source, source.with_name(f"{name}.onnx"), **options) for name, options in made.items()}
