"""The protocol's inference and metadata for language models: tokens and state as tensors, in both directions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from cpt_deploy.bundle.language import BATCH, LOGITS_NAME, PAST, TOKENS_NAME, LanguageBundle, LanguageManifest, State
from cpt_serving.oip.datatypes import DTYPES, from_binary, to_binary
from cpt_serving.oip.requests import field, flag, parameters_of, parse_timeout, split_body, typed
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import bad_request
from cpt_serving.web.uploads import to_numbers

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LanguageRequest:
    """A request for one call of a language model.

    Args:
        tokens: int64 (N, T).
        state: What the client brought, or the state before the first token.
        outputs: Names of the outputs that it wants, each with whether as bytes.
        id: Comes back in the answer, if there is one.
        timeout_us: Microseconds within which the answer is worth having; 0 states none.
    """

    tokens: npt.NDArray[np.int64]
    state: State
    outputs: Mapping[str, bool]
    id: str | None
    timeout_us: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as the model declares it; dimensions that are text can be of any size."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @property
    def dims(self) -> list[int]:
        return [-1 if isinstance(size, str) else size for size in self.shape]


def model_metadata(bundle: LanguageBundle, versions: Sequence[str], platform: str) -> dict[str, Any]:
    """Return what a model takes and returns; -1 stands for sizes that are not fixed."""
    described = [
        [{"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.dims} for tensor in tensors]
        for tensors in (_inputs(bundle.manifest), _outputs(bundle.manifest))
    ]
    return {
        "name": bundle.name, "versions": list(versions), "platform": platform, "inputs": described[0],
        "outputs": described[1],
    }  # fmt: skip


def model_config(bundle: LanguageBundle, settings: ServeSettings) -> dict[str, Any]:
    """Return a model's configuration in Triton's form; 0 as the batch size says that shapes are given in full."""
    described = [
        [{"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": tensor.dims} for tensor in tensors]
        for tensors in (_inputs(bundle.manifest), _outputs(bundle.manifest))
    ]
    return {
        "name": bundle.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": described[0],
        "output": described[1],
        "instance_group": [
            {
                "name": bundle.name,
                "kind": "KIND_CPU" if settings.provider == "cpu" else "KIND_GPU",
                "count": settings.inferences_at_once,
            }
        ],
        "default_model_filename": bundle.onnx_path.name,
        "parameters": {"sha256": {"string_value": bundle.sha256}, "version": {"string_value": bundle.version}},
    }


def parse_language_request(body: bytes, json_bytes: int | None, bundle: LanguageBundle, rows: int) -> LanguageRequest:
    """Return a request; states that it does not bring are those before the first token.

    Args:
        body: The decompressed body.
        json_bytes: How many of its bytes are JSON; `None` means that all are.
        bundle: The model's.
        rows: Most sequences that a request may have.

    Raises:
        RequestError: 400 with what was expected.
    """
    content, raw = split_body(body, json_bytes)
    tensors = _read_inputs(content, raw, bundle.manifest)
    if TOKENS_NAME not in tensors:
        raise bad_request(f"Expected the input {TOKENS_NAME!r}, but got {sorted(tensors)!r:.200}")
    tokens = tensors.pop(TOKENS_NAME)
    count, vocabulary = len(tokens), bundle.manifest.vocabulary
    if not tokens.size > 0 or count > rows:
        raise bad_request(f"Expected {TOKENS_NAME!r} of 1 to {rows} sequences, but got the shape {list(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise bad_request(f"Expected tokens in 0..{vocabulary - 1}, but got {tokens.min()}..{tokens.max()}")
    state = bundle.manifest.initial_state(count) | tensors
    _check_state(bundle.manifest, state, tokens.shape)
    parameters = parameters_of("the request", content)
    identity = content.get("id")
    return LanguageRequest(
        tokens=tokens,
        state=state,
        outputs=_wanted(content, bundle.manifest, flag("binary_data_output", parameters)),
        id=None if identity is None else typed("id", identity, str, "text"),
        timeout_us=parse_timeout(parameters.get("timeout")),
    )


def render_language_answer(
    request: LanguageRequest, bundle: LanguageBundle, logits: npt.NDArray[np.float32], state: State
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how many of its bytes are JSON, if not all are."""
    values = {LOGITS_NAME: logits} | {entry.output: state[entry.input] for entry in bundle.manifest.states}
    declared = {tensor.name: tensor.datatype for tensor in _outputs(bundle.manifest)}
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary in request.outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": declared[name], "shape": list(values[name].shape)}
        if binary:
            parts.append(to_binary(declared[name], values[name]))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = np.ascontiguousarray(values[name]).reshape(-1)
        described.append(entry)
    answer: dict[str, Any] = {"model_name": bundle.name, "model_version": bundle.version}
    if request.id is not None:
        answer["id"] = request.id
    header = orjson.dumps({**answer, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([header, *parts]), len(header) if parts else None


def _inputs(manifest: LanguageManifest) -> list[_Tensor]:
    states = [_Tensor(state.input, state.datatype, state.shape) for state in manifest.states]
    return [_Tensor(TOKENS_NAME, "INT64", (BATCH, "time")), *states]


def _outputs(manifest: LanguageManifest) -> list[_Tensor]:
    states = [_Tensor(state.output, state.datatype, state.shape) for state in manifest.states]
    return [_Tensor(LOGITS_NAME, "FP32", (BATCH, "time", manifest.vocabulary)), *states]


def _read_inputs(content: dict[str, Any], raw: memoryview | None, manifest: LanguageManifest) -> Tensors:
    declared = {tensor.name: tensor for tensor in _inputs(manifest)}
    tensors: Tensors = {}
    left = memoryview(b"") if raw is None else raw
    for entry in field("the request", content, "inputs", list, "a list"):
        name = field("inputs", entry, "name", str, "text")
        if name not in declared or name in tensors:
            raise bad_request(f"Expected each of the inputs {list(declared)} at most once, but got {name!r:.100}")
        tensors[name], left = _read_tensor(declared[name], entry, left)
    if left.nbytes:
        raise bad_request(f"Expected no bytes behind those of the tensors, but got {left.nbytes}")
    return tensors


def _read_tensor(declared: _Tensor, entry: dict[str, Any], left: memoryview) -> tuple[npt.NDArray[Any], memoryview]:
    """Return a tensor, and the bytes that follow its own."""
    name = declared.name
    shape = field("inputs", entry, "shape", list, "a list of sizes")
    datatype = field("inputs", entry, "datatype", str, "text")
    fits = len(shape) == len(declared.shape) and all(
        type(size) is int and size >= 0 and (isinstance(expected, str) or size == expected)
        for size, expected in zip(shape, declared.shape, strict=False)
    )
    if datatype != declared.datatype or not fits:
        raise bad_request(
            f"Expected {name!r} as {declared.datatype} of the shape {declared.dims}, but got {datatype!r:.50} "
            f"of {shape!r:.100}"
        )
    size = parameters_of(f"input {name!r}", entry).get("binary_data_size")
    if size is None:
        return _from_json(name, datatype, shape, entry.get("data")), left
    if type(size) is not int or not 0 <= size <= left.nbytes:
        raise bad_request(f"Expected {size!r:.100} bytes of {name!r} after the JSON, but got {left.nbytes}")
    return from_binary(name, datatype, shape, left[:size]).copy(), left[size:]


def _from_json(name: str, datatype: str, shape: list[int], data: object) -> npt.NDArray[Any]:
    dtype = DTYPES[datatype]
    if math.prod(shape) == 0 and data == []:
        return np.empty(shape, dtype)
    array = to_numbers(name, data)
    if array.size != math.prod(shape):
        raise bad_request(f"Expected {math.prod(shape)} numbers of {name!r} in data, but got {array.size}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.dtype.kind == "f" or array.min() < limits.min or array.max() > limits.max:
            raise bad_request(f"Expected {name!r} to hold integers of {datatype}, but got others")
    return array.astype(dtype).reshape(shape)


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


def _wanted(content: dict[str, Any], manifest: LanguageManifest, binary: bool) -> dict[str, bool]:
    names = [tensor.name for tensor in _outputs(manifest)]
    listed = typed("outputs", content.get("outputs") or [], list, "a list")
    if not listed:
        return dict.fromkeys(names, binary)
    wanted: dict[str, bool] = {}
    for entry in listed:
        name = field("outputs", entry, "name", str, "text")
        if name not in names:
            raise bad_request(f"Expected outputs among {names}, but got {name!r:.100}")
        wanted[name] = flag("binary_data", parameters_of(f"output {name!r}", entry), default=binary)
    return wanted
