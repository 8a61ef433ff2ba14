"""The adapter of a model: requests to tensors, tensors to answers, by the model's signature alone.

Tasks whose requests hold something else, such as image files, name a subclass that overrides how an input is read and
how an answer is written.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.bundle.runtime.tensors import checked_sizes, initial_states
from cpt_deploy.errors import ValidationFailedError
from cpt_deploy.signature import BATCH, TensorSpec
from cpt_serving.adapters.description import first_row, row_examples
from cpt_serving.adapters.rows import parse_rows, read_rows
from cpt_serving.adapters.samples import Samples
from cpt_serving.adapters.trust import verified_onnx
from cpt_serving.inference.errors import InvalidRequestError
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Model, Outcome, Tensors
from cpt_serving.inference.threads import Work
from cpt_serving.oip.answers import OutputTensor, classes_of
from cpt_serving.oip.datatypes import FLOATS
from cpt_serving.oip.schemas import InferInput, InferRequest
from cpt_serving.oip.tensors import Array, output_tensor, read_tensor, row_bytes, wanted_outputs
from cpt_serving.settings import ServeSettings
from cpt_serving.web.bodies import charge
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.shown import shown
from cpt_serving.web.uploads import EncodedImage, check_rows

_BATCH_BYTES = 16_000_000
"""Maximum bytes of a batch's outputs without states, so that large ones need little memory and block others shortly."""

_COPIES_IN_JSON = 4
"""Memory of outputs and of their JSON, in sizes of the outputs."""

_LIGHT, _LIGHT_BYTES = {*FLOATS, "INT64"}, 1 << 20


class Received(NamedTuple):
    """The content of a request to `/predict`, not yet read.

    Args:
        rows: Number of rows.
        read: Returns the model's inputs; call it in a thread.
    """

    rows: int
    read: Callable[[Work], Tensors]


