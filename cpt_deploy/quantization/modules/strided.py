"""Compute strided pointwise convolutions as dense ones of every n-th pixel, to avoid a faulty kernel of oneDNN.

oneDNN 3.12's weight gradient of a strided pointwise convolution, for processors with AVX2 and no AVX-512, channels
innermost and fewer than eight of them, writes past the end of its buffer (`jit_avx2_1x1_convolution_bwd_weights_t`;
valgrind shows it). Dense ones have the same products and sums, and do not use this kernel.
"""

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d


def skips_pixels(conv: Convolution, device: torch.device) -> bool:
    """Return whether a convolution is pointwise and unpadded, has a stride, and runs on a CPU."""
    pointwise = set(conv.kernel_size) == {1} and set(conv.padding) <= {0, *"valid"}
    return device.type == "cpu" and pointwise and set(conv.stride) != {1}


def seen_pixels(x: Tensor, conv: Convolution) -> Tensor:
    """Return the pixels that a pointwise convolution reads, (N, C, L) or (N, C, H, W), a view."""
    everywhere, places = slice(None), tuple(slice(None, None, stride) for stride in conv.stride)
    return x[(everywhere, everywhere, *places)]


def spread_pixels(gradient: Tensor, conv: Convolution, shape: torch.Size) -> Tensor:
    """Return the gradient of all pixels from that of `seen_pixels`; it is zero at pixels that were not read.

    Args:
        gradient: (N, C, H', W').
        conv: The convolution.
        shape: Shape of the result, (N, C, H, W); its memory has channels innermost.
    """
    whole = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    seen_pixels(whole, conv).copy_(gradient)
    return whole
