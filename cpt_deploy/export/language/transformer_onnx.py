"""Write the integer Transformer as ONNX: integer products, with LayerNorm, attention and sums in float32 between them.

Inputs: `input_ids`, int64 (N, T); `k_0`, `v_0`, `k_1`, …, float32 (N, heads, past, F / heads). Outputs: `logits`,
float32 (N, T, V), and `k_0_after`, …, with the present tokens' keys and values appended to the past ones. The graph
derives positions and the causal mask from the length of the past: any T after any past is correct, up to the context;
beyond it there is no position to look up, and the call fails.
"""

import numpy as np
from onnx import TensorProto

from cpt_deploy.export.language.ends_onnx import add_embedding, add_head
from cpt_deploy.export.language.graph import GraphBuilder, chosen_opset, serialized, value
from cpt_deploy.integer.language.blocks import IntegerBlock, Norm
from cpt_deploy.integer.language.transformer import POSITIONS, IntegerTransformer
from cpt_deploy.signature import OUTPUT_NAME, TOKENS_NAME, FreeSize, Signature, TensorSpec

_MASK = "mask"


def transformer_signature(model: IntegerTransformer) -> Signature:
    """Return the signature of the exported model."""
    size, names = model.features // model.heads, _caches(model)
    taken, made = ((model.heads, length, size) for length in ("past", "total"))
    return Signature(
        (TensorSpec(TOKENS_NAME, "int64", ("length",)), *(TensorSpec(name, "float32", taken) for name in names)),
        (
            TensorSpec(OUTPUT_NAME, "float32", ("length", model.vocabulary)),
            *(TensorSpec(_after(name), "float32", made) for name in names),
        ),
        tuple((name, _after(name)) for name in names),
        {"length": FreeSize(2, most=model.context), "past": FreeSize(2, least=0, most=model.context)},
    )


def write_transformer_onnx(
    model: IntegerTransformer, *, opset: int | None = None, metadata: dict[str, str] | None = None
) -> bytes:
    """Return the model as a serialized ONNX file.

    Args:
        model: The frozen model.
        opset: ONNX opset, see `chosen_opset`.
        metadata: Entries of the file's metadata_props.

    Raises:
        UsageError: If the opset is out of range.
    """
    builder = GraphBuilder(chosen_opset(model, opset))
    positions = _add_places(builder, model)
    factor = builder.constant("embedding.factor", np.array(model.row_factor))
    rows = builder.add("Mul", [add_embedding(builder, model.embedding), factor], "embedding.scaled")
    x = builder.add("Add", [rows, positions], "embedding.placed")
    for number, block in enumerate(model.blocks):
        x = _add_block(builder, model, number, block, x)
    add_head(builder, model.head, _add_norm(builder, model.norm, x))
    size = model.features // model.heads
    inputs = [value(TOKENS_NAME, TensorProto.INT64, ["N", "T"])]
    outputs = [value(OUTPUT_NAME, TensorProto.FLOAT, ["N", "T", model.vocabulary])]
    for name in _caches(model):
        inputs.append(value(name, TensorProto.FLOAT, ["N", model.heads, "past", size]))
        outputs.append(value(_after(name), TensorProto.FLOAT, ["N", model.heads, "total", size]))
    return serialized(builder.graph(model.kind, inputs, outputs), builder.opset, metadata or {})


def _caches(model: IntegerTransformer) -> list[str]:
    return [f"{kind}_{number}" for number in range(len(model.blocks)) for kind in "kv"]


def _after(name: str) -> str:
    return f"{name}_after"


def _add_places(builder: GraphBuilder, model: IntegerTransformer) -> str:
    """Add the mask, (T, past + T), and return the name of the present tokens' positions, (T, F)."""
    past = builder.add("Shape", ["k_0"], "past.length", start=2, end=3)
    length = builder.add("Shape", [TOKENS_NAME], "present.length", start=1, end=2)
    total = builder.add("Add", [past, length], "total.length")
    start, end = (builder.add("Squeeze", [each], f"{each}.scalar") for each in (past, total))
    zero, one = (builder.constant(f"place.{number}", np.array(number, np.int64)) for number in (0, 1))
    places = builder.add("Range", [zero, end, one], "places")
    present = builder.add("Range", [start, end, one], "places.present")
    axis = builder.constant("axis.1", np.array([1], np.int64))
    column = builder.add("Unsqueeze", [present, axis], "places.column")
    hidden = builder.add("Greater", [places, column], f"{_MASK}.hidden")
    nothing, all_of_it = (
        builder.constant(f"{_MASK}.{name}", np.array(number, np.float32))
        for name, number in (("hide", -np.inf), ("show", 0))
    )
    builder.add("Where", [hidden, nothing, all_of_it], _MASK)
    # Gather rejects positions beyond the table, where Slice would return fewer rows.
    return builder.add("Gather", [builder.constant(POSITIONS, model.positions), present], f"{POSITIONS}.present")


def _add_block(builder: GraphBuilder, model: IntegerTransformer, number: int, block: IntegerBlock, x: str) -> str:
    """Add a block and return the name of its output, (N, T, F)."""
    name = f"blocks.{number}"
    attended = _add_attention(builder, model, number, block, _add_norm(builder, block.attention_norm, x))
    x = builder.add("Add", [x, attended], f"{name}.attended")
    inner = builder.product(block.inner, _add_norm(builder, block.inner_norm, x))
    outer = builder.product(block.outer, builder.add("Relu", [inner], f"{name}.relu"))
    return builder.add("Add", [x, outer], f"{name}.output")


def _add_attention(builder: GraphBuilder, model: IntegerTransformer, number: int, block: IntegerBlock, x: str) -> str:
    """Add attention, with its keys and values as outputs of the graph, and return the name of its output, (N, T, F)."""
    name = f"blocks.{number}.attention"
    split = builder.constant("heads.split", np.array([0, 0, model.heads, -1], np.int64))
    joined = builder.constant("heads.joined", np.array([0, 0, -1], np.int64))
    whole = [f"{name}.{part}" for part in "qkv"]
    builder.add("Split", [builder.product(block.qkv, x)], whole, axis=-1, num_outputs=3)
    reshaped = [builder.add("Reshape", [part, split], f"{part}.split") for part in whole]
    q, k, v = (builder.add("Transpose", [part], f"{part}.heads", perm=[0, 2, 1, 3]) for part in reshaped)
    keys, values = (
        builder.add("Concat", [cache, now], _after(cache), axis=2)
        for cache, now in ((f"k_{number}", k), (f"v_{number}", v))
    )
    factor = builder.constant("query.factor", np.array(model.query_factor))
    scaled = builder.add("Mul", [q, factor], f"{name}.q.scaled")
    turned = builder.add("Transpose", [keys], f"{name}.k.turned", perm=[0, 1, 3, 2])
    scores = builder.add("Add", [builder.add("MatMul", [scaled, turned], f"{name}.scores"), _MASK], f"{name}.masked")
    weights = builder.add("Softmax", [scores], f"{name}.weights", axis=-1)
    y = builder.add("MatMul", [weights, values], f"{name}.heads")
    rows = builder.add("Transpose", [y], f"{name}.rows", perm=[0, 2, 1, 3])
    return builder.product(block.out, builder.add("Reshape", [rows, joined], f"{name}.joined"))


def _add_norm(builder: GraphBuilder, norm: Norm, x: str) -> str:
    weight, bias = (builder.constant(name, array) for name, array in norm.arrays().items())
    return builder.add("LayerNormalization", [x, weight, bias], f"{norm.name}.output", axis=-1, epsilon=norm.epsilon)
