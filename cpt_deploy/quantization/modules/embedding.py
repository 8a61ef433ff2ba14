"""Embedding with quantized weights.

Row `v` of the table is on a symmetric grid of its own, `scale_v = max|w_v| / levels`: a row is to an embedding what an
output channel is to a Linear, so a table that a decoder shares has the same codes in both. The gradient of the rows
that were looked up is quantized as that of other layers. Only the rows that a batch needs are quantized, which gives
what quantizing the table would. A lookup multiplies nothing: its cost in BitOPs is 0.
"""

from torch import nn

from cpt_deploy.quantization.modules.layers import QuantizedEmbedding
from cpt_deploy.quantization.state.precision_state import PrecisionState, Role


def quantized_embedding(
    embedding: nn.Embedding, precision: PrecisionState, role: Role, index: int
) -> QuantizedEmbedding:
    """Return the quantized layer for a float one; the table is shared, not copied."""
    layer = QuantizedEmbedding(embedding.num_embeddings, embedding.embedding_dim, device="meta")
    layer.take_weight(embedding)
    layer.train(embedding.training)
    layer.attach(precision, role, index)
    return layer
