"""Embedding with quantized weights.

Each row of the table has its own symmetric scale, as each output channel of a Linear has, so a table shared with a
decoder has the same quantized values in both. The gradient of the rows that were looked up is quantized as in other
layers. Only the rows that a batch reads are quantized, with the same result as quantizing the whole table. A lookup
has no multiplications: its cost in BitOPs is 0.
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
