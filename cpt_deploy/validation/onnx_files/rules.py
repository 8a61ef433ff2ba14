"""Rules for quantized files: what keeps an operator in float or changes its results, and what to change."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto

from cpt_deploy.onnx_graph.reading.network import attributes_of
from cpt_deploy.validation.onnx_files.around import LAYERS, Around, Quantizer

IGNORED_AXIS = "ignored-axis"
"""Name of the rule for files whose results in onnxruntime are not what they state."""

_WIDE = (TensorProto.UINT16, TensorProto.INT16)
_NARROW = (TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.INT2)
_PAIRWISE = ("Add", "Mul", "Concat")


@dataclass(frozen=True)
class Rule:
    """A rule.

    Args:
        name: Its name, for programs.
        what: What it finds, and the effect.
        change: What to do about it.
        find: Yields the names of the operators.
    """

    name: str
    what: str
    change: str
    find: Callable[[Around], Iterable[str]]


def _names(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    return (node.name for node in nodes)


def _float_layers(around: Around) -> Iterable[onnx.NodeProto]:
    return (node for node in around.of_type(*LAYERS) if around.stays_float(node))


def _quantized_inputs(around: Around, node: onnx.NodeProto) -> list[Quantizer]:
    return [each for name in node.input if name and (each := around.dequantizer(name)) is not None]


def _activations(around: Around, node: onnx.NodeProto) -> list[Quantizer]:
    """Return the quantizers of an operator's activations, in front of it and behind it."""
    found = [each for each in _quantized_inputs(around, node) if not each.constant]
    behind = around.between(node)[1]
    return found if behind is None else [*found, behind]


def _weight(around: Around, node: onnx.NodeProto) -> Quantizer | None:
    found = around.dequantizer(node.input[1]) if len(node.input) > 1 else None
    return found if found is not None and found.constant else None


def _per_channel(quantizer: Quantizer) -> bool:
    scale = quantizer.scale
    return scale is not None and scale.size > 1


def _unquantized(around: Around) -> Iterable[str]:
    for node in _float_layers(around):
        if not _quantized_inputs(around, node) and around.between(node)[1] is None:
            yield node.name


def _vector_scales(around: Around) -> Iterable[str]:
    for each in around.quantizers():
        if each.scale is not None and each.scale.ndim == 1 and each.scale.size == 1:
            yield each.node.name


def _int8_activations(around: Around) -> Iterable[str]:
    return (each.node.name for each in around.quantizers() if each.kind == TensorProto.INT8)


def _no_zero_points(around: Around) -> Iterable[str]:
    for node in around.of_type("DequantizeLinear"):
        if not Quantizer(node, around.network).has_zero:
            for reader in around.readers(node.output[0]):
                if reader.op_type in LAYERS and node.output[0] in reader.input[:2]:
                    yield node.name


def _clips(around: Around) -> Iterable[str]:
    for node in (*around.of_type(*LAYERS), *around.of_type(*_PAIRWISE)):
        passed, quantizer = around.between(node)
        if quantizer is not None and around.stays_float(node):
            yield from (each.name for each in passed if each.op_type == "Clip" and around.stays_float(each))


def _relus(around: Around) -> Iterable[str]:
    for node in around.of_type("Relu"):
        quantizer = around.quantizer(node.output[0])
        zero = None if quantizer is None else quantizer.zero
        if zero is not None and zero.dtype.kind in "iu" and int(zero.max()) != np.iinfo(str(zero.dtype)).min:
            yield node.name


def _other_axes(around: Around, *, in_float: bool) -> Iterable[str]:
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


def _float_biases(around: Around) -> Iterable[str]:
    for node in around.of_type("Conv", "Gemm"):
        if _bias(around, node) in around.network.constants and _weight(around, node) is not None:
            yield node.name


def _narrow_biases(around: Around) -> Iterable[str]:
    for node in around.of_type("Conv", "Gemm"):
        bias = around.dequantizer(_bias(around, node))
        if bias is not None and bias.kind != TensorProto.INT32:
            yield bias.node.name


def _bias_scales(around: Around) -> Iterable[str]:
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


def _float_weights(around: Around) -> Iterable[str]:
    for node in around.of_type(*LAYERS):
        if len(node.input) > 1 and node.input[1] in around.network.constants and around.dequantizer(node.input[0]):
            yield node.name


def _wide(around: Around) -> Iterable[str]:
    return (each.node.name for each in around.quantizers() if each.kind in _WIDE)


def _narrow(around: Around) -> Iterable[str]:
    for node in around.of_type("DequantizeLinear"):
        if Quantizer(node, around.network).kind in _NARROW:
            yield node.name


def _half_quantized(around: Around) -> Iterable[str]:
    for node in around.of_type(*_PAIRWISE, *LAYERS):
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


def _moved(around: Around) -> Iterable[str]:
    """Yield movements of dequantized values in front of a layer that stays in float."""
    for node in _float_layers(around):
        producer = around.producer(node.input[0])
        if producer is not None and producer.op_type != "DequantizeLinear" and around.dequantizer(node.input[0]):
            yield producer.name


def _no_integer_form(around: Around) -> Iterable[str]:
    for node in around.of_type(
        "ConvTranspose", "ReduceMean", "LSTM", "GRU", "RNN", "Resize", "LayerNormalization", "Gelu"
    ):
        if node.input and around.dequantizer(node.input[0]) is not None and around.stays_float(node):
            yield node.name


def _dynamic(around: Around) -> Iterable[str]:
    return _names(around.of_type("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"))


def _own_domain(around: Around) -> Iterable[str]:
    return (
        node.name for node in around.of_type("QuantizeLinear", "DequantizeLinear") if node.domain == "com.microsoft"
    )


