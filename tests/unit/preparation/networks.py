"""A small network with places for the parts that a test converts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cpt_deploy import preparation
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel

SHAPE = (3, 8, 8)
FEATURES = 6


class Network(nn.Module):
    """Two convolutions, a mean and a Linear; the parts stand on positions, on features, and on the results."""

    def __init__(
        self, positions: nn.Module | None = None, features: nn.Module | None = None, results: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, FEATURES, 3, padding=1), nn.BatchNorm2d(FEATURES), nn.ReLU())
        self.positions = positions or nn.Identity()
        self.second = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.features = features or nn.Identity()
        self.head = nn.Linear(FEATURES, FEATURES)
        self.results = results or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.positions(self.first(x)))
        result: Tensor = self.results(self.head(self.features(x.mean((2, 3)))))
        return result


class Call(nn.Module):
    """What a function computes of a tensor and of a buffer with one number for each channel."""

    def __init__(self, function: Callable[..., Tensor], rank: int) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constants", torch.linspace(-0.8, 1.2, FEATURES).reshape(-1, *[1] * (rank - 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constants)


def prepared(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> QuantizedModel:
    return preparation.prepare(network, torch.zeros(2, *shape), QuantizationConfig())