class Adapter(Model):
    """One version of a model of any signature.

    Args:
        bundle: Bundle of the model.
        settings: Threads, provider, checks and limits.
        memory: Memory for decoding.
    """

    form: ClassVar[str] = "tensors"
    """The form on the page for its requests: "tensors", "image" or "text"."""

    labels: Sequence[str] = ()
    """Names of the classes, if the outputs are those of a classifier."""

    _model: OnnxRuntimeModel | None = None

    def __init__(self, bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        self.bundle, self.settings, self.memory = bundle, settings, memory
        self.signature = signature = bundle.signature
        self._states = {before for before, _ in signature.states}
        self._required = [spec.name for spec in signature.inputs if spec.name not in self._states]
        smallest = {name: max(1, free.least) for name, free in signature.free.items()}
        self.row_bytes = max(1, row_bytes((*signature.inputs, *signature.outputs), smallest))
        states = {after for _, after in signature.states}
        self._outputs = tuple(spec.name for spec in signature.outputs)
        self._made = [spec for spec in signature.outputs if spec.name not in states]
        self._output_bytes = None if signature.free else row_bytes(signature.outputs, {})

    def load(self) -> None:
        """See `Model`; compares the outputs of the golden sample, or with golden=labels where they are largest."""
        bundle, settings = self.bundle, self.settings
        onnx = verified_onnx(bundle, settings)
        model = OnnxRuntimeModel(onnx, self.signature, threads=settings.threads, provider=settings.provider)
        check = model.reproduce_golden(bundle.golden)
        if not (settings.golden == "off" or check.reproduced or (settings.golden == "labels" and check.same_labels)):
            how_far = str(check.worst_difference) if check.tolerance is None else f"{check.worst:.3g}"
            raise ValidationFailedError(
                f"Expected {bundle.name} to reproduce its golden sample, but {check.mismatches} of {check.values} "
                f"{check.what} differ, by up to {how_far}, and the largest outputs "
                f"{'agree' if check.same_labels else 'differ'}",
                hint="other instruction sets and providers may round differently: `cpt validate` measures it, "
                "the setting golden=labels accepts it",
            )
        self._model = model

    def rows(self, inputs: Tensors) -> int:
        """See `Model`."""
        return len(inputs[self._required[0]])

    def batch_key(self, inputs: Tensors) -> Hashable:
        """See `Model`; requests of the same free sizes are computed together."""
        if not self.signature.free:
            return None
        return tuple([inputs[spec.name].shape[1:] for spec in self.signature.inputs])

    def largest_batch(self, inputs: Tensors) -> int:
        """See `Model`."""
        if not self.signature.free:
            return self.settings.max_batch
        size = row_bytes(self._made, checked_sizes(self.signature, inputs))
        return min(self.settings.max_batch, _BATCH_BYTES // max(1, size))

    def run(self, requests: Sequence[Tensors]) -> Sequence[Outcome]:
        """See `Model`."""
        if len(requests) == 1:
            return [self._outcome(requests[0])]
        names = requests[0].keys()
        outputs = self._outcome({name: np.concatenate([each[name] for each in requests]) for name in names})
        if isinstance(outputs, Exception):
            # One of the requests may have values that the model does not take.
            return [self._outcome(each) for each in requests]
        outcomes, end = [], 0
        for each in requests:
            start, end = end, end + self.rows(each)
            parts = {name: values[start:end] for name, values in outputs.items()}
            # A state is kept for the next call, and must not keep the whole batch.
            outcomes.append({name: part.copy() for name, part in parts.items()} if self._states else parts)
        return outcomes

    def declared_rows(self, request: InferRequest) -> int:
        """Return the number of rows that a request declares, at least 1; `decode` verifies it."""
        rows = 1
        for tensor in request.inputs:
            if tensor.shape and tensor.shape[0] > rows:
                rows = tensor.shape[0]
        return rows if rows == 1 else min(rows, self.settings.max_rows)

    def is_light(self, request: InferRequest) -> bool:
        """Return whether `decode` takes no longer than handing work to a thread.

        Args:
            request: A request whose JSON is short.
        """
        for tensor in request.inputs:
            raw = tensor.raw
            if tensor.datatype not in _LIGHT or (raw is not None and raw.nbytes > _LIGHT_BYTES):
                return False
        return True

    def decode(self, request: InferRequest, work: Work) -> Tensors:
        """Return the inputs in a request of the Open Inference Protocol; call it in a thread unless it `is_light`.

        Raises:
            RequestError: 400 or 413, with the expectation; 503 if there is no memory for the outputs at present.
            AbandonedError: If nobody waits for the inputs any more.
        """
        copies = 1 if all(wish.binary for wish in wanted_outputs(request, self._outputs)) else _COPIES_IN_JSON
        given = {tensor.name: tensor for tensor in request.inputs}
        self._require_inputs([tensor.name for tensor in request.inputs])
        for tensor in request.inputs:
            check_rows(tensor.shape[0] if tensor.shape else 0, self.settings.max_rows)
        specs = [spec for spec in self.signature.inputs if spec.name in given]
        return self.complete({spec.name: self.read(spec, given[spec.name], work) for spec in specs}, copies)

    def read(self, spec: TensorSpec, tensor: InferInput, work: Work) -> Array:
        """Return the array of an input; see `read_tensor`.

        Raises:
            RequestError: 400 or 413, with the expectation.
            AbandonedError: If nobody waits for the inputs any more.
        """
        return read_tensor(spec, tensor)

    def complete(self, inputs: Tensors, copies: int = _COPIES_IN_JSON) -> Tensors:
        """Return the inputs of a call with initial states if it has none, after checking their sizes.

        Args:
            inputs: Arrays by name, in the dtypes of the signature.
            copies: Memory that is reserved until the request is over, in sizes of the outputs.

        Raises:
            RequestError: 400 if inputs are missing or their sizes do not fit; 413 for too many rows or bytes; 503 if
                there is no memory at present.
        """
        signature = self.signature
        self._require_inputs(list(inputs))
        sizes = self._sizes(inputs)
        if not sizes[BATCH]:
            raise bad_request("Expected at least one row, but got none")
        check_rows(sizes[BATCH], self.settings.max_rows)
        for name, free in signature.free.items():
            if free.most is None and sizes.get(name, 0) > self.settings.max_free_size:
                raise bad_request(
                    f"Expected a {name} of at most {self.settings.max_free_size}, the limit here, but got {sizes[name]}"
                )
        size = row_bytes(signature.outputs, sizes) if self._output_bytes is None else self._output_bytes
        charge(copies * sizes[BATCH] * size)
        return inputs if len(inputs) == len(signature.inputs) else {**inputs, **initial_states(signature, sizes)}

    def encode(self, request: InferRequest, outputs: Tensors) -> Sequence[OutputTensor]:
        """Return the outputs that the client requested, in the requested form."""
        return [
            classes_of(wish.name, outputs[wish.name], self.labels, wish.classes, binary=wish.binary)
            if wish.classes
            else output_tensor(wish, outputs[wish.name])
            for wish in wanted_outputs(request, self._outputs)
        ]

    def receive(self, content: list[EncodedImage] | bytes) -> Received:
        """Return what a request to `/predict` holds, JSON or files; call it in a thread.

        Raises:
            RequestError: 400, 413 or 415, with the expectation.
        """
        if not isinstance(content, bytes):
            raise RequestError(415, f"Expected JSON with rows of {self._required}, but got a file")
        specs, features = self.signature.inputs, getattr(self.bundle.processor, "features", {})
        columns = parse_rows(content, specs, self._required, features)
        rows = max(map(len, columns.values()))
        check_rows(rows, self.settings.max_rows)
        return Received(rows, lambda _: self.complete(read_rows(columns, specs)))

    def predictions(self, outputs: Tensors, top_k: int) -> Sequence[Any]:
        """Return the prediction for each row of the outputs, for JSON; here its outputs by name.

        Args:
            outputs: Outputs of the model.
            top_k: Number of classes, of a classifier.
        """
        numbers = {spec.name for spec in self.signature.outputs if spec.shape in {(), (1,)}}
        return [
            {
                name: row.reshape(-1)[0] if name in numbers else np.ascontiguousarray(row)
                for name, row in zip(outputs, rows, strict=True)
            }
            for rows in zip(*outputs.values(), strict=True)
        ]

    def examples(self) -> dict[str, Any]:
        """Return bodies for `/predict` by title, as JSON types."""
        return row_examples(self.signature)

    def facts(self) -> dict[str, int | str | None]:
        """Return what the page says of the model's requests and answers, by words."""
        signature = self.signature
        parts = {"inputs": signature.inputs, "outputs": signature.outputs}
        return {part: ", ".join(spec.name for spec in specs) for part, specs in parts.items()}

    def samples(self) -> Samples:
        """Return the golden inputs as the page offers them: here the rows as JSON, if they are few numbers."""
        return Samples(rows=first_row(self.bundle))

    def sample_png(self, index: int) -> bytes:
        """Return a golden input as a PNG file.

        Raises:
            IndexError: If there is no input of this number, or inputs are no images.
        """
        raise IndexError(index)

    def _sizes(self, inputs: Tensors) -> dict[str, int]:
        """Return the size of the batch and of free dimensions; arrays match the fixed sizes of the signature already.

        Raises:
            RequestError: 400 if they contradict each other.
        """
        rows = {len(values) for values in inputs.values()}
        if len(rows) == 1 and not self.signature.free:  # fast path, for each request
            return {BATCH: rows.pop()}
        try:
            return checked_sizes(self.signature, inputs)
        except ValueError as error:
            raise bad_request(str(error)) from error

    def _require_inputs(self, names: list[str]) -> None:
        """Raise a `RequestError`, 400, unless a request has each input once, and either all states or none."""
        if names == self._required:
            return
        given, required = set(names), set(self._required)
        if len(given) < len(names) or given not in (required, required | self._states):
            states = f", and all or none of the states {sorted(self._states)}" if self._states else ""
            expected = f"Expected each of the inputs {self._required} once{states}"
            raise bad_request(f"{expected}, but got {shown(names)}")

    def _outcome(self, inputs: Tensors) -> Outcome:
        """Return the outputs for inputs, or the error if the model does not take their values."""
        assert self._model is not None, "the engine asks only a model that is loaded"
        try:
            return self._model.run_checked(inputs)
        except Exception as error:
            from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

            if not isinstance(error, InvalidArgument):
                raise
            reason = str(error).rpartition("Status Message: ")[2].partition("\n")[0]
            return InvalidRequestError(f"Expected values that the model takes, but onnxruntime got: {reason:.200}")
