"""Small ONNX networks for tests, and what quantizing them has to give."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle.runtime.operators import optimized_operators
from cpt_deploy.onnx_graph.quantizing import QuantizedOnnx, quantize_onnx
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers

Array = NDArray[Any]


class Network:
    """Builds an ONNX file operator by operator.

    Args:
        shape: Shape of the input "x", float32; None or a name is a free size.
        opset: Version of ONNX's operators.
    """

    def __init__(self, shape: Sequence[int | str | None], *, opset: int = 17, seed: int = 0) -> None:
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.opset, self.rng = opset, np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str | Array, outputs: int = 1, **attributes: Any) -> str:
        """Add an operator; arrays become constants. Return its (first) result."""
        name = f"{kind.lower()}{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        made = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, names, made, name=f"{name}_node", **attributes))
        return name

    def constant(self, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def weight(self, *shape: int) -> NDArray[np.float32]:
        return (self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, **attributes: Any) -> str:
        """Add a convolution with "same" padding and a bias."""
        groups = attributes.get("group", 1)
        weight, bias = self.weight(outputs, inputs // groups, kernel, kernel), self.weight(outputs)
        return self.op("Conv", x, weight, bias, **{"pads": [kernel // 2] * 4, **attributes})

    def norm(self, x: str, channels: int) -> str:
        """Add a BatchNormalization, with some negative factors."""
        draw = self.rng.uniform
        ends = ((-1.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 1.5))
        values = (draw(low, high, channels) for low, high in ends)
        return self.op("BatchNormalization", x, *(value.astype(np.float32) for value in values))

    def model(self, *outputs: str) -> onnx.ModelProto:
        """Return the network with outputs of any type and shape."""
        infos = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "network", self.inputs, infos, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in {node.domain for node in self.nodes} if domain]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets[:1]))
        typed = onnx.shape_inference.infer_shapes(model)
        types = {value.name: value for value in typed.graph.value_info}
        del typed.graph.output[:]
        typed.graph.output.extend(types.get(name, info) for name, info in zip(outputs, infos, strict=True))
        return typed

    def file(self, *outputs: str) -> bytes:
        return bytes(self.model(*outputs).SerializeToString())


def samples(shape: Sequence[int], number: int = 8, seed: int = 1) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(number)]


def run(file: bytes, inputs: dict[str, Array], *, optimize: bool = True) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(None, inputs)
    return results


def sqnr(wanted: Array, got: Array) -> float:
    """Return the ratio of a signal to the noise of its approximation, in dB."""
    noise = float(np.square(wanted.astype(np.float64) - got).sum())
    return 10 * float(np.log10(np.square(wanted.astype(np.float64)).sum() / max(noise, 1e-30)))


def proven(file: bytes, given: list[dict[str, Array]], *, least: float = 20.0) -> tuple[QuantizedOnnx, dict[str, int]]:
    """Quantize a file; check that no integer differs, and that its outputs are near those of float.

    Returns:
        What was quantized, and the operators that onnxruntime executes.
    """
    result = quantize_onnx(read_onnx(file), given)
    written = write_onnx(result.graph)
    for sample in given[:2]:
        comparison = compare_integers(result.graph, written, sample)
        assert comparison.mismatches == 0
        assert all(share < 1e-5 for share in comparison.outputs.values())
        assert {tensor.name for tensor in comparison.tensors} or not result.graph.tensors
        for wanted, got in zip(run(file, sample), run(written, sample), strict=True):
            assert wanted.shape == got.shape
            assert wanted.dtype == got.dtype
            assert sqnr(wanted, got) > least
    return result, optimized_operators(written)
