"""A model of any signature in onnxruntime: loading and checking it, and computing requests together."""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.bundle.runtime.tensors import checked_sizes
from cpt_deploy.errors import ValidationFailedError
from cpt_serving.adapters.trust import verified_onnx
from cpt_serving.inference.errors import InvalidRequestError
from cpt_serving.inference.model import Model, Outcome, Tensors
from cpt_serving.oip.tensors import row_bytes
from cpt_serving.settings import ServeSettings

_BATCH_BYTES = 16_000_000
"""Maximum bytes of a batch's outputs without states, and of the scores of an attention in it, so that large ones need
little memory and block others shortly."""
_SCORE_BYTES = 4
"""Bytes of an attention's score. The signature does not tell whether a model has an attention; if it has, there is a
score for each place of an input and each place before, also of the states."""


class SignatureModel(Model):
    """One version of a model of any signature; batches are rows of several requests, one after the other.

    Args:
        bundle: Bundle of the model.
        settings: Threads, provider, checks and the largest batch.
    """

    _model: OnnxRuntimeModel | None = None

    def __init__(self, bundle: Bundle, settings: ServeSettings) -> None:
        self.bundle, self.settings = bundle, settings
        self.signature = signature = bundle.signature
        self._states = {before for before, _ in signature.states}
        self._required = [spec.name for spec in signature.inputs if spec.name not in self._states]
        required = [spec for spec in signature.inputs if spec.name in self._required]
        self._lengths = [name for name in signature.free if any(name in spec.shape for spec in required)]
        smallest = {name: max(1, free.least) for name, free in signature.free.items()}
        self.row_bytes = max(1, row_bytes((*signature.inputs, *signature.outputs), smallest))
        states = {after for _, after in signature.states}
        self._made = [spec for spec in signature.outputs if spec.name not in states]

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
        sizes = checked_sizes(self.signature, inputs)
        places = sum(sizes.get(name, 0) for name in self.signature.free)
        scores = places * max((sizes[name] for name in self._lengths), default=0)
        size = max(1, row_bytes(self._made, sizes), _SCORE_BYTES * scores)
        return max(1, min(self.settings.max_batch, _BATCH_BYTES // size))

    def run(self, requests: Sequence[Tensors]) -> Sequence[Outcome]:
        """See `Model`."""
        if len(requests) == 1:
            return [self._in_slices(requests[0])]
        names = requests[0].keys()
        outputs = self._outcome({name: np.concatenate([each[name] for each in requests]) for name in names})
        if isinstance(outputs, Exception):
            # One of the requests may have values that the model does not take.
            return [self._in_slices(each) for each in requests]
        outcomes, end = [], 0
        for each in requests:
            start, end = end, end + self.rows(each)
            parts = {name: values[start:end] for name, values in outputs.items()}
            # A state is kept for the next call, and must not keep the whole batch.
            outcomes.append({name: part.copy() for name, part in parts.items()} if self._states else parts)
        return outcomes

    def _in_slices(self, inputs: Tensors) -> Outcome:
        """Return the outcome of one request, computed in slices of at most the largest batch.

        Intermediate results of a model can be much larger than its inputs and outputs, and count nowhere: how many rows
        are computed at a time limits them. With max_batch=1 a request is computed as a whole, since that is how models
        are served whose rows depend on each other.
        """
        rows = self.rows(inputs)
        if rows == 1 or self.settings.max_batch == 1 or rows <= (most := self.largest_batch(inputs)):
            return self._outcome(inputs)
        slices = math.ceil(rows / most)
        whole: dict[str, npt.NDArray[Any]] = {}
        for start, end in itertools.pairwise(rows * index // slices for index in range(slices + 1)):
            outputs = self._outcome({name: values[start:end] for name, values in inputs.items()})
            if isinstance(outputs, Exception):
                return outputs
            for name, values in outputs.items():
                if name not in whole:
                    whole[name] = np.empty((rows, *values.shape[1:]), values.dtype)
                elif whole[name].shape[1:] != values.shape[1:]:
                    return self._outcome(inputs)  # a size depends on the values of all rows
                whole[name][start:end] = values
        return whole

    def _outcome(self, inputs: Tensors) -> Outcome:
        """Return the outputs for inputs, or the error if the model does not take their values.

        Raises:
            RuntimeError: If the model has rows, but returns another number of them than it got.
        """
        assert self._model is not None, "the engine asks only a model that is loaded"
        try:
            outputs = self._model.run_checked(inputs)
        except Exception as error:
            from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

            if not isinstance(error, InvalidArgument):
                raise
            return refused_values(error)
        if self.signature.joins_rows:
            self._require_rows(outputs, len(inputs[self._required[0]]))
        return outputs

    def _require_rows(self, outputs: Tensors, rows: int) -> None:
        """Raise an error unless each output has a row for each of the inputs: else clients get those of others."""
        for name, values in outputs.items():
            if values.shape[:1] != (rows,):
                raise RuntimeError(
                    f"Expected {name!r} of {self.bundle.name} to have {rows} rows, one for each of the inputs, but got "
                    f"the shape {values.shape} (its rows are not independent of the batch: the setting max_batch=1 "
                    "computes each request on its own)"
                )


def refused_values(error: Exception) -> InvalidRequestError:
    """Return the error for values that onnxruntime does not take, without the places in its source."""
    reason = str(error).rpartition("Status Message: ")[2].partition("\n")[0]
    said = reason.partition(" was false. ")[2] or reason
    return InvalidRequestError(f"Expected values that the model takes, but onnxruntime got: {said:.200}")
