"""Quantization of the gradient that enters a layer's backward pass: per tensor, unbiased stochastic rounding.

The noise is a hash of the element's index and of a seed, not a generator's state: it is the same on every device,
costs no random-number kernel and needs no state in a checkpoint.
"""

from typing import Any

import torch
from torch import Tensor

from cpt_deploy.quantization.affine import range_of

_GOLDEN = -1640531527  # 2^32 / golden ratio, as a signed 32-bit integer
_MIX_1 = 0x2C1B3C6D
_MIX_2 = 0x297A2D39

_indices: dict[torch.device, Tensor] = {}


def _hashed_indices(count: int, device: torch.device) -> Tensor:
    """Return `index · golden` for the first `count` indices, kept per device since every layer needs them."""
    known = _indices.get(device)
    if known is None or known.numel() < count:
        known = torch.arange(count, dtype=torch.int32, device=device).mul_(_GOLDEN)
        _indices[device] = known
    return known[:count]


def index_noise(count: int, seed: int, device: torch.device) -> Tensor:
    """Return `count` uniform float32 values in [0, 1), a pure function of index and seed.

    Args:
        count: How many values.
        seed: Any integer; its low 32 bits count.
        device: Where to compute them; the values do not depend on it.
    """
    seed32 = ((seed + 2**31) % 2**32) - 2**31
    bits = _hashed_indices(count, device) + seed32
    bits.bitwise_xor_(bits >> 15).mul_(_MIX_1)
    bits.bitwise_xor_(bits >> 12).mul_(_MIX_2)
    bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF)
    return bits.to(torch.float32).mul_(2.0**-23)


def seed_from_index(seed: int, first: int) -> int:
    """Return a seed whose noise at index `i` is that of `seed` at index `first + i`.

    So processes that hold parts of one batch round it with the noise of the whole.
    """
    return (seed + first * _GOLDEN) & 0xFFFFFFFF


def mix_seed(*parts: int) -> int:
    """Return one 32-bit seed from several integers (run seed, layer, step), well mixed."""
    state = 0x9E3779B9
    for part in parts:
        state = ((state ^ (part & 0xFFFFFFFF)) * 0x85EBCA6B) & 0xFFFFFFFF
        state = ((state ^ (state >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
        state ^= state >> 16
    return state


def quantize_gradient(gradient: Tensor, levels: Tensor, seed: int) -> Tensor:
    """Round a gradient stochastically to a grid of `levels + 1` codes.

    The grid contains 0 and its step is `range / (levels − 1)`: one code is left free so that rounding down at the
    lower end and up at the upper end both stay on the grid. Nothing is clamped, so the rounding is unbiased
    everywhere, and exact zeros stay zero. A step is relative to the tensor's own range, however small.

    Args:
        gradient: Float32 tensor of any shape.
        levels: Greatest code, 0-dim float32.
        seed: Seed of the noise.

    Returns:
        The rounded gradient; NaN and infinite inputs give NaN, never a number.
    """
    low, high = range_of(gradient)
    width = (high - low) / (levels - 1.0)
    step = torch.where(width == 0, torch.ones_like(width), width)
    if not gradient.is_contiguous() and not gradient.is_contiguous(memory_format=torch.channels_last):
        gradient = gradient.contiguous()
    noise = index_noise(gradient.numel(), seed, gradient.device).as_strided(gradient.size(), gradient.stride())
    return noise.add_(gradient / step).floor_().mul_(step)


class _QuantizeGradient(torch.autograd.Function):
    """The identity, whose gradient is quantized."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, seed: int) -> Tensor:
        ctx.levels, ctx.seed = levels, seed
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return quantize_gradient(grad_outputs[0], ctx.levels, ctx.seed), None, None


def with_quantized_gradient(x: Tensor, levels: Tensor, seed: int) -> Tensor:
    """Return `x`; the gradient that comes back through it is quantized by `quantize_gradient`."""
    result: Tensor = _QuantizeGradient.apply(x, levels, seed)
    return result
