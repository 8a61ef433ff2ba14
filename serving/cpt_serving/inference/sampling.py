"""Sampling of the next token: the most probable one, or one drawn from the (truncated) distribution."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_FEW = 128


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Options of sampling.

    Args:
        temperature: Divisor of the logits; 0 always takes the most probable token, and of ties the first.
        top_k: Draw from this many most probable tokens; 0 means all.
        top_p: Draw from the fewest most probable tokens that together have this probability (nucleus sampling, Holtzman
            et al., ICLR 2020); applied after temperature and `top_k`.
        seed: Seed of the random numbers: the same seed, options and prompt give the same text.
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
    """Return the `count` most probable tokens, best first, ties in order of the index; `log_probabilities` are (V)."""
    if count < len(log_probabilities):
        # All tokens at least as probable as the last one, so that ties are in order of the index.
        least = np.partition(log_probabilities, -count)[-count]
        candidates = np.flatnonzero(log_probabilities >= least)
    else:
        candidates = np.arange(len(log_probabilities))
    order = np.argsort(-log_probabilities[candidates], kind="stable")
    return candidates[order][:count]


class Sampler:
    """Draws tokens one by one.

    Args:
        options: Options of sampling.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def draw(self, log_probabilities: Floats) -> int:
        """Return the next token.

        Args:
            log_probabilities: Log-probabilities of all tokens, float64 (V).
        """
        options = self._options
        if options.temperature == 0:
            return int(log_probabilities.argmax())
        tokens, probabilities = candidates(log_probabilities, options)
        # Inverse transform sampling: one random number per token, whatever the options.
        cumulative = probabilities.cumsum()
        index = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(tokens[min(index, len(tokens) - 1)])


def candidates(log_probabilities: Floats, options: SamplingOptions) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the tokens that may be drawn and their probabilities, which sum to 1; best first if they are limited.

    Args:
        log_probabilities: Log-probabilities of all tokens, float64 (V).
        options: Options of sampling, with a temperature above 0.
    """
    weights = np.exp((log_probabilities - log_probabilities.max()) / options.temperature)
    if options.top_k:
        tokens = most_probable(log_probabilities, options.top_k)
        return _nucleus(tokens, weights[tokens] / weights[tokens].sum(), options.top_p)
    probabilities = weights / weights.sum()
    if options.top_p == 1:
        return np.arange(len(probabilities)), probabilities
    # Sorting a large vocabulary takes longer than running a small model, and mostly few tokens are needed.
    count = _FEW
    while True:
        tokens = most_probable(log_probabilities, count)
        if count >= len(probabilities) or probabilities[tokens].cumsum()[-1] >= options.top_p:
            return _nucleus(tokens, probabilities[tokens], options.top_p)
        count *= 8


def _nucleus(tokens: npt.NDArray[np.intp], probabilities: Floats, top_p: float) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the first tokens that together have the probability `top_p`, and probabilities that sum to 1."""
    if top_p < 1:
        # The token at which the sum reaches top_p is included.
        kept = int(np.searchsorted(probabilities.cumsum(), top_p, side="left")) + 1
        tokens, probabilities = tokens[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return tokens, probabilities
