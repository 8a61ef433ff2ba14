"""The adapter of a model: requests to tensors, tensors to answers, by the model's signature alone.

Tasks whose requests hold something else, such as image files, name a subclass that overrides how an input is read and
how an answer is written.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.tensors import checked_sizes, initial_states
from cpt_deploy.signature import BATCH, TensorSpec
from cpt_serving.adapters.description import first_row, row_examples
from cpt_serving.adapters.rows import parse_rows, read_rows
from cpt_serving.adapters.samples import Samples
from cpt_serving.adapters.signature_model import SignatureModel
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Tensors
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


class Adapter(SignatureModel):
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

    def __init__(self, bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        super().__init__(bundle, settings)
        self.memory = memory
        self._outputs = tuple(spec.name for spec in self.signature.outputs)
        self._output_bytes = None if self.signature.free else row_bytes(self.signature.outputs, {})

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
