"""The CIFAR version of MobileNetV2 used by Fu et al., 2021: stride 1 in the stem, ReLU instead of ReLU6."""

import torch
from torch import nn

_SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Per group: expansion, channels, blocks, stride of the first block; ImageNet's stem and second group have stride 2."""


class InvertedResidual(nn.Module):
    """An inverted residual block: 1x1 expansion, 3x3 depthwise, 1x1 projection; residual if the stride is 1.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        expansion: Channels inside, as a multiple of `in_channels`.
        stride: Stride of the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.body = nn.Sequential(
            *_conv_bn_relu(in_channels, inner, 1),
            *_conv_bn_relu(inner, inner, 3, stride=stride, groups=inner),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1
        self.shortcut = nn.Sequential()
        if self.residual and in_channels != out_channels:
            # torchvision's network has no residual connection here; the authors' has one through a 1x1 convolution.
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        out: torch.Tensor = self.body(x)
        return out + self.shortcut(x) if self.residual else out


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 for small images.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn_relu(in_channels, 32, 3))
        self.blocks = nn.Sequential()
        channels = 32
        for expansion, width, count, first_stride in _SETTINGS:
            for stride in (first_stride, *[1] * (count - 1)):
                self.blocks.append(InvertedResidual(channels, width, expansion, stride))
                channels = width
        self.head = nn.Sequential(*_conv_bn_relu(channels, 1280, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.pool(self.head(self.blocks(self.stem(x))))
        logits: torch.Tensor = self.fc(torch.flatten(x, 1))
        return logits


def _conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel_size // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
