"""The CIFAR ResNets of Fu et al., 2021, for images of any small size and any number of channels.

As in the authors' code, all depths are 6n+2 layers of basic blocks (including 164, n = 27, elsewhere a bottleneck
network). If the shape changes, the shortcut is a 1x1 convolution with batch normalization ("option B" of He et al.,
2016). The parameter-free "option A" (subsample and pad with zero channels) saves 2752 parameters, but its strided
slice and pad have no integer kernel, so it is not offered.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection: `relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: torch.Tensor = self.relu2(out + self.shortcut(x))
        return result


class CifarResNet(nn.Module):
    """A ResNet for small images: a convolution, groups of basic blocks, mean pooling and a linear layer.

    Each group but the first halves height and width.


    Args:
        blocks: Number of blocks in each group; depth = 2 sum(blocks) + 2.
        widths: Channels of each group.
        num_classes: Number of logits.
        in_channels: Channels of the images.
    """

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.groups = nn.Sequential()
        channels = widths[0]
        for group, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if group == 0 else 2, *[1] * (count - 1)]
            self.groups.append(
                nn.Sequential(*(BasicBlock(channels if i == 0 else width, width, s) for i, s in enumerate(strides)))
            )
            channels = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(_initialize)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.groups(x))
        logits: torch.Tensor = self.fc(torch.flatten(x, 1))
        return logits


def cifar_resnet(depth: int, *, num_classes: int, in_channels: int = 3, width: int = 16) -> CifarResNet:
    """Build the CIFAR ResNet of the given depth.

    Args:
        depth: 6n+2 for some n of at least 1: 20, 38, 74, 110, 152, 164, ...
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the first group; the second has twice as many, the third four times as many.

    Raises:
        ValueError: If the depth is not 6n+2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"Expected depth to be 6n+2 with n of at least 1, but got {depth}")
    return CifarResNet([blocks] * 3, [width, 2 * width, 4 * width], num_classes, in_channels)


def tiny_resnet(*, num_classes: int, in_channels: int = 1, width: int = 16) -> CifarResNet:
    """Build a ResNet of two groups of one block each, which learns 8x8 digits in seconds.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the first group; the second has twice as many.
    """
    return CifarResNet([1, 1], [width, 2 * width], num_classes, in_channels)


def _initialize(module: nn.Module) -> None:
    """Initialize as in the authors' code: normal with variance 2 / (kernel area x outputs)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight.numel()))