def _weight_zero_points(around: Around) -> Iterable[str]:
    for node in around.of_type(*LAYERS):
        weight = _weight(around, node)
        if weight is not None and weight.kind == TensorProto.INT8 and weight.zero is not None and np.any(weight.zero):
            yield weight.node.name


def _unfused(around: Around) -> Iterable[str]:
    """Yield operators between complete Q/DQ pairs that stay in float although no other rule says why."""
    told = {name for rule in RULES if rule.name not in {"unfused", "float-bias"} for name in rule.find(around)}
    for node in around.of_type(*LAYERS, *_PAIRWISE):
        near = {
            node.name,
            *(each.node.name for each in (*_activations(around, node), *_quantized_inputs(around, node))),
        }
        near |= {each.name for each in (*around.between(node)[0], *map(around.producer, node.input[:2])) if each}
        reads = [name for name in node.input[:2] if name not in around.network.constants]
        if around.stays_float(node) and all(around.dequantizer(name) for name in reads) and not near & told:
            yield node.name


RULES: tuple[Rule, ...] = (
    Rule(
        "unquantized",
        "layers without quantizers: they are computed in float",
        "quantize them, unless they were left out for accuracy",
        _unquantized,
    ),
    Rule(
        "scale-shape",
        "scales of activations have the shape [1]: onnxruntime fuses sums, products and clamps only with scalars",
        "write scales and zero points of activations with the shape []",
        _vector_scales,
    ),
    Rule(
        "int8-activations",
        "activations are int8: on x86, onnxruntime's fast kernels take uint8, so that much of the graph stays in float",
        "quantize activations to uint8 (onnxruntime: activation_type=QuantType.QUInt8); int8 is for TensorRT and ARM",
        _int8_activations,
    ),
    Rule(
        "zero-point",
        "dequantizers of layers without a zero point: Gemm and MatMul stay in float",
        "give each DequantizeLinear a zero point, zeros in the type of its integers",
        _no_zero_points,
    ),
    Rule(
        "clip",
        "a float Clip between an operator and its quantizer keeps both in float",
        "drop it if the quantizer has the same range; otherwise clip the integers behind QuantizeLinear",
        _clips,
    ),
    Rule(
        "relu",
        "a Relu in front of a quantizer whose zero point is not its lowest value does not fuse",
        "calibrate the range behind the Relu, so that it begins at 0",
        _relus,
    ),
    Rule(
        "weight-axis",
        "scales per channel along another axis than the output channels: the layer stays in float",
        "quantize along axis 0 of Conv, and of Gemm with transB, 1 of ConvTranspose, the last of MatMul",
        partial(_other_axes, in_float=True),
    ),
    Rule(
        IGNORED_AXIS,
        "scales per channel along another axis than the output channels: onnxruntime ignores the axis where sizes "
        "permit, and its results are wrong",
        "quantize along axis 0 of Conv, and of Gemm with transB, 1 of ConvTranspose, the last of MatMul",
        partial(_other_axes, in_float=False),
    ),
    Rule(
        "float-bias",
        "biases are float: onnxruntime rounds them to int32 at load, other runtimes may not",
        "quantize biases to int32 with the scale s_x·s_w",
        _float_biases,
    ),
    Rule(
        "bias-type",
        "biases are quantized to another type than int32",
        "quantize biases to int32 with the scale s_x·s_w",
        _narrow_biases,
    ),
    Rule(
        "bias-scale",
        "the scale of a bias is not s_x·s_w: the layer stays in float",
        "quantize biases with the product of the scales of input and weight",
        _bias_scales,
    ),
    Rule(
        "float-weight",
        "weights are float between quantized activations: onnxruntime quantizes them at load, per tensor and silently",
        "write the quantized weights into the file, int8 per channel",
        _float_weights,
    ),
    Rule(
        "weight-zero-point",
        "int8 weights have a zero point other than 0",
        "quantize weights symmetrically",
        _weight_zero_points,
    ),
    Rule(
        "sixteen-bit",
        "activations have 16 bits, which never fuse: their operators run in float between conversions",
        "use 8 bits, or leave these operators in float",
        _wide,
    ),
    Rule(
        "packed-weights",
        "weights of fewer than 8 bits are dequantized directly, which does not fuse",
        "Cast them to int8 before DequantizeLinear; the cast is folded at load",
        _narrow,
    ),
    Rule(
        "half-quantized",
        "operators with some of their inputs, or their result, not quantized: they stay in float",
        "put Q/DQ on every input and on the result",
        _half_quantized,
    ),
    Rule(
        "float-movement",
        "values are moved between a dequantizer and a layer, such as by Reshape: the layer stays in float",
        "put Q/DQ with the same scale behind the movement too",
        _moved,
    ),
    Rule(
        "no-integer-form",
        "operators without an integer kernel in onnxruntime",
        "write a ReduceMean over positions as GlobalAveragePool; leave others in float without Q/DQ around them",
        _no_integer_form,
    ),
    Rule(
        "dynamic",
        "ranges are computed in each call: results of a row depend on its batch, and convolutions are slow",
        "quantize statically, with calibration data",
        _dynamic,
    ),
    Rule(
        "domain",
        "quantizers of the domain com.microsoft, which other runtimes do not know",
        "use those of ONNX; from opset 21 they have 16 and 4 bits",
        _own_domain,
    ),
    Rule(
        "unfused",
        "operators between complete Q/DQ pairs that onnxruntime does not fuse",
        "check shapes and types of scales and zero points, and that each pair is read by one operator",
        _unfused,
    ),
)
"""The rules, in the order in which findings are listed."""
