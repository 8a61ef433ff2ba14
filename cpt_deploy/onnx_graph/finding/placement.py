"""What of an ONNX network runs on integers, as a share of its multiply-accumulates, and why the rest does not.

Multiply-accumulates inside of the bodies of Loop, Scan and If are not known, and not counted.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from cpt_deploy.onnx_graph.finding.choosing import Choice
from cpt_deploy.onnx_graph.onnx_parts import inner_nodes
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, attributes_of, is_standard
from cpt_deploy.onnx_graph.reading.running import Measured

#: Reason of layers that `spare` keeps in float.
SPARED = "most of the error would come from them"
_RECURRENT = ("LSTM", "GRU", "RNN")
#: Operators with weights.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", *_RECURRENT})
#: Operators that only move values or compute shapes.
_MOVING = frozenset(
    {
        "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Pad",
        "Range", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True)
class FloatLayer:
    """An operator with multiply-accumulates that stays in float.

    Attributes:
        name: Its name in the file, or that of its result.
        operator: Its kind.
        macs: Its multiply-accumulates on the first sample.
        reason: Why it stays in float.
    """

    name: str
    operator: str
    macs: int
    reason: str


@dataclass(frozen=True)
class Placement:
    """What of a network runs on integers.

    Attributes:
        integer_macs: Multiply-accumulates of the integer layers on the first sample.
        float_layers: Operators with multiply-accumulates that stay in float.
        float_operators: Other operators in float by kind, without those that only move values.
        uncounted: Kinds of operators with layers inside of them, whose multiply-accumulates are not known.
    """

    integer_macs: int
    float_layers: tuple[FloatLayer, ...]
    float_operators: Mapping[str, int]
    uncounted: tuple[str, ...] = ()

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates that run on integers, 0 to 1; 1 if there are none."""
        total = self.integer_macs + sum(layer.macs for layer in self.float_layers)
        return self.integer_macs / total if total else 1.0


def placement_of(network: OnnxNetwork, measured: Mapping[str, Measured], choice: Choice) -> Placement:
    """Return what of a network runs on integers."""
    inside = {i for operation in choice.operations for i in operation.nodes}
    integer = sum(
        macs_of(network, measured, network.nodes[operation.nodes[0]])
        for operation in choice.operations
        if operation.has_weights
    )
    layers, others = [], Counter[str]()
    for i, node in enumerate(network.nodes):
        if i in inside:
            continue
        macs = macs_of(network, measured, node)
        if macs:
            reason = SPARED if i in choice.spared else _reason(network, measured, node)
            layers.append(FloatLayer(node.name or node.output[0], node.op_type, macs, reason))
        elif node.op_type not in _MOVING:
            others[node.op_type] += 1
    bodies = [node.op_type for node in network.nodes if any(inner.op_type in LAYERS for inner in inner_nodes(node))]
    return Placement(integer, tuple(layers), dict(others.most_common()), tuple(dict.fromkeys(bodies)))


def macs_of(  # noqa: PLR0911
    network: OnnxNetwork, measured: Mapping[str, Measured], node: onnx.NodeProto
) -> int:
    """Return the multiply-accumulates of an operator of known shapes; 0 if it has none, or they are not known."""
    shapes = [_shape(network, measured, name) for name in (*node.input[:3], node.output[0])]
    made = shapes[-1]
    if len(shapes) < 3 or made is None or shapes[0] is None or shapes[1] is None:
        return 0
    first, second = shapes[0], shapes[1]
    if node.op_type in ("Conv", "FusedConv"):
        return math.prod(made) * math.prod(second[1:])
    if is_standard(node, "ConvTranspose"):
        return math.prod(first) * math.prod(second[1:])
    if node.op_type in ("Gemm", "FusedGemm"):
        return math.prod(made) * first[0 if attributes_of(node).get("transA", 0) else 1]
    if node.op_type in ("MatMul", "FusedMatMul", "MatMulInteger", "MatMulNBits"):
        turned = node.op_type == "FusedMatMul" and attributes_of(node).get("transA", 0)
        return math.prod(made) * (first[-2 if turned else -1] if first else 1)
    if node.op_type == "Attention" and node.domain:  # onnxruntime's, with the weights of queries, keys and values
        return math.prod(first[:-1]) * math.prod(second)
    if is_standard(node, *_RECURRENT) and (recurrent := shapes[2]) is not None:
        steps = math.prod(first[:2])
        return steps * (math.prod(second) + math.prod(recurrent))
    return 0


def _shape(network: OnnxNetwork, measured: Mapping[str, Measured], name: str) -> tuple[int, ...] | None:
    if name in network.constants:
        return tuple(network.constants[name].dims)
    seen = measured.get(name)
    return None if seen is None else seen.shape


def _is_dequantized(network: OnnxNetwork, name: str) -> bool:
    """Return whether a tensor is dequantized, perhaps before it is moved."""
    while (producer := network.producers.get(name)) is not None:
        node = network.nodes[producer]
        if node.op_type not in _MOVING:
            return bool(node.op_type == "DequantizeLinear")
        name = node.input[0]
    return False


def _reason(  # noqa: PLR0911
    network: OnnxNetwork, measured: Mapping[str, Measured], node: onnx.NodeProto
) -> str:
    if node.op_type in _RECURRENT:
        return "recurrent layers of ONNX files have no integer form"
    if any(_is_dequantized(network, name) for name in node.input[:2]):
        return "it is quantized already"
    source = measured.get(node.input[0])
    constants = [network.array(name) for name in node.input[:2]]
    if source is not None and not source.is_float and constants[0] is None:
        return "it does not compute in float32"
    if constants[1] is None:
        return "its weights are computed" if constants[0] is None else "its weights are its first factor"
    if constants[1].dtype != "float32":
        return f"its weights are {constants[1].dtype}"
    if node.op_type in ("Conv", "ConvTranspose"):
        if constants[1].ndim not in (3, 4):
            return f"convolutions of {constants[1].ndim - 2} dimensions have no integer form"
        return "its padding or its bias has no integer form"
    return "its form of product has no integer form"
