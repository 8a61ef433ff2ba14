"""Read the constants in the body of a recurrent layer's Scan. Needs the `onnx` package, not PyTorch."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.onnx_graph.outputs import IN_BODY
from cpt_deploy.validation.onnx.constant_graph import ConstantGraph, UnexpectedStructureError, attributes

Array = npt.NDArray[Any]


def step_constants(
    onnx: ConstantGraph, operation: Mapping[str, Any], hidden: Mapping[str, Any], arrays: Mapping[str, Array]
) -> Iterator[tuple[str, Array, Array]]:
    """Yield the kind of each constant, its values by the integer graph, and those of the file.

    Args:
        onnx: The file.
        operation: The Recurrent operation of the integer graph.
        hidden: Its quantized hidden state.
        arrays: The arrays of the integer graph.

    Raises:
        UnexpectedStructureError: If the body has another structure.
    """
    node, body = onnx.scan(operation["output"])
    reverse = [int(operation["reverse"])]
    for key in ("scan_input_directions", "scan_output_directions"):
        yield "direction", np.array(reverse), np.array(list(attributes(node).get(key, [0]))[:1])
    codes = hidden["name"] + IN_BODY
    product, bias = body.node(f"{hidden['name']}_product{IN_BODY}"), arrays[operation["bias"]["tensor"]]
    added = np.zeros(bias.shape, np.float32)
    if product.op_type == "Add":
        product, added = body.node(product.input[0]), body.constant(product.input[1])
    sums = body.node(body.node(product.input[0]).input[0])
    if (product.op_type, sums.op_type, sums.input[0]) != ("Mul", "MatMulInteger", codes):
        raise UnexpectedStructureError(f"expected an integer product of {codes!r}, but got {sums.op_type}")
    expected = arrays[operation["codes"]["tensor"]] << np.int8(operation["shift"])
    factors = np.float32(hidden["scale"]) * arrays[operation["scales"]["tensor"]]
    yield "weight codes", expected, body.constant(sums.input[1]).T
    yield "weight scales", factors, body.constant(product.input[1])
    yield "bias", bias.astype(np.float32) * factors, added
    quantizer, bounds = body.quantizer(codes)
    least = -(2 ** (hidden["bits"] - 1)) if hidden.get("signed", False) else 0
    full = (-128, 127) if hidden.get("signed", False) else (0, 255)
    yield "range of codes", np.array((least, least + 2 ** hidden["bits"] - 1)), np.array(bounds or full)
    yield "scale", np.array(np.float32(hidden["scale"])), body.constant(quantizer.input[1]).reshape(())
    for reader in (quantizer, sums):
        yield "zero point", np.array(hidden["zero_point"]), body.constant(reader.input[2]).reshape(())
