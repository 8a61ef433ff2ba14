"""A model of your own for `cpt train`, by its file or import path.

cpt train digits-quickstart model.name=examples/custom_model/small_net.py:build model.args.width=24
cd examples/custom_model && cpt train recipe.yaml         # names it small_net:build, an importable module
"""

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def build(num_classes: int, in_channels: int, width: int = 16) -> nn.Module:
    """Build the model; `cpt train` passes properties of the data set, and `model.args` of the recipe.

    The properties are `num_classes`, `in_channels` and `input_size`, as far as the factory has parameters for them.
    """
    return SmallNet(in_channels, num_classes, width)
