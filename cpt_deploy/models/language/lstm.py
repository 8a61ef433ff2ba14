"""The float network `lstm-lm`: embedding, LSTM layers with dropout between them, and a decoder (Zaremba et al., 2014).

The state is h and c, float32 (N, layers, hidden) each. Dropout applies between layers, never between time steps. For
the arithmetic of the prepared network see `cpt_deploy.quantization.modules.recurrent`.
"""

import torch
from torch import Tensor, nn

from cpt_deploy.errors import UsageError
from cpt_deploy.models.language.heads import INITIAL_RANGE, SoftmaxHead


class LstmLanguageModel(nn.Module):
    """An LSTM language model with the modules `embedding`, `layers.0`, … and `head.decoder`.

    Args:
        vocabulary: Number of tokens.
        embedding: Dimensions of a token's embedding.
        hidden: Dimensions of h and c.
        layers: Number of LSTM layers.
        dropout: Dropout probability between layers, in training.
        tie_weights: Whether embedding and decoder share one matrix; `embedding` and `hidden` must then be equal.

    Raises:
        UsageError: If weights are tied and the dimensions differ, or if a size is below 1.
    """

    ends = ("embedding", "head")

    def __init__(
        self,
        vocabulary: int,
        *,
        embedding: int = 650,
        hidden: int = 650,
        layers: int = 2,
        dropout: float = 0.5,
        tie_weights: bool = False,
    ) -> None:
        super().__init__()
        if tie_weights and embedding != hidden:
            raise UsageError(
                f"Expected embedding and hidden to be equal with tie_weights, but got {embedding} and {hidden}"
            )
        if min(vocabulary, embedding, hidden, layers) < 1:
            raise UsageError(
                f"Expected at least one token, dimension and layer, but got vocabulary={vocabulary}, "
                f"embedding={embedding}, hidden={hidden}, layers={layers}"
            )
        self.vocabulary, self.hidden = vocabulary, hidden
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocabulary, embedding)
        sizes = [embedding] + [hidden] * (layers - 1)
        self.layers = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.head = SoftmaxHead(hidden, vocabulary)
        nn.init.uniform_(self.embedding.weight, -INITIAL_RANGE, INITIAL_RANGE)
        nn.init.uniform_(self.head.decoder.weight, -INITIAL_RANGE, INITIAL_RANGE)
        nn.init.zeros_(self.head.decoder.bias)
        if tie_weights:
            self.head.decoder.weight = self.embedding.weight

    def initial_state(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return zeros for h and c."""
        shape = (rows, len(self.layers), self.hidden)
        device = self.embedding.weight.device
        return torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def forward(self, input_ids: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of each next token, (N, T, vocabulary), and the state after the last token."""
        x = self.dropout(self.embedding(input_ids))
        ends = []
        for number, layer in enumerate(self.layers):
            x, end = layer(x, (h[:, number].unsqueeze(0), c[:, number].unsqueeze(0)))
            x = self.dropout(x)
            ends.append(end)
        hidden, cell = (torch.stack([part.squeeze(0) for part in parts], dim=1) for parts in zip(*ends, strict=True))
        return self.head(x), hidden, cell
