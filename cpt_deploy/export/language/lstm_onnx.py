"""Write the integer LSTM as ONNX: one MatMul for the inputs of all time steps, then a Scan for the recurrence.

Inputs: `input_ids`, int64 (N, T); `h` and `c`, float32 (N, layers, H). Outputs: `logits`, float32 (N, T, V), `h_after`
and `c_after`. onnxruntime has no LSTM with static quantization (its DynamicQuantizeLSTM computes ranges in each call),
so the cell is written as single operators, those of `quantization.modules.recurrent`.
"""

import numpy as np
import onnx
from onnx import TensorProto

from cpt_deploy.export.language.graph import GraphBuilder, chosen_opset, serialized, value
from cpt_deploy.integer.language.lstm import IntegerLstm
from cpt_deploy.integer.language.parts import IntegerLinear
from cpt_deploy.signature import OUTPUT_NAME, TOKENS_NAME, FreeSize, Signature, TensorSpec

_STATES = ("h", "c")


def lstm_signature(model: IntegerLstm) -> Signature:
    """Return the signature of the exported model."""
    shape = (len(model.layers), model.hidden)
    return Signature(
        (TensorSpec(TOKENS_NAME, "int64", ("length",)), *(TensorSpec(name, "float32", shape) for name in _STATES)),
        (
            TensorSpec(OUTPUT_NAME, "float32", ("length", model.vocabulary)),
            *(TensorSpec(f"{name}_after", "float32", shape) for name in _STATES),
        ),
        tuple((name, f"{name}_after") for name in _STATES),
        {"length": FreeSize(2)},
    )


def write_lstm_onnx(model: IntegerLstm, *, opset: int | None = None, metadata: dict[str, str] | None = None) -> bytes:
    """Return the model as a serialized ONNX file.

    Args:
        model: The frozen model.
        opset: ONNX opset, see `chosen_opset`.
        metadata: Entries of the file's metadata_props.

    Raises:
        UsageError: If the opset is out of range.
    """
    builder = GraphBuilder(chosen_opset(model, opset))
    turned = builder.add("Transpose", [TOKENS_NAME], "tokens.by_time", perm=[1, 0])
    x = builder.rows(model.table, turned, "embedding.output")
    ends: dict[str, list[str]] = {name: [] for name in _STATES}
    for number, (inward, onward) in enumerate(model.layers):
        x = _layer(builder, number, inward, onward, x, ends)
    features = builder.add("Transpose", [x], "features", perm=[1, 0, 2])
    builder.add("Identity", [builder.product(model.head, features)], OUTPUT_NAME)
    axis = builder.constant("axis.1", np.array([1], np.int64))
    for name, parts in ends.items():
        whole = [builder.add("Unsqueeze", [part, axis], f"{part}.layer") for part in parts]
        builder.add("Concat", whole, f"{name}_after", axis=1)
    states: list[int | str | None] = ["N", len(model.layers), model.hidden]
    inputs = [value(TOKENS_NAME, TensorProto.INT64, ["N", "T"])]
    inputs += [value(name, TensorProto.FLOAT, states) for name in _STATES]
    outputs = [value(OUTPUT_NAME, TensorProto.FLOAT, ["N", "T", model.vocabulary])]
    outputs += [value(f"{name}_after", TensorProto.FLOAT, states) for name in _STATES]
    return serialized(builder.graph("lstm", inputs, outputs), builder.opset, metadata or {})


def _layer(
    builder: GraphBuilder,
    number: int,
    inward: IntegerLinear,
    onward: IntegerLinear,
    x: str,
    ends: dict[str, list[str]],
) -> str:
    """Add a layer and return the name of its hidden states, (T, N, H)."""
    projected = builder.product(inward, x)
    index = builder.constant(f"layer.{number}", np.array(number, np.int64))
    before = [builder.add("Gather", [name, index], f"layers.{number}.{name}", axis=1) for name in _STATES]
    after = [f"layers.{number}.{name}_after" for name in _STATES]
    hidden = f"layers.{number}.hidden"
    body = _step(number, onward, builder.opset)
    builder.add("Scan", [*before, projected], [*after, hidden], body=body, num_scan_inputs=1)
    for name, end in zip(_STATES, after, strict=True):
        ends[name].append(end)
    return hidden


def _step(number: int, onward: IntegerLinear, opset: int) -> onnx.GraphProto:
    """Return the graph of one time step: from h, c and the input's product to h, c and the layer's output."""
    step, size = GraphBuilder(opset), onward.codes.shape[1]
    # Names in the body of a Scan must not shadow those of the outer graph.
    h, c, inward = (f"step.{number}.{name}" for name in ("h", "c", "inward"))
    product = step.product(onward, h)
    gates = step.add("Add", [inward, product], f"step.{number}.gates")
    parts = [f"step.{number}.{name}" for name in "ifgo"]
    step.add("Split", [gates], parts, axis=-1, num_outputs=4)
    i, f, o = (step.add("Sigmoid", [parts[place]], f"{parts[place]}.sigmoid") for place in (0, 1, 3))
    g = step.add("Tanh", [parts[2]], f"{parts[2]}.tanh")
    kept = step.add("Mul", [f, c], f"step.{number}.kept")
    new = step.add("Mul", [i, g], f"step.{number}.new")
    c_after = step.add("Add", [kept, new], f"step.{number}.c_after")
    squashed = step.add("Tanh", [c_after], f"step.{number}.squashed")
    h_after = step.add("Mul", [o, squashed], f"step.{number}.h_after")
    hidden = step.add("Identity", [h_after], f"step.{number}.hidden")
    inputs = [value(h, TensorProto.FLOAT, ["N", size]), value(c, TensorProto.FLOAT, ["N", size])]
    inputs.append(value(inward, TensorProto.FLOAT, ["N", 4 * size]))
    outputs = [value(name, TensorProto.FLOAT, ["N", size]) for name in (h_after, c_after, hidden)]
    return step.graph(f"step.{number}", inputs, outputs)
