"""The adapter of text generation: tokens and state in, logits and state out; or text in and text out."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel, TextProcessor, initial_states, next_states
from cpt_deploy.bundle.processors.text_processor import context_of
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.errors import ValidationFailedError
from cpt_deploy.signature import BATCH, TOKENS_NAME, TensorSpec
from cpt_serving.adapters.adapter import Generates
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Tensors
from cpt_serving.inference.threads import Work
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.datatypes import DATATYPES
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

    def __init__(self, bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        super().__init__(bundle, settings, memory)
        self.text = bundle.expect_processor(TextProcessor)
        self.context, vocabulary = context_of(bundle.signature), self.text.size
        self.inputs, self.outputs = (
            [_declared(tensor) for tensor in tensors] for tensors in (bundle.signature.inputs, bundle.signature.outputs)
        )
        self.row_bytes = 4 * vocabulary
        self.chunk = max(1, min(_LONGEST_CHUNK, _LOGITS_AT_ONCE // vocabulary))
        most = settings.max_prompt_tokens
        self._longest = most if self.context is None else min(self.context, most)
        self._model: OnnxRuntimeModel | None = None

    def load(self) -> None:
        """See `Adapter`; compares the golden logits within their tolerance, or with golden=labels the best tokens."""
        bundle, settings = self.bundle, self.settings
        model = OnnxRuntimeModel(
            self.verified_onnx(), bundle.signature, threads=settings.threads, provider=settings.provider
        )
        check = model.reproduce_golden(bundle.golden)
        if not (settings.golden == "off" or check.reproduced or (settings.golden == "labels" and check.same_labels)):
            raise ValidationFailedError(
                f"Expected {bundle.name} to reproduce its golden sample, but {check.mismatches} of {check.values} "
                f"{check.what} differ, by up to {check.worst:.3g}, and the most probable tokens "
                f"{'agree' if check.same_labels else 'differ'}",
                hint="other instruction sets and providers may round differently: `cpt validate` measures it, "
                "the setting golden=labels accepts it",
            )
        self._model = model

    def rows(self, inputs: Tensors) -> int:
        """See `Adapter`."""
        return len(inputs[TOKENS_NAME])

    def batch_key(self, inputs: Tensors) -> Hashable:
        """Calls of equally many tokens are batched, and if the state grows with the text, after equally many tokens."""
        return tuple(inputs[tensor.name].shape[1:] for tensor in self.bundle.signature.inputs)

    def largest_batch(self, inputs: Tensors) -> int:
        """See `Adapter`."""
        logits = inputs[TOKENS_NAME].shape[1] * self.text.size
        return int(min(self.settings.max_batch, _LOGITS_AT_ONCE // logits))

    def run(self, requests: Sequence[Tensors]) -> Sequence[Tensors]:
        """See `Adapter`."""
        assert self._model is not None, "the engine asks only a model that is loaded"
        if len(requests) == 1:
            return [self._model.run(requests[0])]
        joined = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
        together = self._model.run(joined)
        outputs: list[Tensors] = []
        start = 0
        for request in requests:
            rows = slice(start, start + len(request[TOKENS_NAME]))
            # copies, so that the state of one text does not keep those of the others in memory
            outputs.append({name: array[rows].copy() for name, array in together.items()})
            start = rows.stop
        return outputs

    def decode(self, request: InferRequest, _work: Work) -> Tensors:
        """See `Adapter`; states missing from a request are the initial ones."""
        wanted_outputs(request, self.outputs)
        vocabulary, settings, most = self.text.size, self.settings, self.settings.max_rows
        tensors = read_tensors(request.inputs, self.inputs)
        if TOKENS_NAME not in tensors:
            raise bad_request(f"Expected the input {TOKENS_NAME!r}, but got {shown(sorted(tensors))}")
        tokens = tensors[TOKENS_NAME]
        if not tokens.size > 0 or len(tokens) > most:
            raise bad_request(
                f"Expected {TOKENS_NAME!r} of 1 to {most} sequences, but got the shape {list(tokens.shape)}"
            )
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            raise bad_request(f"Expected tokens in 0..{vocabulary - 1}, but got {tokens.min()}..{tokens.max()}")
        if tokens.shape[1] > self._longest:
            raise bad_request(f"Expected at most {self._longest} tokens, but got {tokens.shape[1]}")
        if tokens.size > (room := settings.queue_bytes // (4 * vocabulary)):
            raise RequestError(
                413, f"Expected at most {room} tokens, for whose logits there is memory, but got {tokens.size}"
            )
        try:
            inputs = checked_inputs(self.bundle.signature, tensors)
        except ValueError as error:
            raise bad_request(str(error)) from error
        self._check_states(inputs)
        return inputs

    def encode(self, request: InferRequest, outputs: Tensors) -> Sequence[OutputTensor]:
        """See `Adapter`."""
        return output_tensors(wanted_outputs(request, self.outputs), self.outputs, outputs)

    def evidence(self) -> dict[str, Any]:
        """See `Adapter`."""
        return {"vocabulary": self.text.size, "context": self.context}

    def inputs_of(self, tokens: npt.NDArray[np.int64], outputs: Tensors | None) -> Tensors:
        """See `Generates`."""
        signature = self.bundle.signature
        states = initial_states(signature, {BATCH: len(tokens)}) if outputs is None else next_states(signature, outputs)
        return {TOKENS_NAME: tokens, **states}

    def tokens_of(self, text: str) -> list[int]:
        """See `Generates`."""
        tokens = self.text.encode(text)
        if len(tokens) > self._longest:
            what = "context of the model" if self._longest == self.context else "limit here"
            raise bad_request(f"Expected a text of at most {self._longest} tokens, the {what}, but got {len(tokens)}")
        return tokens

    def _check_states(self, inputs: Tensors) -> None:
        """Check that states hold finite numbers, and that there is a place in the context for what was read before."""
        read = 0
        for before, _ in self.bundle.signature.states:
            value = inputs[before]
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise bad_request(f"Expected {before!r} to hold finite numbers, but got others")
            sizes = next(tensor.shape for tensor in self.bundle.signature.inputs if tensor.name == before)
            free = (found for size, found in zip(sizes, value.shape[1:], strict=True) if isinstance(size, str))
            read = max(read, *free, 0)
        longest = read + inputs[TOKENS_NAME].shape[1]
        if self.context is not None and longest > self.context:
            raise bad_request(f"Expected at most {self.context} tokens, the model's context, but got {longest}")


def _declared(tensor: TensorSpec) -> DeclaredTensor:
    return DeclaredTensor(tensor.name, DATATYPES[tensor.dtype], (BATCH, *tensor.shape))
