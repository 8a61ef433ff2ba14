"""Recompute single integer operators of onnxruntime's graph from their own inputs.

Sums are exact; everything after them is float32 in the order of the kernels, as `cpt_deploy.integer.arithmetic`
documents it. Needs PyTorch for convolutions and pools.
"""

from collections.abc import Callable

import onnx

from cpt_deploy.onnx_graph.reading.network import attributes_of
from cpt_deploy.validation.onnx_files.kernels import elementwise, pools, products, quantizers
from cpt_deploy.validation.onnx_files.kernels.calls import Call, Recomputed, Values


def recompute(node: onnx.NodeProto, values: Values) -> tuple[Recomputed, ...]:
    """Return the exact results of an operator, in the order of its outputs.

    Args:
        node: An operator of `EXACT`.
        values: Tensors by name.

    Raises:
        UnknownArithmeticError: If the operator has a form whose arithmetic is not known, such as scales per block.
    """
    return EXACT[node.op_type](Call(node, values, attributes_of(node)))


EXACT: dict[str, Callable[[Call], tuple[Recomputed, ...]]] = {
    "ConvInteger": products.conv_integer,
    "DequantizeLinear": quantizers.dequantize,
    "DynamicQuantizeLinear": quantizers.quantize_dynamic,
    "DynamicQuantizeMatMul": products.matmul_dynamic,
    "MatMulInteger": products.matmul_integer,
    "MatMulIntegerToFloat": products.matmul_to_float,
    "MaxPool": pools.max_pool,
    "NhwcMaxPool": pools.max_pool,
    "QGemm": products.gemm,
    "QLinearAdd": elementwise.add,
    "QLinearAveragePool": pools.average_pool,
    "QLinearConcat": elementwise.concat,
    "QLinearConv": products.conv,
    "QLinearGlobalAveragePool": pools.global_average,
    "QLinearLeakyRelu": elementwise.table(elementwise.leaky_relu),
    "QLinearMatMul": products.matmul,
    "QLinearMul": elementwise.multiply,
    "QLinearSigmoid": elementwise.table(elementwise.sigmoid),
    "QLinearWhere": elementwise.where,
    "QuantizeLinear": quantizers.quantize,
}
"""Integer operators whose arithmetic is known, by their type, in ONNX's domain and in onnxruntime's."""
