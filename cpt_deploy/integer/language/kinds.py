"""Freeze language models and read them back, each by the integer model of its kind."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from cpt_deploy.errors import BundleError, ConversionError
from cpt_deploy.integer.language.lstm import IntegerLstm, freeze_lstm
from cpt_deploy.integer.language.model import IntegerLanguageModel
from cpt_deploy.integer.language.transformer import IntegerTransformer, freeze_transformer
from cpt_deploy.models.language import LstmLanguageModel, TransformerLanguageModel
from cpt_deploy.quantization.language import QuantizedLanguageModel
from cpt_deploy.quantization.state.scheduled_model import WeightBits

_FREEZERS: dict[type, Callable[..., IntegerLanguageModel]] = {
    LstmLanguageModel: freeze_lstm,
    TransformerLanguageModel: freeze_transformer,
}
_KINDS: dict[str, type[IntegerLanguageModel]] = {kind.kind: kind for kind in (IntegerLstm, IntegerTransformer)}


def freeze_language_model(
    model: QuantizedLanguageModel, *, weight_bits: WeightBits = None, activation_bits: int | None = None
) -> IntegerLanguageModel:
    """Freeze a trained language model to integers.

    Args:
        model: The model, calibrated at the bits to be exported.
        weight_bits: Bits of the scheduled layers' weights, or of single layers by name; None is max_bits.
        activation_bits: Bits of the scheduled activations; None is max_bits.

    Raises:
        ConversionError: If its network has no integer form, its bits are more than 8, or a layer's input was never
            observed.
        UsageError: If bits are out of range.
    """
    for network, freeze in _FREEZERS.items():
        if isinstance(model.network, network):
            return freeze(model, weight_bits=weight_bits, activation_bits=activation_bits)
    raise ConversionError(
        f"Expected a language model that has an integer form, but got {type(model.network).__name__}",
        hint="those that have one are " + ", ".join(network.__name__ for network in _FREEZERS),
    )


def read_integer_model(description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> IntegerLanguageModel:
    """Rebuild a model from the results of its `describe` and `arrays`.

    Raises:
        BundleError: If the description is of no known kind, or a tensor is missing.
    """
    try:
        return _KINDS[description["type"]].from_arrays(description, arrays)
    except KeyError as error:
        raise BundleError(
            f"Expected the description of a language model of the kinds {', '.join(_KINDS)} with all of its tensors, "
            f"but got none of {error}"
        ) from error
