"""The arguments with which language models are prepared: their inputs, free sizes and states.

A language model is a network `forward(input_ids, *state) -> (scores, *state)`, or `forward(input_ids) -> scores`, with
`input_ids` int64 (N, T) and scores float32 (N, T, vocabulary): logits or log-probabilities of each next token. One with
a state has `initial_state(rows)`, which returns the state before the first token: a tuple of tensors with the batch
first, of size 0 where they grow with the tokens. An attribute `context` bounds the number of tokens, past and present
ones; `ends` names modules that have the precision of the first and the last layer.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from cpt_deploy.quantization.conversion.example_inputs import parameter_names


class Arguments(NamedTuple):
    """Arguments of `prepare`; the example is the first token of a text, so that costs are those of a token.

    Attributes:
        example_inputs: Token ids from 0 to the last of the vocabulary, and the state before them.
        dynamic_shapes: The free length, and the free size of states that grow.
        states: Pairs (input, output).
    """

    example_inputs: tuple[Tensor, ...]
    dynamic_shapes: tuple[dict[int, Any] | None, ...]
    states: tuple[tuple[str, str], ...] | None


def preparing_arguments(network: nn.Module, vocabulary: int) -> Arguments:
    """Return the arguments with which a language model is prepared.

    Args:
        network: The model, see the head of this module.
        vocabulary: Number of different tokens.
    """
    rows, context = 2, getattr(network, "context", None)
    state = tuple(getattr(network, "initial_state", _no_state)(rows))
    tokens = torch.tensor([[0], [vocabulary - 1]])
    length, past = Dim("length", min=1, max=context), Dim("past", min=0, max=context)
    free = [{axis: past for axis, size in enumerate(part.shape) if size == 0} for part in state]
    names = parameter_names(network, 1 + len(state))[1:]
    pairs = tuple((name, f"output_{number}") for number, name in enumerate(names, 1))
    return Arguments((tokens, *state), ({1: length}, *(axes or None for axes in free)), pairs or None)


def _no_state(rows: int) -> tuple[Tensor, ...]:
    return ()
