"""Count the parameters and multiply-accumulates of a language model."""

from typing import Any

import torch
from torch import nn

from cpt_deploy.models.language.catalog import build_language_model
from cpt_deploy.models.summary import ModelSummary


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
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.RNNBase)]
    # a token multiplies each weight once; embeddings are looked up
    matrices = [weight for layer in layers for weight in layer.parameters(recurse=False) if weight.dim() > 1]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return ModelSummary(parameters, sum(weight.numel() for weight in matrices))
