"""Pointwise convolutions with a stride, written as what they are: dense ones of every n-th pixel.

oneDNN 3.12's gradient of such a weight, for processors with AVX2 and no AVX-512, channels innermost and fewer than
eight of them, writes past the end of its buffer (`jit_avx2_1x1_convolution_bwd_weights_t`; valgrind shows it). Dense
ones have the same products and sums, and no such kernel.
"""

import torch
from torch import Tensor, nn


def skips_pixels(conv: nn.Conv2d, device: torch.device) -> bool:
    """Return whether a convolution is pointwise, has a stride, and runs on a CPU."""
    unpadded = conv.padding in ((0, 0), "valid")
    return device.type == "cpu" and conv.kernel_size == (1, 1) and conv.stride != (1, 1) and unpadded


def seen_pixels(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the pixels that a pointwise convolution reads, (N, C, H, W) to (N, C, H', W'), a view."""
    rows, columns = conv.stride
    return x[:, :, ::rows, ::columns]


def spread_pixels(gradient: Tensor, conv: nn.Conv2d, shape: torch.Size) -> Tensor:
    """Return a gradient of `seen_pixels` as one of all pixels, channels innermost, zero where none was read.

    Args:
        gradient: (N, C, H', W').
        conv: The convolution.
        shape: (N, C, H, W).
    """
    whole = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    seen_pixels(whole, conv).copy_(gradient)
    return whole
