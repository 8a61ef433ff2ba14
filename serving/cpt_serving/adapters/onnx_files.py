"""The adapter of whole tensors: of ONNX files without a bundle, and of bundles whose calls are not joined."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.bundle.bare import STRING
from cpt_deploy.signature import TensorSpec
from cpt_serving.adapters.adapter import Adapter, Received
from cpt_serving.adapters.description import example_inputs
from cpt_serving.adapters.samples import Samples
from cpt_serving.adapters.signature_model import refused_values
from cpt_serving.adapters.trust import require_trust
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Outcome, Tensors
from cpt_serving.oip.schemas import InferRequest
from cpt_serving.oip.tensors import Array, described, row_bytes, to_dtype
from cpt_serving.settings import ServeSettings
from cpt_serving.web.bodies import charge
from cpt_serving.web.errors import bad_request
from cpt_serving.web.json_bodies import parse_object
from cpt_serving.web.numbers import to_numbers
from cpt_serving.web.shown import near_name, shown
from cpt_serving.web.uploads import EncodedImage

_COPIES_IN_JSON = 4


class FileAdapter(Adapter):
    """A bare ONNX file, or a bundle whose rows are not independent.

    A file with independent rows is served as a bundle of tensors is. Otherwise each request is computed by itself,
    and its tensors have the shapes that the signature states.
    """

    def __init__(self, bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        super().__init__(bundle, settings, memory)
        texts = any(spec.dtype == STRING for spec in (*self.signature.inputs, *self.signature.outputs))
        self._joined = bundle.signature.joins_rows and not texts

    def load(self) -> None:
        """See `Model`; a bare file has no golden sample to reproduce."""
        if not self.bundle.bare:
            super().load()
            return
        require_trust(self.bundle, self.settings)
        # From its path, since external data may be beside it.
        self._model = OnnxRuntimeModel(
            self.bundle.path, self.signature, threads=self.settings.threads, provider=self.settings.provider
        )

    def rows(self, inputs: Tensors) -> int:
        """See `Model`; a request that is not joined counts as one row."""
        return super().rows(inputs) if self._joined else 1

    def batch_key(self, inputs: Tensors) -> Hashable:
        """See `Model`."""
        return super().batch_key(inputs) if self._joined else object()

    def largest_batch(self, inputs: Tensors) -> int:
        """See `Model`."""
        return super().largest_batch(inputs) if self._joined else 1

    def declared_rows(self, request: InferRequest) -> int:
        """See `Adapter`."""
        return super().declared_rows(request) if self._joined else 1

    def complete(self, inputs: Tensors, copies: int = _COPIES_IN_JSON) -> Tensors:
        """See `Adapter`; sizes that are not joined need not agree with each other."""
        if self._joined:
            return super().complete(inputs, copies)
        self._require_inputs(list(inputs))
        sizes: dict[str, int] = {}
        for spec in self.signature.inputs:
            for size, found in zip(spec.whole_shape, inputs[spec.name].shape, strict=True):
                if isinstance(size, str):
                    sizes[size] = max(found, sizes.get(size, 0))
                    if found > self.settings.max_free_size:
                        most = self.settings.max_free_size
                        raise bad_request(f"Expected a {size} of at most {most}, the limit here, but got {found}")
        whole = [TensorSpec(spec.name, spec.dtype, spec.whole_shape, None) for spec in self.signature.outputs]
        charge(copies * row_bytes(whole, sizes))
        return inputs

    def receive(self, content: list[EncodedImage] | bytes) -> Received:
        """See `Adapter`; inputs that are not joined are whole tensors by name."""
        if self._joined or not isinstance(content, bytes):
            return super().receive(content)
        body, names = parse_object(content), [spec.name for spec in self.signature.inputs]
        given = body.get("inputs")
        if len(body) != 1 or not isinstance(given, dict):
            raise bad_request(f'Expected {{"inputs": {{name: values}}}} with {names}, but got {shown(list(body))}')
        for name in given:
            if name not in names:
                raise bad_request(f"Expected inputs among {names}, but got {shown(name)}{near_name(name, names)}")
        self._require_inputs([name for name in names if name in given])
        return Received(
            1, lambda _: self.complete({spec.name: _whole(spec, given[spec.name]) for spec in self.signature.inputs})
        )

    def predictions(self, outputs: Tensors, top_k: int) -> Sequence[Any]:
        """See `Adapter`; a request that is not joined has one prediction, its outputs by name."""
        if self._joined:
            return super().predictions(outputs, top_k)
        return [{name: _plain(values) for name, values in outputs.items()}]

    def examples(self) -> dict[str, Any]:
        """See `Adapter`."""
        if self._joined:
            return super().examples()
        values = example_inputs(self.signature)
        return {} if not values else {"tensors": {"inputs": {name: array.tolist() for name, array in values.items()}}}

    def samples(self) -> Samples:
        """See `Adapter`; a row of zeros."""
        values = example_inputs(self.signature) if self._joined else None
        return Samples(rows=None if not values else {name: array.tolist() for name, array in values.items()})

    def _outcome(self, inputs: Tensors) -> Outcome:
        """See `Adapter`; sizes that do not fit each other are found only while the file runs."""
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

        try:
            return super()._outcome(inputs)
        except (Fail, RuntimeException) as error:
            return refused_values(error)


def _plain(values: Array) -> Any:
    if values.dtype.kind == "O" or not values.ndim:
        return values.tolist()
    return np.ascontiguousarray(values)


def _whole(spec: TensorSpec, value: Any) -> Array:
    """Return a tensor of JSON in the shape that the file states.

    Raises:
        RequestError: 400 for other values or another shape.
    """
    expected, scalar = described(spec).shape, not isinstance(value, list)
    if spec.dtype == STRING:
        values = np.array(value if isinstance(value, list) else [value], object)
        if not all(isinstance(each, str) for each in values.ravel()):
            raise bad_request(f"Expected {spec.name!r} to hold texts, but got {shown(value)}")
    else:
        values = to_dtype(spec, to_numbers(spec.name, [value] if scalar else value, booleans=spec.dtype == "bool"))
    values = values.reshape(()) if scalar else values
    fits = values.ndim == len(expected) and all(
        size in (-1, found) for size, found in zip(expected, values.shape, strict=True)
    )
    if not fits:
        raise bad_request(f"Expected {spec.name!r} of the shape {expected}, but got {list(values.shape)}")
    return values
