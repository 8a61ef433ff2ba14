"""Stochastic depth, as several libraries have it."""

from torch import nn


def is_stochastic_depth(module: nn.Module | None) -> bool:
    """Return whether a module drops whole branches in training and does nothing in evaluation.

    torchvision, timm and transformers each have a class of their own for it.
    """
    name = type(module).__name__
    return name == "StochasticDepth" or name.endswith("DropPath")
