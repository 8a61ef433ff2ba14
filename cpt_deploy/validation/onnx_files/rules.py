"""Rules for quantized files: what keeps an operator in float or changes its results, and what to change."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from cpt_deploy.validation.onnx_files import conditions
from cpt_deploy.validation.onnx_files.around import LAYERS, Around

IGNORED_AXIS = "ignored-axis"
"""Name of the rule for files whose results in onnxruntime are not what they state."""


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


def _unfused(around: Around) -> Iterable[str]:
    """Yield operators between complete Q/DQ pairs that stay in float although no other rule says why."""
    told = {name for rule in RULES if rule.name not in {"unfused", "float-bias"} for name in rule.find(around)}
    for node in around.of_type(*LAYERS, *conditions.PAIRWISE):
        near = {
            node.name,
            *(
                each.node.name
                for each in (*conditions.activations(around, node), *conditions.quantized_inputs(around, node))
            ),
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
        conditions.unquantized,
    ),
    Rule(
        "scale-shape",
        "scales of activations have the shape [1]: onnxruntime fuses sums, products and clamps only with scalars",
        "write scales and zero points of activations with the shape []",
        conditions.vector_scales,
    ),
    Rule(
        "int8-activations",
        "activations are int8: on x86, onnxruntime's fast kernels take uint8, so that much of the graph stays in float",
        "quantize activations to uint8 (onnxruntime: activation_type=QuantType.QUInt8); int8 is for TensorRT and ARM",
        conditions.int8_activations,
    ),
    Rule(
        "zero-point",
        "dequantizers of layers without a zero point: Gemm and MatMul stay in float",
        "give each DequantizeLinear a zero point, zeros in the type of its integers",
        conditions.no_zero_points,
    ),
    Rule(
        "clip",
        "a float Clip between an operator and its quantizer keeps both in float",
        "drop it if the quantizer has the same range; otherwise clip the integers behind QuantizeLinear",
        conditions.clips,
    ),
    Rule(
        "relu",
        "a Relu in front of a quantizer whose zero point is not its lowest value does not fuse",
        "calibrate the range behind the Relu, so that it begins at 0",
        conditions.relus,
    ),
    Rule(
        "weight-axis",
        "scales per channel along another axis than the output channels: the layer stays in float",
        "quantize along axis 0 of Conv, and of Gemm with transB, 1 of ConvTranspose, the last of MatMul",
        partial(conditions.other_axes, in_float=True),
    ),
    Rule(
        IGNORED_AXIS,
        "scales per channel along another axis than the output channels: onnxruntime ignores the axis where sizes "
        "permit, and its results are wrong",
        "quantize along axis 0 of Conv, and of Gemm with transB, 1 of ConvTranspose, the last of MatMul",
        partial(conditions.other_axes, in_float=False),
    ),
    Rule(
        "float-bias",
        "biases are float: onnxruntime rounds them to int32 at load, other runtimes may not",
        "quantize biases to int32 with the scale s_x·s_w",
        conditions.float_biases,
    ),
    Rule(
        "bias-type",
        "biases are quantized to another type than int32",
        "quantize biases to int32 with the scale s_x·s_w",
        conditions.narrow_biases,
    ),
    Rule(
        "bias-scale",
        "the scale of a bias is not s_x·s_w: the layer stays in float",
        "quantize biases with the product of the scales of input and weight",
        conditions.bias_scales,
    ),
    Rule(
        "float-weight",
        "weights are float between quantized activations: onnxruntime quantizes them at load, per tensor and silently",
        "write the quantized weights into the file, int8 per channel",
        conditions.float_weights,
    ),
    Rule(
        "weight-zero-point",
        "int8 weights have a zero point other than 0",
        "quantize weights symmetrically",
        conditions.weight_zero_points,
    ),
    Rule(
        "sixteen-bit",
        "activations have 16 bits, which never fuse: their operators run in float between conversions",
        "use 8 bits, or leave these operators in float",
        conditions.wide,
    ),
    Rule(
        "packed-weights",
        "weights of fewer than 8 bits are dequantized directly, which does not fuse",
        "Cast them to int8 before DequantizeLinear; the cast is folded at load",
        conditions.narrow,
    ),
    Rule(
        "half-quantized",
        "operators with some of their inputs, or their result, not quantized: they stay in float",
        "put Q/DQ on every input and on the result",
        conditions.half_quantized,
    ),
    Rule(
        "float-movement",
        "values are moved between a dequantizer and a layer, such as by Reshape: the layer stays in float",
        "put Q/DQ with the same scale behind the movement too",
        conditions.moved,
    ),
    Rule(
        "no-integer-form",
        "operators without an integer kernel in onnxruntime",
        "write a ReduceMean over positions as GlobalAveragePool; leave others in float without Q/DQ around them",
        conditions.no_integer_form,
    ),
    Rule(
        "dynamic",
        "ranges are computed in each call: results of a row depend on its batch, and convolutions are slow",
        "quantize statically, with calibration data",
        conditions.dynamic,
    ),
    Rule(
        "domain",
        "quantizers of the domain com.microsoft, which other runtimes do not know",
        "use those of ONNX; from opset 21 they have 16 and 4 bits",
        conditions.own_domain,
    ),
    Rule(
        "unfused",
        "operators between complete Q/DQ pairs that onnxruntime does not fuse",
        "check shapes and types of scales and zero points, and that each pair is read by one operator",
        _unfused,
    ),
)
"""The rules, in the order in which findings are listed."""
