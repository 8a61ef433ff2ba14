"""Write a Transformer's embedding and head as ONNX, plain or in bands: see `integer.language.ends`."""

import numpy as np

from cpt_deploy.export.language.graph import GraphBuilder
from cpt_deploy.integer.language.ends import IntegerEmbedding, IntegerHead
from cpt_deploy.integer.language.parts import IntegerLinear, IntegerTable
from cpt_deploy.signature import OUTPUT_NAME, TOKENS_NAME


def add_embedding(builder: GraphBuilder, embedding: IntegerEmbedding) -> str:
    """Add the lookup of tokens, and return the name of their rows, (N, T, F)."""
    if not embedding.projections:
        return builder.rows(embedding.tables[0], TOKENS_NAME, "embedding.output")
    start, out = 0, ""
    for number, (table, projection) in enumerate(zip(embedding.tables, embedding.projections, strict=True)):
        out = _add_band(builder, f"embedding.band.{number}", start, table, projection, out)
        start += len(table.codes)
    return out


def _add_band(
    builder: GraphBuilder, name: str, start: int, table: IntegerTable, projection: IntegerLinear, before: str
) -> str:
    """Add the lookup of a band; return the name of its rows for tokens of this or later bands, else of `before`."""
    zero = builder.constant("place.0", np.array(0, np.int64))
    last = builder.constant(f"{name}.last", np.array(len(table.codes) - 1, np.int64))
    places = TOKENS_NAME
    if start:
        offset = builder.constant(f"{name}.start", np.array(start, np.int64))
        places = builder.add("Sub", [TOKENS_NAME, offset], f"{name}.places")
    clipped = builder.add("Clip", [places, zero, last], f"{name}.clipped")
    rows = builder.product(projection, builder.rows(table, clipped, f"{name}.rows"))
    if not before:
        return rows
    inside = builder.add("GreaterOrEqual", [places, zero], f"{name}.inside")
    axis = builder.constant("axis.-1", np.array([-1], np.int64))
    condition = builder.add("Unsqueeze", [inside, axis], f"{name}.condition")
    return builder.add("Where", [condition, rows, before], f"{name}.output")


def add_head(builder: GraphBuilder, head: IntegerHead, x: str) -> None:
    """Add the graph's output, the scores (N, T, V), from features, (N, T, F)."""
    first = [builder.product(linear, x) for linear in head.first]
    if not head.tails:
        builder.add("Identity", first, OUTPUT_NAME)
        return
    joined = builder.add("Concat", first, "head.first", axis=-1)
    known = builder.add("LogSoftmax", [joined], "head.known", axis=-1)
    tokens = len(head.first[0].codes)
    sizes = builder.constant("head.sizes", np.array([tokens] + [1] * len(head.tails), np.int64))
    bands = [f"head.band.{number}" for number in range(len(head.tails))]
    parts = ["head.tokens"]
    builder.add("Split", [known, sizes], [*parts, *bands], axis=-1)
    for band, (narrow, wide) in zip(bands, head.tails, strict=True):
        logits = builder.product(wide, builder.product(narrow, x))
        inside = builder.add("LogSoftmax", [logits], f"{band}.inside", axis=-1)
        parts.append(builder.add("Add", [inside, band], f"{band}.scores"))
    builder.add("Concat", parts, OUTPUT_NAME, axis=-1)
