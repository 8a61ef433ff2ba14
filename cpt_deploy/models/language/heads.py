"""Embeddings and softmax heads of language models, full or adaptive.

Adaptive input and adaptive softmax (Grave et al., 2017; Baevski & Auli, 2018) give frequent words more dimensions than
rare ones: the vocabulary, ordered by frequency, is divided into bands, and each band after the first has `1/factor` of
the dimensions of the one before.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.errors import UsageError

INITIAL_RANGE = 0.1


class SoftmaxHead(nn.Module):
    """A full softmax over all tokens: one Linear from features (..., F) to logits (..., vocabulary).

    Args:
        features: F.
        vocabulary: Number of tokens.
        bias: Whether the Linear has a bias.
    """

    def __init__(self, features: int, vocabulary: int, *, bias: bool = True) -> None:
        super().__init__()
        self.decoder = nn.Linear(features, vocabulary, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (..., F) to logits (..., vocabulary)."""
        logits: Tensor = self.decoder(x)
        return logits


class AdaptiveHead(nn.Module):
    """The adaptive softmax of `torch.nn`, with a first band that can share its weights with an adaptive embedding.

    Args:
        features: F.
        vocabulary: Number of tokens, ordered by descending frequency.
        cutoffs: First tokens of the bands after the first, ascending.
        factor: Divisor of the dimensions from band to band.
    """

    def __init__(self, features: int, vocabulary: int, cutoffs: Sequence[int], factor: float) -> None:
        super().__init__()
        check_cutoffs(cutoffs, vocabulary)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(features, vocabulary, list(cutoffs), factor)
        # torch has one matrix for the first band's tokens and the other bands; two matrices allow sharing the first
        self.softmax.head = _TwoLinears(features, cutoffs[0], len(cutoffs))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Map features (..., F) to log-probabilities (..., vocabulary)."""
        known = functional.log_softmax(self.softmax.head(x), dim=-1)
        count = self.softmax.shortlist_size
        parts = [known[..., :count]]
        for number, tail in enumerate(self.softmax.tail):
            band = known[..., count + number : count + number + 1]
            parts.append(functional.log_softmax(tail(x), dim=-1) + band)
        return torch.cat(parts, dim=-1)

    def band(self, number: int) -> nn.Linear:
        """Return the Linear of a band's tokens, with a weight of (tokens, dimensions of the band)."""
        linear = self.softmax.head.tokens if number == 0 else self.softmax.tail[number - 1][1]  # type: ignore[index]
        assert isinstance(linear, nn.Linear)
        return linear


class _TwoLinears(nn.Module):
    def __init__(self, features: int, tokens: int, bands: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(features, tokens, bias=False)
        self.bands = nn.Linear(features, bands, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tokens(x), self.bands(x)], dim=-1)


class AdaptiveEmbedding(nn.Module):
    """An embedding whose rarer bands have fewer dimensions, each projected to F: int64 (N, T) to (N, T, F).

    Args:
        features: F.
        vocabulary: Number of tokens, ordered by descending frequency.
        cutoffs: First tokens of the bands after the first, ascending.
        factor: Divisor of the dimensions from band to band.
    """

    def __init__(self, features: int, vocabulary: int, cutoffs: Sequence[int], factor: float) -> None:
        super().__init__()
        check_cutoffs(cutoffs, vocabulary)
        self.features = features
        self.bounds = [0, *cutoffs, vocabulary]
        widths = [int(features // factor**band) if factor > 0 else 0 for band in range(len(cutoffs) + 1)]
        if min(widths) < 1:
            raise UsageError(
                f"Expected a factor with a dimension for each of {len(widths)} bands of {features} features, "
                f"but got {factor:g}"
            )
        sizes = [end - start for start, end in pairwise(self.bounds)]
        self.bands = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=True))
        self.projections = nn.ModuleList(nn.Linear(width, features, bias=False) for width in widths)
        for band, width in zip(self.bands, widths, strict=True):
            nn.init.normal_(band.weight, std=width**-0.5)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up each token in all bands, which are small but for the first, and select the row of its own."""
        first, *others = zip(pairwise(self.bounds), self.bands, self.projections, strict=True)
        (_, end), band, projection = first
        out: Tensor = projection(band(tokens.clamp(max=end - 1)))
        for (start, end), band, projection in others:
            rows = projection(band((tokens - start).clamp(0, end - start - 1)))
            out = torch.where((tokens >= start)[..., None], rows, out)
        return out


def tie_bands(embedding: AdaptiveEmbedding, head: AdaptiveHead) -> None:
    """Share each band's token matrix between embedding and head; the projections stay separate."""
    for number, band in enumerate(embedding.bands):
        head.band(number).weight = band.weight  # type: ignore[assignment]


def check_cutoffs(cutoffs: Sequence[int], vocabulary: int) -> None:
    """Check that bands are in order and within the vocabulary.

    Raises:
        UsageError: If they are not.
    """
    bounds = [0, *cutoffs, vocabulary]
    if not cutoffs or any(low >= high for low, high in pairwise(bounds)):
        raise UsageError(
            f"Expected cutoffs that rise and lie between 0 and the vocabulary's {vocabulary} tokens, "
            f"but got {list(cutoffs)}"
        )
