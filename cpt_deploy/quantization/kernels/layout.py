"""Memory layout of tensors for kernels: views as flat elements or as rows of channels."""

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """Return the tensor as dense memory, contiguous or channels-last; copy it if it is neither."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def aligned(x: Tensor, other: Tensor) -> Tensor:
    """Return `x` in the memory order of the dense tensor `other`."""
    return x if x.stride() == other.stride() else torch.empty_like(other, dtype=x.dtype).copy_(x)


def check_not_empty(kernel: str, x: Tensor) -> None:
    """Raise for an empty tensor in a kernel whose result would be undefined: a range, statistics, scales.

    Raises:
        ValueError: If the tensor has no elements.
    """
    if x.numel() == 0:
        raise ValueError(f"Expected at least one element in the kernel {kernel!r}, but got shape {tuple(x.shape)}")


def rows_of(x: Tensor) -> Tensor:
    """Return (N, C, H, W) in channels-last memory, or (..., C), as a view (rows, C)."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(-1, channels_of(x))


def channels_of(x: Tensor) -> int:
    """Return C of (N, C, H, W) or (..., C)."""
    return int(x.shape[1] if x.dim() == 4 else x.shape[-1])


def flat(x: Tensor) -> Tensor:
    """Return a dense tensor as a view (n,) in memory order."""
    return x.as_strided((x.numel(),), (1,))
