"""Find operators of a quantized file that meet a condition, such as layers that stay in float and why."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto

from cpt_deploy.onnx_graph.reading.network import attributes_of
from cpt_deploy.validation.onnx_files.around import LAYERS, Around, Quantizer

_WIDE = (TensorProto.UINT16, TensorProto.INT16)
_NARROW = (TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.INT2)
PAIRWISE = ("Add", "Mul", "Concat")
"""Operators of several tensors that have integer kernels."""


def _names(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    return (node.name for node in nodes)


def _float_layers(around: Around) -> Iterable[onnx.NodeProto]:
    return (node for node in around.of_type(*LAYERS) if around.stays_float(node))


def quantized_inputs(around: Around, node: onnx.NodeProto) -> list[Quantizer]:
    """Return the dequantizers of an operator's inputs."""
    return [each for name in node.input if name and (each := around.dequantizer(name)) is not None]


def activations(around: Around, node: onnx.NodeProto) -> list[Quantizer]:
    """Return the quantizers of an operator's activations, in front of it and behind it."""
    found = [each for each in quantized_inputs(around, node) if not each.constant]
    behind = around.between(node)[1]
    return found if behind is None else [*found, behind]


def _weight(around: Around, node: onnx.NodeProto) -> Quantizer | None:
    found = around.dequantizer(node.input[1]) if len(node.input) > 1 else None
    return found if found is not None and found.constant else None


def _per_channel(quantizer: Quantizer) -> bool:
    scale = quantizer.scale
    return scale is not None and scale.size > 1


def unquantized(around: Around) -> Iterable[str]:
    """Yield layers in float without any quantizer."""
    for node in _float_layers(around):
        if not quantized_inputs(around, node) and around.between(node)[1] is None:
            yield node.name


def vector_scales(around: Around) -> Iterable[str]:
    """Yield quantizers of activations with a scale of the shape [1]."""
    for each in around.quantizers():
        if each.scale is not None and each.scale.ndim == 1 and each.scale.size == 1:
            yield each.node.name


def int8_activations(around: Around) -> Iterable[str]:
    """Yield quantizers of int8 activations."""
    return (each.node.name for each in around.quantizers() if each.kind == TensorProto.INT8)


def no_zero_points(around: Around) -> Iterable[str]:
    """Yield dequantizers of layers without a zero point."""
    for node in around.of_type("DequantizeLinear"):
        if not Quantizer(node, around.network).has_zero:
            for reader in around.readers(node.output[0]):
                if reader.op_type in LAYERS and node.output[0] in reader.input[:2]:
                    yield node.name


def clips(around: Around) -> Iterable[str]:
    """Yield float Clips between an operator in float and its quantizer."""
    for node in (*around.of_type(*LAYERS), *around.of_type(*PAIRWISE)):
        passed, quantizer = around.between(node)
        if quantizer is not None and around.stays_float(node):
            yield from (each.name for each in passed if each.op_type == "Clip" and around.stays_float(each))


def relus(around: Around) -> Iterable[str]:
    """Yield Relus before a quantizer whose zero point is not its lowest value."""
    for node in around.of_type("Relu"):
        quantizer = around.quantizer(node.output[0])
        zero = None if quantizer is None else quantizer.zero
        if zero is not None and zero.dtype.kind in "iu" and int(zero.max()) != np.iinfo(str(zero.dtype)).min:
            yield node.name


def other_axes(around: Around, *, in_float: bool) -> Iterable[str]:
    """Yield dequantizers with scales along another axis than the output channels, of layers in float or of others."""
    for node in around.of_type(*LAYERS):
        weight = _weight(around, node)
        if weight is None or not _per_channel(weight) or weight.codes is None:
            continue
        transposed = attributes_of(node).get("transB", 0)
        output = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if transposed else 1}.get(
            node.op_type, weight.codes.ndim - 1
        )
        if weight.axis % weight.codes.ndim != output and around.stays_float(node) == in_float:
            yield weight.node.name


def _bias(around: Around, node: onnx.NodeProto) -> str:
    return node.input[2] if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2 else ""


