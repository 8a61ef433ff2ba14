"""Pack weights of few bits in the file, two or four per byte; they are cast to int8 when a session is created.

onnxruntime folds constant expressions when it loads a file, so a layer whose packed weights are cast to int8 by
separate operators fuses as if they were stored as int8. A layer whose DequantizeLinear reads packed weights directly
stays in float.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Pad
from cpt_deploy.quantization.folding import Codes

#: Opset of a file in which nothing is packed.
DEFAULT_OPSET = 17
#: The first opset with the mode "wrap" of Pad (circular padding).
WRAP_OPSET = 19
#: The first opsets with the types INT4 (two values per byte) and INT2 (four per byte).
INT4_OPSET, INT2_OPSET = 21, 25

#: Maximum bits, first opset, and type; the smallest type first. Weights are symmetric: 2 bits are −1, 0 and 1.
_PACKED = ((2, INT2_OPSET, TensorProto.INT2), (4, INT4_OPSET, TensorProto.INT4))


def smallest_opset(graph: IntegerGraph) -> int:
    """Return the lowest opset that has the smallest ONNX type for each layer's weights.

    That is 17 while all weights have 5 bits or more (19 with circular padding), 21 (INT4) with weights of 3 or 4, 25
    (INT2) with weights of 2.
    """
    circular = any(isinstance(operation, Pad) and operation.mode == "circular" for operation in graph.operations)
    return packing_opset((operation.bits for operation in graph.weighted()), WRAP_OPSET if circular else DEFAULT_OPSET)


def packing_opset(bits: Iterable[int], default: int) -> int:
    """Return the lowest opset that has the smallest types for weights of the given bits; `default` if all are int8.

    Args:
        bits: Bits of each layer's weights.
        default: Opset of a file in which nothing is packed.
    """
    fewest = min(bits, default=8)
    return max(default, next((opset for most_bits, opset, _ in _PACKED if fewest <= most_bits), default))


def packed_type(bits: int, opset: int) -> np.dtype | None:
    """Return the NumPy dtype of the smallest type that an opset has for weights, or None if that is int8.

    Args:
        bits: Bits of the weights: they lie within ±(2^(bits − 1) − 1).
        opset: ONNX opset of the file.
    """
    kind = next((kind for most_bits, least, kind in _PACKED if bits <= most_bits and opset >= least), None)
    return None if kind is None else helper.tensor_dtype_to_np_dtype(kind)


def packed_tensor(name: str, codes: Codes, bits: int, opset: int) -> onnx.TensorProto | None:
    """Return weights as an initializer of their `packed_type`, or None if they have none.

    Args:
        name: Name of the initializer.
        codes: Quantized weights of any shape, not shifted.
        bits: Their bits.
        opset: ONNX opset of the file.
    """
    kind = packed_type(bits, opset)
    return None if kind is None else numpy_helper.from_array(codes.astype(kind), name)
