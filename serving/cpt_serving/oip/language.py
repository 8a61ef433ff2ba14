"""The protocol's inference for language models: tokens and state as tensors, in both directions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.language import BATCH, LOGITS_NAME, PAST, TOKENS_NAME, LanguageManifest, State
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.datatypes import DTYPES, from_binary, to_integers
from cpt_serving.oip.requests import InferRequest, InputTensor, RequestedOutput
from cpt_serving.web.errors import bad_request
from cpt_serving.web.numbers import to_numbers
from cpt_serving.web.shown import shown


@dataclass(frozen=True, slots=True)
class LanguageRequest:
    """A request for one call of a language model.

    Args:
        tokens: int64 (N, T).
        state: What the client brought, or the state before the first token.
        outputs: What it wants of the model's outputs.
        id: Comes back in the answer, if there is one.
        timeout_us: Microseconds within which the answer is worth having; 0 states none.
    """

    tokens: npt.NDArray[np.int64]
    state: State
    outputs: Sequence[RequestedOutput]
    id: str | None
    timeout_us: int


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """A tensor as the model declares it.

    Args:
        name: Its name.
        datatype: One of the protocol's.
        shape: Its dimensions; those that are text can be of any size.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @property
    def dims(self) -> list[int]:
        """Its dimensions as the protocol has them: -1 stands for any size."""
        return [-1 if isinstance(size, str) else size for size in self.shape]


def declared_inputs(manifest: LanguageManifest) -> list[DeclaredTensor]:
    """Return what the model takes: tokens and state."""
    states = [DeclaredTensor(state.input, state.datatype, state.shape) for state in manifest.states]
    return [DeclaredTensor(TOKENS_NAME, "INT64", (BATCH, "time")), *states]


def declared_outputs(manifest: LanguageManifest) -> list[DeclaredTensor]:
    """Return what the model gives: logits and the state of the next call."""
    states = [DeclaredTensor(state.output, state.datatype, state.shape) for state in manifest.states]
    return [DeclaredTensor(LOGITS_NAME, "FP32", (BATCH, "time", manifest.vocabulary)), *states]


def language_request(request: InferRequest, manifest: LanguageManifest, rows: int) -> LanguageRequest:
    """Return what a request asks of a language model; states that it does not bring are those before the first token.

    Takes long for long states: call it in a thread.

    Args:
        request: As the client wrote it.
        manifest: What the model takes and gives.
        rows: Most sequences that a request may have.

    Raises:
        RequestError: 400 with what was expected.
    """
    tensors = _read_inputs(request.inputs, manifest)
    if TOKENS_NAME not in tensors:
        raise bad_request(f"Expected the input {TOKENS_NAME!r}, but got {shown(sorted(tensors))}")
    tokens = tensors.pop(TOKENS_NAME)
    if not tokens.size > 0 or len(tokens) > rows:
        raise bad_request(f"Expected {TOKENS_NAME!r} of 1 to {rows} sequences, but got the shape {list(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() >= manifest.vocabulary:
        raise bad_request(f"Expected tokens in 0..{manifest.vocabulary - 1}, but got {tokens.min()}..{tokens.max()}")
    state = manifest.initial_state(len(tokens)) | tensors
    _check_state(manifest, state, tokens.shape)
    return LanguageRequest(tokens, state, _wanted(request, manifest), request.id, request.timeout_us)


def language_outputs(
    request: LanguageRequest, manifest: LanguageManifest, logits: npt.NDArray[np.float32], state: State
) -> list[OutputTensor]:
    """Return what the client wants of a call's results, in the order in which it asked."""
    values = {LOGITS_NAME: logits} | {entry.output: state[entry.input] for entry in manifest.states}
    datatypes = {tensor.name: tensor.datatype for tensor in declared_outputs(manifest)}
    return [
        OutputTensor(wanted.name, datatypes[wanted.name], values[wanted.name], wanted.binary)
        for wanted in request.outputs
    ]


def _read_inputs(inputs: Sequence[InputTensor], manifest: LanguageManifest) -> dict[str, npt.NDArray[Any]]:
    declared = {tensor.name: tensor for tensor in declared_inputs(manifest)}
    tensors: dict[str, npt.NDArray[Any]] = {}
    for tensor in inputs:
        if tensor.name not in declared or tensor.name in tensors:
            raise bad_request(
                f"Expected each of the inputs {list(declared)} at most once, but got {shown(tensor.name)}"
            )
        tensors[tensor.name] = _read_tensor(declared[tensor.name], tensor)
    return tensors


def _read_tensor(declared: DeclaredTensor, tensor: InputTensor) -> npt.NDArray[Any]:
    fits = len(tensor.shape) == len(declared.shape) and all(
        isinstance(expected, str) or size == expected
        for size, expected in zip(tensor.shape, declared.shape, strict=True)
    )
    if tensor.datatype != declared.datatype or not fits:
        raise bad_request(
            f"Expected {declared.name!r} as {declared.datatype} of the shape {declared.dims}, but got "
            f"{shown(tensor.datatype)} of {shown(tensor.shape)}"
        )
    if tensor.raw is None:
        return _from_json(tensor)
    # A copy, as the JSON's length can leave the bytes where no number may stand.
    return from_binary(tensor.name, tensor.datatype, tensor.shape, tensor.raw).copy()


def _from_json(tensor: InputTensor) -> npt.NDArray[Any]:
    name, datatype, count = tensor.name, tensor.datatype, math.prod(tensor.shape)
    if count == 0 and tensor.data == []:
        return np.empty(tensor.shape, DTYPES[datatype])
    array = to_numbers(name, tensor.data)
    if array.size != count:
        raise bad_request(f"Expected {count} numbers of {name!r} in data, but got {array.size}")
    if DTYPES[datatype].kind == "f":
        return array.astype(DTYPES[datatype]).reshape(tensor.shape)
    if array.dtype.kind == "f":
        raise bad_request(f"Expected {name!r} to hold integers of {datatype}, but got others")
    return to_integers(name, datatype, array).reshape(tensor.shape)


def _check_state(manifest: LanguageManifest, state: Mapping[str, npt.NDArray[Any]], tokens: tuple[int, ...]) -> None:
    pasts: set[int] = set()
    for entry in manifest.states:
        value = state[entry.input]
        if value.shape[entry.shape.index(BATCH)] != tokens[0]:
            raise bad_request(f"Expected {entry.input!r} of {tokens[0]} sequences, but got {list(value.shape)}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise bad_request(f"Expected {entry.input!r} to hold finite numbers, but got others")
        if PAST in entry.shape:
            pasts.add(value.shape[entry.shape.index(PAST)])
    if len(pasts) > 1:
        raise bad_request(f"Expected states of one and the same number of tokens, but got {sorted(pasts)}")
    longest = max(pasts, default=0) + tokens[1]
    if manifest.context is not None and longest > manifest.context:
        raise bad_request(f"Expected at most {manifest.context} tokens, the model's context, but got {longest}")


def _wanted(request: InferRequest, manifest: LanguageManifest) -> list[RequestedOutput]:
    names = [tensor.name for tensor in declared_outputs(manifest)]
    if not request.outputs:
        return [RequestedOutput(name, request.binary) for name in names]
    wanted = {output.name: output for output in request.outputs}
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise bad_request(f"Expected outputs among {names}, but got {shown(unknown[0])}")
    return list(wanted.values())
