"""Stochastic-rounding noise: a hash of the element's index and a seed, without a generator state.

It is the same on every device, needs no random-number kernel and no state in a checkpoint.
"""

from typing import TypeVar

import torch
from torch import Tensor

from cpt_deploy.quantization.numerics.recording import is_recorded

_GOLDEN = -1640531527  # 2^32 / golden ratio, as a signed 32-bit integer
_MIX_1 = 0x2C1B3C6D
_MIX_2 = 0x297A2D39

_indices: dict[torch.device, Tensor] = {}


def _hashed_indices(count: int, device: torch.device) -> Tensor:
    """Return `index · golden` for the first `count` indices, cached per device since every layer needs them."""
    if is_recorded(device):  # a recording must not read a cache that a larger request replaces
        return torch.arange(count, dtype=torch.int32, device=device) * _GOLDEN
    known = _indices.get(device)
    if known is None or known.numel() < count:
        known = torch.arange(count, dtype=torch.int32, device=device).mul_(_GOLDEN)
        _indices[device] = known
    return known[:count]


def index_noise(count: int, seed: int | Tensor, device: torch.device) -> Tensor:
    """Return `count` uniform float32 values in [0, 1), a pure function of index and seed.

    Args:
        count: Number of values.
        seed: Any integer, or one on the device, 0-dim int64; only its low 32 bits are used.
        device: Device of the result; the values do not depend on it.
    """
    bits = _hashed_indices(count, device) + _signed(seed)
    bits.bitwise_xor_(bits >> 15).mul_(_MIX_1)
    bits.bitwise_xor_(bits >> 12).mul_(_MIX_2)
    bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF)
    return bits.to(torch.float32).mul_(2.0**-23)


def _signed(seed: int | Tensor) -> int | Tensor:
    """Return the low 32 bits of a seed as a signed integer; an int32 tensor if it is a tensor."""
    if isinstance(seed, Tensor):
        return seed.to(torch.int32)
    return ((seed + 2**31) % 2**32) - 2**31


Seed = TypeVar("Seed", int, Tensor)


def seed_from_index(seed: Seed, first: int) -> Seed:
    """Return a seed whose noise at index `i` equals that of `seed` at index `first + i`.

    With it, processes that hold parts of one batch use the matching parts of the whole batch's noise.
    """
    return (seed + first * _GOLDEN) & 0xFFFFFFFF


def mix_seed(*parts: int) -> int:
    """Return one 32-bit seed from several integers (run seed, layer, step), well mixed."""
    state = 0x9E3779B9
    for part in parts:
        state = mix_into(state, part)
    return state


def mix_into(state: Seed, part: int) -> Seed:
    """Return `mix_seed(*parts, part)`, given `mix_seed(*parts)` as an integer or an int64 tensor."""
    state = ((state ^ (part & 0xFFFFFFFF)) * 0x85EBCA6B) & 0xFFFFFFFF
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return state ^ (state >> 16)
