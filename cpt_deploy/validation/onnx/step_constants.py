"""Read the constants in the body of a recurrent layer's Scan. Needs the `onnx` package, not PyTorch."""

from collections.abc import Iterator

import numpy as np

from cpt_deploy.integer.operations import Recurrent
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.outputs import IN_BODY
from cpt_deploy.validation.onnx.constant_graph import Array, ConstantGraph, UnexpectedStructureError, attributes

FULL_RANGES = {False: (0, 255), True: (-128, 127)}
"""Ranges of unsigned and of signed quantized values that no Clip limits."""


def step_constants(
    onnx: ConstantGraph, operation: Recurrent, hidden: QuantizedTensor
) -> Iterator[tuple[str, Array, Array]]:
    """Yield the kind of each constant, its values by the integer graph, and those of the file.

    Args:
        onnx: The file.
        operation: The Recurrent operation of the integer graph.
        hidden: Its quantized hidden state.

    Raises:
        UnexpectedStructureError: If the body has another structure.
    """
    node, body = onnx.scan(operation.output)
    reverse = [int(operation.reverse)]
    for key in ("scan_input_directions", "scan_output_directions"):
        yield "direction", np.array(reverse), np.array(list(attributes(node).get(key, [0]))[:1])
    codes = operation.hidden + IN_BODY
    product, bias = body.node(operation.product + IN_BODY), operation.bias
    added = np.zeros(bias.shape, np.float32)
    if product.op_type == "Add":
        product, added = body.node(product.input[0]), body.constant(product.input[1])
    sums = body.node(body.node(product.input[0]).input[0])
    if (product.op_type, sums.op_type, sums.input[0]) != ("Mul", "MatMulInteger", codes):
        raise UnexpectedStructureError(f"expected an integer product of {codes!r}, but got {sums.op_type}")
    factors = np.float32(hidden.scale) * operation.scales
    yield "quantized weights", operation.executed_codes, body.constant(sums.input[1]).T
    yield "weight scales", factors, body.constant(product.input[1])
    yield "bias", bias.astype(np.float32) * factors, added
    quantizer, bounds = body.quantizer(codes)
    found = np.array(bounds or FULL_RANGES[hidden.signed])
    yield "range of integers", np.array((hidden.quant_min, hidden.quant_max)), found
    yield "scale", np.array(np.float32(hidden.scale)), body.constant(quantizer.input[1]).reshape(())
    for reader in (quantizer, sums):
        yield "zero point", np.array(hidden.zero_point), body.constant(reader.input[2]).reshape(())
