"""The adapter of text generation: tokens and state in, logits and state out; or text in and text out."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.language import (
    BATCH,
    LOGITS_NAME,
    PAST,
    TOKENS_NAME,
    LanguageBundle,
    LanguageManifest,
    LanguageModel,
    State,
)
from cpt_deploy.errors import ValidationFailedError
from cpt_serving.adapters.adapter import Generates
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Tensors
from cpt_serving.inference.threads import Work
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.schemas import InferRequest
from cpt_serving.oip.tensors import DeclaredTensor, output_tensors, read_tensors, wanted_outputs
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.shown import shown

_LOGITS_AT_ONCE = 4_000_000
"""Maximum logits of one call, so that a long text with a large vocabulary needs little memory and does not block other
requests for long."""

_LONGEST_CHUNK = 128


class TextGeneration(Generates):
    """One version of a language model."""

    kind = "text"
    bundle: LanguageBundle

    def __init__(self, bundle: LanguageBundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        super().__init__(bundle, settings, memory)
        manifest = bundle.manifest
        self.manifest, self.text = manifest, bundle.text
        given = [DeclaredTensor(state.input, state.datatype, state.shape) for state in manifest.states]
        made = [DeclaredTensor(state.output, state.datatype, state.shape) for state in manifest.states]
        self.inputs = [DeclaredTensor(TOKENS_NAME, "INT64", (BATCH, "time")), *given]
        self.outputs = [DeclaredTensor(LOGITS_NAME, "FP32", (BATCH, "time", manifest.vocabulary)), *made]
        self.row_bytes = 4 * manifest.vocabulary
        self.chunk = max(1, min(_LONGEST_CHUNK, _LOGITS_AT_ONCE // manifest.vocabulary))
        most = settings.max_prompt_tokens
        self._longest = most if manifest.context is None else min(manifest.context, most)
        self._model: LanguageModel | None = None

    def load(self) -> None:
        """See `Adapter`; compares the golden logits within their tolerance, or with golden=labels the best tokens."""
        bundle, settings = self.bundle, self.settings
        model = LanguageModel(
            self.verified_onnx(), bundle.manifest, threads=settings.threads, provider=settings.provider
        )
        check = model.reproduce_golden(bundle.golden)
        if not (settings.golden == "off" or check.within or (settings.golden == "labels" and check.same_tokens)):
            raise ValidationFailedError(
                f"Expected {bundle.name} to reproduce its golden logits within {bundle.golden.tolerance:.3g}, but they "
                f"differ by up to {check.worst:.3g} and the most probable tokens "
                f"{'agree' if check.same_tokens else 'differ'}",
                hint="other instruction sets and providers may round differently: `cpt validate` measures it, "
                "the setting golden=labels accepts it",
            )
        self._model = model

    def rows(self, inputs: Tensors) -> int:
        """See `Adapter`."""
        return len(inputs[TOKENS_NAME])

    def batch_key(self, inputs: Tensors) -> Hashable:
        """Calls of equally many tokens are batched, and if the state grows with the text, after equally many tokens."""
        return inputs[TOKENS_NAME].shape[1], self.manifest.past_of(inputs)

    def largest_batch(self, inputs: Tensors) -> int:
        """See `Adapter`."""
        logits = inputs[TOKENS_NAME].shape[1] * self.manifest.vocabulary
        return int(min(self.settings.max_batch, _LOGITS_AT_ONCE // logits))

    def run(self, requests: Sequence[Tensors]) -> Sequence[Tensors]:
        """See `Adapter`."""
        if len(requests) == 1:
            return [self._outputs(*self._run(requests[0][TOKENS_NAME], requests[0]))]
        tokens = np.concatenate([request[TOKENS_NAME] for request in requests])
        logits, state = self._run(tokens, self.manifest.joined(requests))
        outputs: list[Tensors] = []
        start = 0
        for request in requests:
            rows = slice(start, start + len(request[TOKENS_NAME]))
            outputs.append(self._outputs(logits[rows], self.manifest.rows_of(state, rows)))
            start = rows.stop
        return outputs

    def decode(self, request: InferRequest, _work: Work) -> Tensors:
        """See `Adapter`; states missing from a request are the initial ones."""
        wanted_outputs(request, self.outputs)
        manifest, settings, most = self.manifest, self.settings, self.settings.max_rows
        tensors = read_tensors(request.inputs, self.inputs)
        if TOKENS_NAME not in tensors:
            raise bad_request(f"Expected the input {TOKENS_NAME!r}, but got {shown(sorted(tensors))}")
        tokens = tensors[TOKENS_NAME]
        if not tokens.size > 0 or len(tokens) > most:
            raise bad_request(
                f"Expected {TOKENS_NAME!r} of 1 to {most} sequences, but got the shape {list(tokens.shape)}"
            )
        if tokens.min() < 0 or tokens.max() >= manifest.vocabulary:
            raise bad_request(
                f"Expected tokens in 0..{manifest.vocabulary - 1}, but got {tokens.min()}..{tokens.max()}"
            )
        if tokens.shape[1] > self._longest:
            raise bad_request(f"Expected at most {self._longest} tokens, but got {tokens.shape[1]}")
        if tokens.size > (room := settings.queue_bytes // (4 * manifest.vocabulary)):
            raise RequestError(
                413, f"Expected at most {room} tokens, for whose logits there is memory, but got {tokens.size}"
            )
        inputs = manifest.initial_state(len(tokens)) | tensors
        _check_state(manifest, inputs, tokens.shape)
        return inputs

    def encode(self, request: InferRequest, outputs: Tensors) -> Sequence[OutputTensor]:
        """See `Adapter`."""
        return output_tensors(wanted_outputs(request, self.outputs), self.outputs, outputs)

    def evidence(self) -> dict[str, Any]:
        """See `Adapter`."""
        return {"vocabulary": self.manifest.vocabulary, "context": self.manifest.context}

    def inputs_of(self, tokens: npt.NDArray[np.int64], outputs: Tensors | None) -> Tensors:
        """See `Generates`."""
        if outputs is None:
            return {TOKENS_NAME: tokens, **self.manifest.initial_state(len(tokens))}
        return {TOKENS_NAME: tokens, **{state.input: outputs[state.output] for state in self.manifest.states}}

    def tokens_of(self, text: str) -> list[int]:
        """See `Generates`."""
        tokens = self.text.encode(text)
        if len(tokens) > self._longest:
            what = "context of the model" if self._longest == self.manifest.context else "limit here"
            raise bad_request(f"Expected a text of at most {self._longest} tokens, the {what}, but got {len(tokens)}")
        return tokens

    def _run(self, tokens: npt.NDArray[np.int64], tensors: Tensors) -> tuple[npt.NDArray[np.float32], State]:
        assert self._model is not None, "the engine asks only a model that is loaded"
        return self._model.run(tokens, {state.input: tensors[state.input] for state in self.manifest.states})

    def _outputs(self, logits: npt.NDArray[np.float32], state: State) -> Tensors:
        return {LOGITS_NAME: logits, **{each.output: state[each.input] for each in self.manifest.states}}


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
