"""Draw random directions in weight space, scaled filter by filter to the weights (Li et al., 2018, section 4)."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Parameters, or changes of them, by name."""


def random_direction(weights: Weights, *, seed: int, number: int) -> dict[str, Tensor]:
    """Draw a direction from the standard normal distribution.

    Each parameter has its own generator, so networks with parameters of the same names and shapes get the same
    direction, independently of their weights.

    Args:
        weights: The parameters; only names, shapes, types and devices matter.
        seed: Seed of all directions.
        number: Index of the direction.
    """
    direction = {}
    for name, weight in weights.items():
        digest = hashlib.blake2b(f"{seed},{number},{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        direction[name] = torch.randn(weight.shape, generator=generator).to(weight)
    return direction


def filter_norms(weight: Tensor) -> Tensor:
    """Return the norm of each filter of a weight, expanded to the shape of the weight.

    A filter is a slice of the first dimension, the weights of one output channel. Parameters of one dimension (biases,
    normalisation) have no filters: their norms are 0.
    """
    if weight.dim() <= 1:
        return torch.zeros_like(weight)
    norms: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
    return norms.expand_as(weight)


def filter_normalized(direction: Weights, weights: Weights) -> dict[str, Tensor]:
    """Scale each filter of a direction to the norm of the weights' filter; parameters of one dimension get 0.

    Networks with BatchNorm are invariant to the scale of their filters, so steps of the same length are not comparable
    between networks; steps relative to the filters are.

    Args:
        direction: The direction.
        weights: The parameters at the minimum, with the same names and shapes.
    """
    normalized = {}
    for name, weight in weights.items():
        own = filter_norms(direction[name])
        scale = filter_norms(weight.detach()) / torch.where(own == 0, torch.ones_like(own), own)
        normalized[name] = direction[name] * scale
    return normalized
