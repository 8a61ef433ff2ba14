"""The float network `transformer-lm`: a causal Transformer with pre-LayerNorm blocks (Baevski & Auli, 2018).

A block is `x + A(LN(x))`, then `x + F(LN(x))`. A has one Linear for queries, keys and values of all heads (features to
3 · features, in this order) and one for its output; F is Linear, ReLU, Linear. Positions are the sinusoids of Vaswani
et al., 2017. Preparing quantizes the input and the weight of each Linear, and the embedding; LayerNorm, softmax, the
sums and the two products of attention, QKᵀ and PV, stay in float32.

The state is a cache of keys and values, (k_0, v_0, k_1, v_1, …), float32 (N, heads, past, features / heads) each, for
`past` earlier tokens, 0 at the beginning; the new state has the keys and values of the current tokens appended. In
training and evaluation, chunks of a text begin with an empty cache.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.errors import UsageError
from cpt_deploy.models.language.heads import AdaptiveEmbedding, AdaptiveHead, SoftmaxHead, tie_bands

_LONGEST_WAVE = 10000.0


class CausalAttention(nn.Module):
    """Causal self-attention: each token attends to itself and the tokens before it; (N, T, F) to (N, T, F).

    Args:
        features: F.
        heads: Number of heads, a divisor of F.
        dropout: Dropout probability of attention weights, in training.
    """

    def __init__(self, features: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(features, 3 * features)
        self.out = nn.Linear(features, features)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and all keys and values, (N, heads, past + T, F / heads), the current ones last."""
        batch, length, features = x.shape
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(batch, length, features)), keys, values


class Block(nn.Module):
    """A Transformer block: attention, then two Linears, each with a LayerNorm before and a residual sum after it.

    Args:
        features: F.
        inner: Dimensions between the two Linears.
        heads: Number of heads.
        dropout: Dropout probability, in training.
    """

    def __init__(self, features: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(features)
        self.attention = CausalAttention(features, heads, dropout)
        self.inner_norm = nn.LayerNorm(features)
        self.inner = nn.Linear(features, inner)
        self.outer = nn.Linear(inner, features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and all keys and values; see `CausalAttention.forward`."""
        y, keys, values = self.attention(self.attention_norm(x), keys, values, mask)
        x = x + self.dropout(y)
        y = self.outer(functional.relu(self.inner(self.inner_norm(x))))
        return x + self.dropout(y), keys, values


class TransformerLanguageModel(nn.Module):
    """A Transformer language model with the modules `embedding`, `blocks.0.attention.qkv`, …, `norm` and `head`.

    Args:
        vocabulary: Number of tokens.
        features: Dimensions of a token.
        layers: Number of blocks.
        heads: Heads of attention, a divisor of `features`.
        inner: Dimensions between a block's two Linears.
        context: Maximum number of tokens that attention spans.
        dropout: Dropout probability, in training.
        cutoffs: First tokens of the bands of adaptive input and softmax after the first; if empty, all tokens have
            `features` dimensions.
        factor: Divisor of the dimensions from band to band.
        tie_weights: Whether input and output share the token matrices.

    Raises:
        UsageError: If a size is below 1, or `features` is odd or not divisible by `heads`.
    """

    ends = ("embedding", "head")

    def __init__(  # noqa: PLR0913  the shape of a Transformer
        self,
        vocabulary: int,
        *,
        features: int = 256,
        layers: int = 4,
        heads: int = 4,
        inner: int = 1024,
        context: int = 256,
        dropout: float = 0.1,
        cutoffs: Sequence[int] = (),
        factor: float = 4.0,
        tie_weights: bool = True,
    ) -> None:
        super().__init__()
        if min(vocabulary, features, layers, heads, inner, context) < 1:
            raise UsageError("Expected vocabulary, features, layers, heads, inner and context of at least 1")
        if features % heads or features % 2:
            raise UsageError(f"Expected even features that {heads} heads divide, but got {features}")
        self.vocabulary, self.context, self.features_count, self.heads = vocabulary, context, features, heads
        self.dropout = nn.Dropout(dropout)
        self.embedding, self.head = _ends(vocabulary, features, cutoffs, factor, tie_weights=tie_weights)
        self.blocks = nn.ModuleList(Block(features, inner, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(features)
        self.register_buffer("positions", sinusoids(context, features), persistent=False)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """Return empty keys and values."""
        empty = self.norm.weight.new_zeros(batch, self.heads, 0, self.features_count // self.heads)
        return (empty.detach(),) * (2 * len(self.blocks))

    def forward(self, input_ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the scores of each next token, (N, T, vocabulary), and all keys and values.

        Scores are logits, or log-probabilities if there are bands.
        """
        past, length = state[0].shape[2], input_ids.shape[1]
        places = torch.arange(past, past + length, device=input_ids.device)
        positions = self.get_buffer("positions").index_select(0, places)  # which rejects places beyond the context
        x = self.dropout(self.embedding(input_ids) * math.sqrt(self.features_count) + positions)
        mask = causal_mask(places, past + length)
        cache: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x, keys, values = block(x, state[2 * number], state[2 * number + 1], mask)
            cache += [keys, values]
        return (self.head(self.norm(x)), *cache)


def sinusoids(length: int, features: int) -> Tensor:
    """Return the positions of Vaswani et al., 2017, section 3.5: sines, then cosines, float32 (length, features)."""
    rates = torch.exp(torch.arange(0, features, 2) * (-math.log(_LONGEST_WAVE) / features))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def causal_mask(places: Tensor, total: int) -> Tensor:
    """Return the mask to be added to the scores of attention: 0 for visible tokens, −∞ for later ones.

    Args:
        places: Positions of the tokens that attend, int64 (T,).
        total: Number of tokens, float32 (T, total) in the mask.
    """
    later = torch.arange(total, device=places.device) > places[:, None]
    return torch.where(later, -torch.inf, 0.0)


def _ends(
    vocabulary: int, features: int, cutoffs: Sequence[int], factor: float, *, tie_weights: bool
) -> tuple[nn.Embedding | AdaptiveEmbedding, SoftmaxHead | AdaptiveHead]:
    if cutoffs:
        bands, adaptive = (make(features, vocabulary, cutoffs, factor) for make in (AdaptiveEmbedding, AdaptiveHead))
        assert isinstance(bands, AdaptiveEmbedding)
        assert isinstance(adaptive, AdaptiveHead)
        if tie_weights:
            tie_bands(bands, adaptive)
        return bands, adaptive
    embedding, head = nn.Embedding(vocabulary, features), SoftmaxHead(features, vocabulary, bias=False)
    nn.init.normal_(embedding.weight, std=features**-0.5)
    if tie_weights:
        head.decoder.weight = embedding.weight
    return embedding, head
