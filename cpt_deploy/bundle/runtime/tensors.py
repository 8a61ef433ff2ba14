"""Tensors of a signature as arrays: checked inputs, and the states between calls."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.signature import BATCH, Signature, TensorSpec, size_at

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by the names of a model's inputs or outputs."""


def checked_inputs(signature: Signature, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs of a call, with the initial states in place of missing ones.

    Args:
        signature: The model's signature.
        inputs: The inputs by name.

    Raises:
        ValueError: Like `checked_sizes`.
    """
    sizes = checked_sizes(signature, inputs)
    if len(inputs) == len(signature.inputs):
        return {tensor.name: inputs[tensor.name] for tensor in signature.inputs}
    return {**initial_states(signature, sizes), **inputs}


def checked_sizes(signature: Signature, inputs: Arrays) -> dict[str, int]:
    """Return the size of the batch (`BATCH`) and of each free dimension that the inputs of a call determine.

    Args:
        signature: The model's signature.
        inputs: The inputs by name; states may be missing.

    Raises:
        ValueError: If an input is missing or unknown, has another dtype, or its shape does not fit the signature and
            the other inputs.
    """
    states = {before for before, _ in signature.states}
    names = [tensor.name for tensor in signature.inputs]
    if not inputs.keys() <= {*names} or not {*names} - states <= inputs.keys():
        wanted = ", ".join(name for name in names if name not in states)
        raise ValueError(f"Expected the inputs {wanted}, but got {', '.join(inputs) or 'none'}")
    sizes: dict[str, int] = {}
    for tensor in signature.inputs:
        if tensor.name in inputs:
            _check(tensor, inputs[tensor.name], signature, sizes)
    total, most = sum(sizes.get(name, free.least) for name, free in signature.free.items()), signature.context
    if most is not None and total > most:
        free = " + ".join(signature.free)
        raise ValueError(f"Expected at most {most} of {free}, the model's context, but got {total}")
    return sizes


def initial_states(signature: Signature, sizes: Mapping[str, int]) -> dict[str, npt.NDArray[Any]]:
    """Return the states before the first call: zeros by the names of the inputs.

    Args:
        signature: The model's signature.
        sizes: Size of the batch (`BATCH`), and of the free dimensions that are known from other inputs; one that is not
            has its minimum, which is 0 where a state grows with each call.
    """
    known = {name: free.least for name, free in signature.free.items()} | dict(sizes)
    states = {before for before, _ in signature.states}
    return {
        tensor.name: np.zeros((known[BATCH], *(size_at(size, known) for size in tensor.shape)), tensor.dtype)
        for tensor in signature.inputs
        if tensor.name in states
    }


def next_states(signature: Signature, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return the states among the outputs of a call as inputs of the next call."""
    return {before: outputs[after] for before, after in signature.states}


def _check(tensor: TensorSpec, array: npt.NDArray[Any], signature: Signature, sizes: dict[str, int]) -> None:
    """Compare an array with its declaration, and record the free sizes that it determines."""
    if array.dtype != tensor.dtype or array.ndim != len(tensor.whole_shape):
        raise _unfit(tensor, array)
    for size, found in zip(tensor.whole_shape, array.shape, strict=True):
        if isinstance(size, int):
            if size != found:
                raise _unfit(tensor, array)
            continue
        known = sizes.setdefault(size, found) if size.isidentifier() else _size_at(size, sizes)
        if known is not None and known != found:
            raise _unfit(tensor, array, f", where {size} is {known} in other inputs")
        free = signature.free.get(size)
        if free is not None and not (free.least <= found and (free.most is None or found <= free.most)):
            most = "at least" if free.most is None else f"at most {free.most} and at least"
            raise _unfit(tensor, array, f", where {size} is {most} {free.least}")


def _size_at(size: str, sizes: Mapping[str, int]) -> int | None:
    """Return a size if it follows from known ones."""
    try:
        return size_at(size, sizes)
    except KeyError:
        return None


def _unfit(tensor: TensorSpec, array: npt.NDArray[Any], further: str = "") -> ValueError:
    shape = f"({', '.join(map(str, tensor.whole_shape))}{',' if len(tensor.whole_shape) == 1 else ''})"
    return ValueError(
        f"Expected {tensor.name} to be {tensor.dtype} {shape}{further}, but got {array.dtype} {array.shape}"
    )