def float_biases(around: Around) -> Iterable[str]:
    """Yield layers of quantized weights with float biases."""
    for node in around.of_type("Conv", "Gemm"):
        if _bias(around, node) in around.network.constants and _weight(around, node) is not None:
            yield node.name


def narrow_biases(around: Around) -> Iterable[str]:
    """Yield dequantizers of biases of other types than int32."""
    for node in around.of_type("Conv", "Gemm"):
        bias = around.dequantizer(_bias(around, node))
        if bias is not None and bias.kind != TensorProto.INT32:
            yield bias.node.name


def bias_scales(around: Around) -> Iterable[str]:
    """Yield dequantizers of biases whose scale is not that of the sums."""
    for node in around.of_type("Conv", "Gemm"):
        bias, weight, read = (
            around.dequantizer(_bias(around, node)),
            _weight(around, node),
            around.dequantizer(node.input[0]),
        )
        scales = [None if each is None else each.scale for each in (bias, weight, read)]
        if bias is None or bias.kind != TensorProto.INT32 or any(scale is None for scale in scales):
            continue
        given, of_weight, of_input = (np.ravel(scale) for scale in scales if scale is not None)
        if given.size in (1, of_weight.size) and not np.allclose(given, of_weight * of_input, rtol=1e-3, atol=0):
            yield bias.node.name


def float_weights(around: Around) -> Iterable[str]:
    """Yield layers of quantized inputs with float weights."""
    for node in around.of_type(*LAYERS):
        if len(node.input) > 1 and node.input[1] in around.network.constants and around.dequantizer(node.input[0]):
            yield node.name


def wide(around: Around) -> Iterable[str]:
    """Yield quantizers of 16 bits."""
    return (each.node.name for each in around.quantizers() if each.kind in _WIDE)


def narrow(around: Around) -> Iterable[str]:
    """Yield dequantizers of fewer than 8 bits."""
    for node in around.of_type("DequantizeLinear"):
        if Quantizer(node, around.network).kind in _NARROW:
            yield node.name


def half_quantized(around: Around) -> Iterable[str]:
    """Yield operators in float with some of their tensors quantized."""
    for node in around.of_type(*PAIRWISE, *LAYERS):
        reads = [name for name in (node.input[:2] if node.op_type in LAYERS else node.input) if name]
        computed = [name for name in reads if name not in around.network.constants]
        quantized = [name for name in computed if around.dequantizer(name) is not None]
        partly = 0 < len(quantized) < len(computed)
        open_end = (
            len(quantized) == len(computed) > 0
            and around.between(node)[1] is None
            and node.op_type not in {"MatMul", "Gemm"}
        )
        if around.stays_float(node) and (partly or open_end):
            yield node.name


def moved(around: Around) -> Iterable[str]:
    """Yield movements of dequantized values in front of a layer that stays in float."""
    for node in _float_layers(around):
        producer = around.producer(node.input[0])
        if producer is not None and producer.op_type != "DequantizeLinear" and around.dequantizer(node.input[0]):
            yield producer.name


def no_integer_form(around: Around) -> Iterable[str]:
    """Yield operators on quantized values without an integer kernel."""
    for node in around.of_type(
        "ConvTranspose", "ReduceMean", "LSTM", "GRU", "RNN", "Resize", "LayerNormalization", "Gelu"
    ):
        if node.input and around.dequantizer(node.input[0]) is not None and around.stays_float(node):
            yield node.name


def dynamic(around: Around) -> Iterable[str]:
    """Yield operators that compute ranges in each call."""
    return _names(around.of_type("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"))


def own_domain(around: Around) -> Iterable[str]:
    """Yield quantizers of onnxruntime's domain."""
    return (
        node.name for node in around.of_type("QuantizeLinear", "DequantizeLinear") if node.domain == "com.microsoft"
    )


def weight_zero_points(around: Around) -> Iterable[str]:
    """Yield dequantizers of int8 weights with a zero point other than 0."""
    for node in around.of_type(*LAYERS):
        weight = _weight(around, node)
        if weight is not None and weight.kind == TensorProto.INT8 and weight.zero is not None and np.any(weight.zero):
            yield weight.node.name
