"""Choosing the next token: the most probable one, or one drawn from a part of the model's distribution."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_FEW = 128


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are drawn.

    Args:
        temperature: What the logits are divided by; 0 always takes the most probable token, of equal ones the first.
        top_k: Only so many of the most probable tokens are drawn from; 0 is all of them.
        top_p: Only the fewest most probable tokens that together have this probability are drawn from (nucleus
            sampling, Holtzman et al., ICLR 2020); applied after temperature and `top_k`.
        seed: Start of the random numbers: the same seed, options and prompt give the same text.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    """Return log-probabilities along the last dimension, float64 of the same shape."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float64)


def most_probable(log_probabilities: Floats, count: int) -> npt.NDArray[np.intp]:
    """Return the so many most probable tokens, best first, of equal ones the first; log_probabilities are (V)."""
    if count < len(log_probabilities):
        # All that are at least as probable as the last one, so that equal ones come in order.
        least = np.partition(log_probabilities, -count)[-count]
        candidates = np.flatnonzero(log_probabilities >= least)
    else:
        candidates = np.arange(len(log_probabilities))
    order = np.argsort(-log_probabilities[candidates], kind="stable")
    return candidates[order][:count]


class Sampler:
    """Draws one token after the other.

    Args:
        options: How.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def draw(self, log_probabilities: Floats) -> int:
        """Return the next token.

        Args:
            log_probabilities: Of all tokens, float64 (V).
        """
        options = self._options
        if options.temperature == 0:
            return int(log_probabilities.argmax())
        tokens, probabilities = candidates(log_probabilities, options)
        # One number a token, whatever the options: the inverse of the cumulative distribution.
        cumulative = probabilities.cumsum()
        index = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(tokens[min(index, len(tokens) - 1)])


def candidates(log_probabilities: Floats, options: SamplingOptions) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the tokens that may be drawn and their probabilities, which sum to 1; best first where they are limited.

    Args:
        log_probabilities: Of all tokens, float64 (V).
        options: Temperature above 0, and what limits the choice.
    """
    weights = np.exp((log_probabilities - log_probabilities.max()) / options.temperature)
    if options.top_k:
        tokens = most_probable(log_probabilities, options.top_k)
        return _nucleus(tokens, weights[tokens] / weights[tokens].sum(), options.top_p)
    probabilities = weights / weights.sum()
    if options.top_p == 1:
        return np.arange(len(probabilities)), probabilities
    # Sorting a large vocabulary takes longer than a small model does, and the tokens wanted are mostly few.
    count = _FEW
    while True:
        tokens = most_probable(log_probabilities, count)
        if count >= len(probabilities) or probabilities[tokens].cumsum()[-1] >= options.top_p:
            return _nucleus(tokens, probabilities[tokens], options.top_p)
        count *= 8


def _nucleus(tokens: npt.NDArray[np.intp], probabilities: Floats, top_p: float) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the first tokens that together have the probability `top_p`, and probabilities that sum to 1."""
    if top_p < 1:
        # The token with which the sum reaches top_p belongs to them.
        kept = int(np.searchsorted(probabilities.cumsum(), top_p, side="left")) + 1
        tokens, probabilities = tokens[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return tokens, probabilities
