"""What the tools quantize: a small residual network with random weights, and random images to calibrate on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
"""Where the files go; the argument of each program here."""
FLOAT = FOLDER / "float.onnx"
ROWS, BATCH = 32, 4


class Residual(nn.Module):
    """Three convolutions with a residual sum, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.third, self.pool, self.classes = nn.Conv2d(16, 32, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10) of images (N, 3, 16, 16)."""
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(self.norm2(self.second(x)) + x)
        return self.classes(self.pool(torch.relu(self.third(x))).flatten(1))


def network() -> nn.Module:
    """Return the network, always with the same weights."""
    torch.manual_seed(0)
    model = Residual().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
    return model


def images() -> npt.NDArray[np.float32]:
    """Return the calibration images, always the same."""
    return np.random.default_rng(0).standard_normal((ROWS, 3, 16, 16)).astype(np.float32)


def batches() -> Iterator[npt.NDArray[np.float32]]:
    """Yield the calibration images in batches."""
    yield from np.split(images(), ROWS // BATCH)


def to_onnx(model: nn.Module, name: str) -> None:
    """Write a model as `torch.onnx` does, with a free batch."""
    dims = ({0: torch.export.Dim("N")},)
    example = (torch.from_numpy(images()[:2]),)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(model, example, FOLDER / name, dynamic_shapes=dims, dynamo=True, external_data=False, **names)


def exported() -> nn.Module:
    """Return the network as `torch.export` captures it, with a free batch."""
    dims = ({0: torch.export.Dim("N")},)
    return torch.export.export(network(), (torch.from_numpy(images()[:2]),), dynamic_shapes=dims).module()
