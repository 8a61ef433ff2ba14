"""The exact arithmetic of single operators against onnxruntime's own kernels, on random integers and parameters."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cpt_deploy.validation.onnx_files.kernels.calls import UnknownArithmeticError
from cpt_deploy.validation.onnx_files.kernels.exact import EXACT, recompute
from tests.unit.validation.onnx_files.conftest import constant, model_of, value

MS = "com.microsoft"
RANDOM = np.random.default_rng(7)


def codes(*shape: int, dtype: object = np.uint8) -> np.ndarray:
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max + 1, shape).astype(dtype)


def scale(*shape: int) -> np.ndarray:
    return RANDOM.uniform(0.01, 0.1, shape).astype(np.float32)


def weight(*shape: int) -> np.ndarray:
    """Weights of 7 bits, whose pairs of products cannot saturate on any processor."""
    return RANDOM.integers(-63, 64, shape).astype(np.int8)


def u8() -> np.ndarray:
    return codes()


def conv(shape, kernel, *, channels_last=False, bias=True, **attributes):
    x = codes(2, *((*shape[1:], shape[0]) if channels_last else shape))
    zeros = np.zeros(kernel[0], np.int8)
    inputs = [x, scale(), u8(), weight(*kernel), scale(kernel[0]) / 9, zeros, scale(), u8()]
    inputs += [RANDOM.integers(-5000, 5000, kernel[0]).astype(np.int32)] if bias else []
    own = {"channels_last": 1} if channels_last else {}
    return "QLinearConv", inputs, {**attributes, **own}, MS if channels_last else ""


def pairs(kind, first, second):
    return kind, [codes(*first), scale(), u8(), codes(*second), scale(), u8(), scale(), u8()], {}, MS


def one(kind, shape, **attributes):
    return kind, [codes(*shape), scale(), u8(), scale(), u8()], attributes, MS


CASES = {
    "conv": conv((4, 7, 6), (8, 4, 3, 3), pads=[1, 0, 2, 1], strides=[2, 1]),
    "conv without bias": conv((4, 7, 6), (8, 4, 3, 3), bias=False, dilations=[2, 1]),
    "conv, channels last": conv((4, 7, 6), (8, 4, 3, 3), channels_last=True, pads=[1, 1, 1, 1]),
    "depthwise": conv((8, 7, 6), (8, 1, 3, 3), group=8, pads=[1, 1, 1, 1]),
    "grouped, same padding": conv((8, 7, 6), (4, 4, 3, 2), group=2, auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv of one dimension": conv((4, 9), (8, 4, 3), pads=[1, 1]),
    "conv integer": ("ConvInteger", [codes(2, 4, 7, 6), codes(8, 4, 3, 3), u8(), u8()], {"pads": [1, 1, 1, 1]}, ""),
    "matmul": (
        "QLinearMatMul",
        [codes(2, 5, 16), scale(), u8(), weight(16, 6), scale(6), np.zeros(6, np.int8), scale(), u8()],
        {},
        "",
    ),
    "matmul integer": ("MatMulInteger", [codes(5, 16), codes(16, 6), u8(), u8()], {}, ""),
    "matmul integer of signed weights": (
        "MatMulInteger",
        [codes(2, 5, 16), weight(16, 6), u8(), np.array(3, np.int8)],
        {},
        "",
    ),
    "gemm": (
        "QGemm",
        [
            codes(5, 16),
            scale(),
            u8(),
            weight(6, 16),
            scale(6),
            np.zeros(6, np.int8),
            RANDOM.integers(-999, 999, 6).astype(np.int32),
            scale(),
            u8(),
        ],
        {"transB": 1},
        MS,
    ),
    "gemm with a real result": (
        "QGemm",
        [codes(5, 16), scale(), u8(), weight(16, 6), scale(), np.zeros((), np.int8)],
        {"alpha": 1.0},
        MS,
    ),
    "matmul to float": (
        "MatMulIntegerToFloat",
        [codes(5, 16), weight(16, 6), scale(), scale(6), u8(), np.zeros(6, np.int8), scale(6)],
        {},
        MS,
    ),
    "dynamic matmul": (
        "DynamicQuantizeMatMul",
        [RANDOM.standard_normal((5, 16)).astype(np.float32), weight(16, 6), scale(6), np.zeros(6, np.int8)],
        {},
        MS,
    ),
    "add": pairs("QLinearAdd", (2, 3, 5, 4), (2, 3, 5, 4)),
    "add of a scalar": pairs("QLinearAdd", (2, 3, 5, 4), (1,)),
    "add to a scalar": pairs("QLinearAdd", (1,), (2, 3, 5, 4)),
    "add of channels": pairs("QLinearAdd", (2, 3, 5, 4), (2, 3, 1, 1)),
    "add to channels": pairs("QLinearAdd", (2, 3, 1, 1), (2, 3, 5, 4)),
    "product": pairs("QLinearMul", (2, 3, 5, 4), (2, 3, 5, 4)),
    "product with channels": pairs("QLinearMul", (2, 3, 1, 1), (2, 3, 5, 4)),
    "sigmoid": one("QLinearSigmoid", (500,)),
    "leaky relu": one("QLinearLeakyRelu", (500,), alpha=0.1),
    "global average": one("QLinearGlobalAveragePool", (2, 3, 5, 4)),
    "global average, channels last": one("QLinearGlobalAveragePool", (2, 5, 4, 3), channels_last=1),
    "average": one("QLinearAveragePool", (2, 3, 8, 7), kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 0, 1]),
    "average with padding": one(
        "QLinearAveragePool", (2, 3, 8, 7), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "average, channels last": one(
        "QLinearAveragePool", (2, 8, 7, 16), kernel_shape=[2, 2], strides=[2, 2], channels_last=1
    ),
    "concatenation": (
        "QLinearConcat",
        [scale(), u8(), codes(2, 3), scale(), u8(), codes(2, 4), scale(), u8()],
        {"axis": 1},
        MS,
    ),
    "choice": (
        "QLinearWhere",
        [RANDOM.random((2, 3)) > 0.5, codes(2, 3), scale(), u8(), codes(2, 3), scale(), u8(), scale(), u8()],
        {},
        MS,
    ),
    "maximum": (
        "MaxPool",
        [codes(2, 3, 8, 7)],
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1},
        "",
    ),
    "quantize": ("QuantizeLinear", [RANDOM.standard_normal(999).astype(np.float32), scale(), u8()], {}, ""),
    "quantize channels": (
        "QuantizeLinear",
        [RANDOM.standard_normal((5, 3, 9)).astype(np.float32), scale(3), codes(3, dtype=np.int8)],
        {"axis": 1},
        "",
    ),
    "dequantize": ("DequantizeLinear", [codes(5, 3, 9), scale(3), codes(3)], {"axis": 1}, ""),
    "quantize in the range of a call": (
        "DynamicQuantizeLinear",
        [RANDOM.standard_normal(999).astype(np.float32)],
        {},
        "",
    ),
    "quantize zeros": ("DynamicQuantizeLinear", [np.zeros(9, np.float32)], {}, ""),
}
OUTPUTS = {"DynamicQuantizeLinear": 3}
KINDS = {
    np.dtype(t): k
    for t, k in (
        (np.uint8, TensorProto.UINT8),
        (np.float32, TensorProto.FLOAT),
        (np.int8, TensorProto.INT8),
        (np.bool_, TensorProto.BOOL),
    )
}


def test_every_operator_has_a_case():
    assert {kind for kind, *_ in CASES.values()} | {"NhwcMaxPool"} == set(EXACT)


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_recomputed_exactly(case):
    kind, arrays, attributes, domain = CASES[case]
    names = [f"i{n}" for n in range(len(arrays))]
    outputs = [f"o{n}" for n in range(OUTPUTS.get(kind, 1))]
    node = helper.make_node(kind, names, outputs, domain=domain, **attributes)
    # What is computed has to be an input: kernels of constants are chosen by their shapes.
    fed = {0} if kind not in {"QLinearAdd", "QLinearMul", "QLinearWhere", "QLinearConcat"} else set(range(len(arrays)))
    fed = {n for n in fed if n == 0 or (arrays[n].ndim and arrays[n].dtype != np.float32)}
    given = [value(names[n], arrays[n].shape, KINDS[arrays[n].dtype]) for n in sorted(fed)]
    fixed = [
        constant(name, array, array.dtype)
        for n, (name, array) in enumerate(zip(names, arrays, strict=True))
        if n not in fed
    ]
    model = model_of([node], given, [helper.make_empty_tensor_value_info(name) for name in outputs], fixed)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got = dict(zip(outputs, session.run(outputs, {names[n]: arrays[n] for n in fed}), strict=True))
    expected = recompute(node, {**dict(zip(names, arrays, strict=True)), **got})
    assert len(expected) == len(outputs)
    for name, result in zip(outputs, expected, strict=True):
        assert result.values.shape == got[name].shape
        assert len(np.unique(got[name])) > 5 or got[name].size < 10
        if result.unit is None:
            np.testing.assert_array_equal(result.values, got[name])
        else:  # the integer sums are equal; their product with the scale may be rounded once more
            assert np.all(np.abs(result.values - got[name].astype(np.float64)) < 0.01 * result.unit)


def test_a_form_that_is_not_known_is_refused():
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], block_size=4)
    values = {"x": np.zeros((8, 4), np.float32), "s": np.ones((2, 4), np.float32), "y": np.zeros((8, 4), np.uint8)}
    with pytest.raises(UnknownArithmeticError, match="scales per block"):
        recompute(node, values)
