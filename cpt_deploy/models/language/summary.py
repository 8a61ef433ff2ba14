"""Count the parameters and multiply-accumulates of a language model."""

from typing import Any

import torch

from cpt_deploy.models.language.catalog import build_language_model
from cpt_deploy.models.summary import ModelSummary
from cpt_deploy.quantization import QuantizationConfig, prepare_language_model


def describe_language_model(name: str, vocabulary: int, **args: Any) -> ModelSummary:
    """Count a language model's parameters, and the multiply-accumulates of its layers per token.

    Args:
        name: Name or import path, as for `build_language_model`.
        vocabulary: Number of different tokens.
        **args: Further arguments of the model.

    Raises:
        UsageError: As `build_language_model`.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_language_model(name, vocabulary, **args)
    layers = prepare_language_model(network, QuantizationConfig()).layers()
    return ModelSummary(
        sum(parameter.numel() for parameter in network.parameters()), sum(layer.macs for layer in layers)
    )
