"""Write the steps of a recurrent layer as ONNX: a Scan whose body has the integer product of the hidden state.

onnxruntime has no LSTM with static quantization (its DynamicQuantizeLSTM computes ranges in each call), so the cell is
written as single operators, those of `quantization.modules.recurrent`. In the body onnxruntime would fuse a MatMul
between quantizers to a Gemm in float, so the product is a MatMulInteger. Tensors of a body have the suffix `IN_BODY`,
since the names in it must not be those of the graph around it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.integer.operations import Recurrent
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.outputs import IN_BODY
from cpt_deploy.onnx_graph.packing import packed_tensor


def scan(
    operation: Recurrent, hidden: QuantizedTensor, inputs: Sequence[str], outputs: Sequence[str], opset: int
) -> onnx.NodeProto:
    """Return the node that runs all steps.

    Args:
        operation: The steps.
        hidden: The quantized hidden state.
        inputs: Names of the products of the inputs, and of the state.
        outputs: Names of the hidden states of all steps, and of the state after them.
        opset: ONNX opset of the file.
    """
    projected, *state = inputs
    made, *after = outputs
    direction = int(operation.reverse)
    return helper.make_node(
        "Scan",
        [*state, projected],
        [*after, made],
        name=operation.output,
        body=_Body(operation, hidden, opset).graph(),
        num_scan_inputs=1,
        scan_input_directions=[direction],
        scan_output_directions=[direction],
    )


class _Body:
    """Builds the graph of one step: from the state and the product of the input to the state and the hidden state."""

    def __init__(self, operation: Recurrent, hidden: QuantizedTensor, opset: int) -> None:
        self.operation, self.hidden, self.opset = operation, hidden, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def graph(self) -> onnx.GraphProto:
        """Return the graph."""
        size = self.operation.codes.shape[1]
        gates = len(self.operation.codes)
        before = [self._name(part) for part in ("h", "c")[: 2 if self.operation.cell == "lstm" else 1]]
        inward = self._name("inward")
        onward = self._product(before[0])
        after = self._lstm(inward, onward, before[1]) if len(before) > 1 else self._gru(inward, onward, before[0])
        result = self._add("Identity", [after[0]], self._name("result"))
        given = [_declared(name, size) for name in before] + [_declared(inward, gates)]
        made = [_declared(name, size) for name in (*after, result)]
        return helper.make_graph(self.nodes, self._name("step"), given, made, list(self.constants.values()))

    def _lstm(self, inward: str, onward: str, c: str) -> list[str]:
        parts = self._split(self._add("Add", [inward, onward], self._name("gates")), "ifgo")
        i, f, o = (self._add("Sigmoid", [parts[place]]) for place in (0, 1, 3))
        g = self._add("Tanh", [parts[2]])
        kept, new = self._add("Mul", [f, c], self._name("kept")), self._add("Mul", [i, g], self._name("new"))
        after = self._add("Add", [kept, new], self._name("c_after"))
        return [self._add("Mul", [o, self._add("Tanh", [after])], self._name("h_after")), after]

    def _gru(self, inward: str, onward: str, h: str) -> list[str]:
        given, own = self._split(inward, ("r_in", "z_in", "n_in")), self._split(onward, ("r_on", "z_on", "n_on"))
        r, z = (
            self._add("Sigmoid", [self._add("Add", [a, b], f"{a}.sum")])
            for a, b in zip(given[:2], own[:2], strict=True)
        )
        reset = self._add("Mul", [r, own[2]], self._name("reset"))
        n = self._add("Tanh", [self._add("Add", [given[2], reset], self._name("candidate"))])
        one = self._constant("one", np.array(1.0, np.float32))
        fresh = self._add("Mul", [self._add("Sub", [one, z], self._name("fresh")), n], self._name("new"))
        kept = self._add("Mul", [z, h], self._name("kept"))
        return [self._add("Add", [fresh, kept], self._name("h_after"))]

    def _product(self, h: str) -> str:
        """Add the product of the hidden state with its bias, and return its name."""
        operation, hidden, name = self.operation, self.hidden, self.hidden.name
        scale = self._constant("scale", np.array(hidden.scale, np.float32))
        zero = self._constant("zero_point", np.array(hidden.zero_point, hidden.dtype))
        codes = f"{name}{IN_BODY}"
        if hidden.bits < 8:
            unclipped = self._add("QuantizeLinear", [h, scale, zero], self._name("unclipped"))
            bounds = (("quant_min", hidden.quant_min), ("quant_max", hidden.quant_max))
            limits = [self._constant(key, np.array(code, hidden.dtype)) for key, code in bounds]
            self._add("Clip", [unclipped, *limits], codes)
        else:
            self._add("QuantizeLinear", [h, scale, zero], codes)
        sums = self._add("MatMulInteger", [codes, self._weight(), zero], self._name("sums"))
        multiplier = np.float32(hidden.scale) * operation.scales
        factors = self._constant("factors", multiplier)
        real, product = self._add("Cast", [sums], self._name("unscaled"), to=TensorProto.FLOAT), operation.product
        if not operation.bias.any():
            return self._add("Mul", [real, factors], f"{product}{IN_BODY}")
        scaled = self._add("Mul", [real, factors], self._name("scaled"))
        bias = self._constant("bias", operation.bias.astype(np.float32) * multiplier)
        return self._add("Add", [scaled, bias], f"{product}{IN_BODY}")

    def _weight(self) -> str:
        """Return the name of the int8 weights (H, G·H); packed ones are unpacked and shifted at load."""
        operation, name = self.operation, self._name("weight")
        codes = np.ascontiguousarray(operation.codes.T)
        packed = packed_tensor(f"{name}.packed", codes, operation.bits, self.opset)
        if packed is None:
            return self._constant("weight", codes << np.int8(operation.shift))
        self.constants[packed.name] = packed
        unpacked = self._add("Cast", [packed.name], f"{name}.int8", to=TensorProto.INT8)
        if not operation.shift:
            return unpacked
        factor = self._constant("power", np.array(2**operation.shift, np.int8))
        return self._add("Mul", [unpacked, factor], name)

    # --- pieces -----------------------------------------------------------------------------------------------------

    def _name(self, part: str) -> str:
        return f"{self.operation.output}.{part}{IN_BODY}"

    def _constant(self, part: str, value: Any) -> str:
        name = self._name(part)
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def _split(self, source: str, parts: Sequence[str]) -> list[str]:
        names = [self._name(part) for part in parts]
        self.nodes.append(helper.make_node("Split", [source], names, axis=-1, num_outputs=len(names)))
        return names

    def _add(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"{inputs[0]}.{kind.lower()}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


def _declared(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
