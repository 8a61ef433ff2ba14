"""Make the golden sample of an exported language model, with a tolerance for other machines."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Golden, OnnxRuntimeModel
from cpt_deploy.errors import BundleError
from cpt_deploy.export.language.kinds import language_signature
from cpt_deploy.integer.language import IntegerLanguageModel, read_integer_model
from cpt_deploy.signature import OUTPUT_NAME, TOKENS_NAME

GOLDEN_ROWS, GOLDEN_TOKENS = 4, 16
_GOLDEN_LOGITS = 1_000_000
"""Maximum number of golden logits, which are stored for each token."""

_COMPARED_ROWS, _COMPARED_LOGITS = 64, 4_000_000
"""Rows of the text, and maximum number of logits, on which the effect of the last digits of floats is measured. A
changed quantized value is rare but changes logits by much more, so the few golden tokens alone may show none."""
_LAST_PLACES = 2.0**-22
"""Relative change of floats to measure this effect: onnxruntime on this machine may compute the executor's floats."""
_TOLERATED = 4.0
"""Ratio of the tolerance to the difference that is measured at export."""
_LEAST_TOLERANCE = 1e-5
"""Minimum tolerance as a share of the largest logit: a few units in the last place of float32."""


def golden_tokens(model: IntegerLanguageModel, onnx: bytes, text: npt.NDArray[np.integer[Any]]) -> Golden:
    """Return the first tokens of a text with the executor's logits and the tolerance of a runtime's.

    Raises:
        BundleError: If the text has no token.
    """
    if len(text) == 0:
        raise BundleError("Expected a text for the golden sample, but got an empty one")
    count = min(GOLDEN_TOKENS, len(text), model.context or GOLDEN_TOKENS)
    rows = min(_COMPARED_ROWS, _COMPARED_LOGITS // (count * model.vocabulary))
    rows = max(1, min(max(rows, GOLDEN_ROWS), len(text) // count))
    tokens = np.ascontiguousarray(text[: rows * count], np.int64).reshape(rows, count)
    logits = model.run(tokens)[0]
    served = OnnxRuntimeModel(onnx, language_signature(model)).run({TOKENS_NAME: tokens})[OUTPUT_NAME]
    others = served, _moved(model).run(tokens)[0]
    seen = max(float(np.abs(other - logits).max()) for other in others)
    tolerance = max(_TOLERATED * seen, _LEAST_TOLERANCE * float(np.abs(logits).max()))
    kept = max(1, min(count, _GOLDEN_LOGITS // (GOLDEN_ROWS * model.vocabulary)))
    return Golden(
        {TOKENS_NAME: np.ascontiguousarray(tokens[:GOLDEN_ROWS, :kept])},
        {OUTPUT_NAME: np.ascontiguousarray(logits[:GOLDEN_ROWS, :kept])},
        tolerances={OUTPUT_NAME: tolerance},
    )


def _moved(model: IntegerLanguageModel) -> IntegerLanguageModel:
    """Return a model with slightly changed floats and the same integers."""
    generator = np.random.default_rng(0)

    def moved(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.dtype != np.float32:
            return array
        by = generator.uniform(-_LAST_PLACES, _LAST_PLACES, array.shape).astype(np.float32)
        return np.asarray(array * (np.float32(1) + by), np.float32)

    return read_integer_model(model.describe(), {name: moved(array) for name, array in model.arrays().items()})
