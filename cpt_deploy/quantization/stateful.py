"""Call models with states: the state before the first call, and the state that one call hands to the next."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cpt_deploy.errors import UsageError
from cpt_deploy.signature import Signature, TensorSpec, size_at

State = tuple[Tensor, ...]
"""The tensors of the state, in the order of `Signature.states`."""


def initial_state(signature: Signature, rows: int, device: torch.device | None = None) -> State:
    """Return the state before the first call: zeros, and empty where it grows."""
    least = {name: free.least for name, free in signature.free.items()}
    return tuple(
        torch.zeros(rows, *(size_at(size, least) for size in tensor.shape), device=device)
        for tensor in _states(signature)
    )


def carries_state(signature: Signature) -> bool:
    """Return whether the state has a fixed size, so that the state after one part of a text is that before the next.

    A state that grows fills the model's context, so each part begins with an empty one.
    """
    states = _states(signature)
    return bool(states) and all(isinstance(size, int) for tensor in states for size in tensor.shape)


def call_with_state(
    model: Callable[..., Any], signature: Signature, inputs: Mapping[str, Tensor], state: State | None = None
) -> tuple[list[Tensor], State]:
    """Call a model, and return its outputs that are no states, and the state after the call.

    Args:
        model: A prepared model or its replica, which takes the inputs of the signature in their order.
        signature: Its signature.
        inputs: The inputs that are no states, by name.
        state: The state before; the initial one by default.

    Raises:
        UsageError: If the inputs and the state together are larger than the model's context.
    """
    first = next(iter(inputs.values()))
    if state is None:
        state = initial_state(signature, len(first), first.device)
    given = {**inputs, **dict(zip((before for before, _ in signature.states), state, strict=True))}
    _check_context(signature, given)
    made = [leaf for leaf in tree_leaves(model(*(given[t.name] for t in signature.inputs))) if isinstance(leaf, Tensor)]
    results = dict(zip((tensor.name for tensor in signature.outputs), made, strict=True))
    after = tuple(results.pop(name) for _, name in signature.states)
    return list(results.values()), after


def plain_inputs(signature: Signature) -> tuple[TensorSpec, ...]:
    """Return the inputs that are no states."""
    names = _names(signature)
    return tuple(tensor for tensor in signature.inputs if tensor.name not in names)


def with_initial_state(signature: Signature, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the inputs of a call in the order of the signature, given all of them, or those that are no states."""
    if len(inputs) == len(signature.inputs):
        return tuple(inputs)
    before = dict(zip(_names(signature), initial_state(signature, len(inputs[0]), inputs[0].device), strict=True))
    others = iter(inputs)
    return tuple(before[t.name] if t.name in before else next(others) for t in signature.inputs)


def _names(signature: Signature) -> list[str]:
    return [before for before, _ in signature.states]


def _states(signature: Signature) -> list[TensorSpec]:
    tensors = {tensor.name: tensor for tensor in signature.inputs}
    return [tensors[name] for name in _names(signature)]


def _check_context(signature: Signature, inputs: Mapping[str, Tensor]) -> None:
    if signature.context is None:
        return
    found: dict[str, int] = {}
    for tensor in signature.inputs:
        for axis, size in enumerate(tensor.shape, 1):
            if isinstance(size, str):
                found[size] = int(inputs[tensor.name].shape[axis])
    total = sum(found.get(name, 0) for name in signature.free)
    if total > signature.context:
        raise UsageError(
            f"Expected at most {signature.context} tokens, the model's context, but got {total}",
            hint="lower data.text.sequence or raise model.args.context",
        )
