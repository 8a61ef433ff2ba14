"""Embedding with quantized weights.

Row `v` of the table is on a symmetric grid of its own, `scale_v = max|w_v| / levels`: a row is to an embedding what an
output channel is to a Linear, so a table that a decoder shares has the same codes in both. The gradient of the rows
that were looked up is quantized as that of other layers. Only the rows that a batch needs are quantized, which gives
what quantizing the table would. A lookup multiplies nothing: its cost in BitOPs is 0.
"""

from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.quantization.affine import fake_quantize_weight
from cpt_deploy.quantization.layers import QuantizedLayer
from cpt_deploy.quantization.precision_state import PrecisionState, Role


class QuantizedEmbedding(QuantizedLayer, nn.Embedding):  # type: ignore[misc]  # torch declares the same attributes wider
    """Rows of a quantized table: input int64 (...), output (..., E)."""

    bias = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Look rows up."""
        rows = functional.embedding(tokens.reshape(-1), self.weight)
        if self.precision.quantizes_weights(self.index, self.role):
            levels = self.precision.weight_levels_of(self.index, self.role)
            rows = fake_quantize_weight(rows, levels)
        return self._with_quantized_gradient(rows).view(*tokens.shape, -1)


def quantized_embedding(
    embedding: nn.Embedding, precision: PrecisionState, role: Role, index: int
) -> QuantizedEmbedding:
    """Return the quantized layer for a float one; the table is shared, not copied."""
    layer = QuantizedEmbedding(embedding.num_embeddings, embedding.embedding_dim, device="meta")
    layer.weight = embedding.weight  # type: ignore[assignment]
    layer.train(embedding.training)
    layer.attach(precision, role, index)
    return layer
