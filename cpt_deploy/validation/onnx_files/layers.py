"""The layers that multiply in the graph that onnxruntime executes: their work, and what their integers can exceed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cpt_deploy.integer.accumulators import layer_saturation
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, attributes_of
from cpt_deploy.precision.accumulators import INT32_MOST, worst_sums
from cpt_deploy.validation.onnx_files.around import plain_name
from cpt_deploy.validation.onnx_files.work import RECURRENT, macs_of

_FLOAT_LAYERS = frozenset(
    {
        "Attention", "Conv", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "Gemm",
        "GroupQueryAttention", "LSTM", "MatMul", "MatMulNBits", "MultiHeadAttention", "NhwcFusedConv", "RNN",
        "TransposeMatMul",
    }
)  # fmt: skip
_WEIGHT = {
    "ConvInteger": 1, "DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 1, "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1, "QAttention": 1, "QGemm": 3, "QLinearConv": 3, "QLinearMatMul": 3,
}  # fmt: skip
"""The input of each integer layer that holds its weights, or the second factor."""
_ZERO_POINT = {
    "ConvInteger": 2, "DynamicQuantizeMatMul": None, "MatMulInteger": 2, "MatMulIntegerToFloat": 4, "QGemm": 2,
    "QLinearConv": 2, "QLinearMatMul": 2,
}  # fmt: skip
"""The input with the zero point of the multiplied tensor; `None` if it is computed."""
_WEIGHT_ZERO_POINT = {
    "ConvInteger": 3, "DynamicQuantizeMatMul": 3, "MatMulInteger": 3, "MatMulIntegerToFloat": 5, "QGemm": 5,
    "QLinearConv": 5, "QLinearMatMul": 5,
}  # fmt: skip
_BIAS = {"QGemm": 6, "QLinearConv": 8}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layer:
    """A layer that multiplies.

    Args:
        name: Name of its operator in onnxruntime's graph.
        operator: Its type.
        integers: Whether it multiplies integers.
        macs: Multiply-accumulates of a call; `None` if unknown.
        worst_pair: The largest sum of two products of uint8 and int8, whose limit is 32,767 on x86 processors without
            VNNI; `None` if it does not multiply these types by constant weights.
        saturates: Whether such a sum exceeds int16; `None` if unknown, since the second factor is computed.
        worst_sum: The largest partial sum of its integers; `None` if its weights are not constant.
    """

    name: str
    operator: str
    integers: bool
    macs: int | None
    worst_pair: int | None = None
    saturates: bool | None = False
    worst_sum: int | None = None

    @property
    def overflows(self) -> bool:
        """Whether a partial sum can exceed int32."""
        return self.worst_sum is not None and self.worst_sum > INT32_MOST


def multiplies_integers(operator: str) -> bool:
    """Return whether operators of a type are layers on integers."""
    return operator in _WEIGHT


def layers_of(network: OnnxNetwork, shapes: Shapes, kinds: Mapping[str, np.dtype[np.generic]]) -> tuple[Layer, ...]:
    """Return the layers of the graph that onnxruntime executes, without those inside of subgraphs.

    Args:
        network: That graph, with int8 weights as the file has them.
        shapes: Shapes of its tensors in a call; empty if unknown.
        kinds: Dtypes of its tensors in a call.
    """
    found = []
    for node in network.nodes:
        if node.op_type not in _FLOAT_LAYERS and node.op_type not in _WEIGHT:
            continue
        name, macs = plain_name(node.name), _macs(network, node, shapes)
        if node.op_type in _FLOAT_LAYERS:
            found.append(Layer(name, node.op_type, integers=False, macs=macs))
        else:
            pair, at_risk, worst = _bounds(network, node, kinds)
            found.append(Layer(name, node.op_type, True, macs, pair, at_risk, worst))
    return tuple(found)


def integer_share(layers: tuple[Layer, ...]) -> float | None:
    """Return the share of multiply-accumulates on integers; `None` if there are none or a layer's are unknown."""
    total = sum(layer.macs or 0 for layer in layers)
    if not total or any(layer.macs is None for layer in layers):
        return None
    return sum(layer.macs or 0 for layer in layers if layer.integers) / total


def _macs(network: OnnxNetwork, node: onnx.NodeProto, shapes: Shapes) -> int | None:
    def shape(name: str) -> tuple[int, ...] | None:
        if name in shapes:
            return shapes[name]
        known = network.shape(name)
        return None if known is None or None in known else tuple(size for size in known if size is not None)

    place = _WEIGHT.get(node.op_type, 1)
    return macs_of(node, node.input[place] if place < len(node.input) else "", shape)


def _bounds(
    network: OnnxNetwork, node: onnx.NodeProto, kinds: Mapping[str, np.dtype[np.generic]]
) -> tuple[int | None, bool | None, int | None]:
    """Return the worst pair of products, whether it saturates, and the worst partial sum."""
    read = kinds.get(node.input[0], np.dtype(np.uint8))
    signed = read == np.int8
    if node.op_type not in _ZERO_POINT:  # they quantize what they read themselves, to uint8
        weights = [network.array(name) for name in node.input[1 : 3 if node.op_type in RECURRENT else 2]]
        pairs = [_pairs(node, weight, signed=False) for weight in weights if weight is not None]
        known = [pair for pair, _ in pairs if pair is not None]
        saturates = None if len(pairs) < len(weights) else False
        return max(known, default=None), any(risk for _, risk in pairs) or saturates, None
    codes = network.array(node.input[_WEIGHT[node.op_type]])
    if codes is None or codes.dtype.kind not in "iu" or codes.ndim < 2:
        second = codes.dtype if codes is not None else kinds.get(node.input[_WEIGHT[node.op_type]])
        return None, False if signed or second == np.uint8 else None, None
    rows = _output_channels_first(node, codes)
    pair, at_risk = _pairs(node, codes, signed=signed)
    zeros = _constant(network, node, _WEIGHT_ZERO_POINT[node.op_type])
    shift = 0 if zeros is None else zeros.astype(np.int64)
    centred = rows.reshape(len(rows), -1).astype(np.int64) - np.broadcast_to(shift, (len(rows),)).reshape(-1, 1)
    position = _ZERO_POINT[node.op_type]
    zero = None if position is None else _constant(network, node, position)
    # A computed zero point may be anything.
    relative = 255 if zero is None else int(zero.max()) + (128 if signed else 0)
    bias = _constant(network, node, _BIAS[node.op_type]) if node.op_type in _BIAS else None
    worst = worst_sums(centred, None if bias is None else bias.reshape(-1), quant_max=255, zero_point=relative)
    return pair, at_risk, int(worst.max(initial=0))


def _pairs(node: onnx.NodeProto, codes: npt.NDArray[Any], *, signed: bool) -> tuple[int | None, bool]:
    """Return the worst pair of products with constant weights, and whether it saturates."""
    if codes.dtype != np.int8:
        return None, False
    bound = layer_saturation(node.name, _output_channels_first(node, codes), 8, signed=signed)
    return bound.worst_pair_sum, bound.possible and not signed


def _output_channels_first(node: onnx.NodeProto, codes: npt.NDArray[np.generic]) -> npt.NDArray[np.int8]:
    if "Conv" in node.op_type or attributes_of(node).get("transB", 0):
        return codes  # type: ignore[return-value]
    return np.moveaxis(codes, -1, 0).reshape(codes.shape[-1], -1)  # type: ignore[return-value]


def _constant(network: OnnxNetwork, node: onnx.NodeProto, place: int) -> npt.NDArray[Any] | None:
    return network.array(node.input[place]) if place < len(node.input) and node.input[place] else None
