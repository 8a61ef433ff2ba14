"""The VNNI saturation guard: limit quantized weights so that no pair of products saturates int16.

On x86 processors without VNNI, `vpmaddubsw` multiplies unsigned activations by signed weights and adds each two
adjacent products in 16 bits, saturating silently. No two products of an output channel can leave int16 if its two
largest quantized weights of one sign add up to at most `saturation_limit`.
"""

import torch
from torch import Tensor

from cpt_deploy.quantization.numerics.affine import channel_scales, symmetric_quant_max, unsigned_quant_max

_INT16_MOST = 2**15 - 1
_EXECUTED_QUANT_MAX = symmetric_quant_max(8)


def saturation_limit(activation_bits: int) -> int:
    """Return the max sum of two quantized weights of one sign: 128 for activations of 8 bits.

    At 7 activation bits or fewer, no two weights of 8 bits exceed it.
    """
    return _INT16_MOST // unsigned_quant_max(activation_bits)


def worst_pair_sum(codes: Tensor) -> Tensor:
    """Return the max sum of two quantized weights of one sign in each output channel; a missing one counts 0.

    Args:
        codes: Quantized weights, float32 tensor of integers of shape (O, ...).

    Returns:
        Float32 tensor of shape (O,).
    """
    return torch.stack([side.sum(dim=1) for side in _two_largest(codes)]).amax(dim=0)


def portable_quant_max(weight: Tensor, quant_max: Tensor, limit: int) -> Tensor:
    """Return for each output channel the max quantized value at which no two weights of one sign exceed a limit.

    A smaller range is needed only for 8-bit weights, and there only in channels with two large weights of one sign.
    The largest value that keeps the limit is chosen: a channel with one large weight loses little. Half of the limit
    always keeps it.

    Args:
        weight: Float32 tensor of shape (O, ...).
        quant_max: Max quantized value at these bits, 0-dim float32. Values of more than 8 bits, which occur only in
            training, are not limited.
        limit: Max sum of two quantized weights, see `saturation_limit`.

    Returns:
        Float32 tensor of shape (O,), or `quant_max` itself if the limit cannot be exceeded.
    """
    half, quant_max = limit // 2, quant_max.to(weight.device)
    if half >= _EXECUTED_QUANT_MAX:
        return quant_max
    candidates = torch.arange(half, _EXECUTED_QUANT_MAX + 1, dtype=weight.dtype, device=weight.device)
    # Rounding keeps the order, so the two largest weights of a sign have the two largest quantized values.
    scales = channel_scales(weight, torch.ones_like(quant_max)).view(-1, 1, 1) / candidates
    fits = torch.ones(len(weight), len(candidates), dtype=torch.bool, device=weight.device)
    for side in _two_largest(weight.detach()):
        fits &= torch.round(side.unsqueeze(2) / scales).sum(dim=1) <= limit
    largest = torch.where(fits, candidates, torch.full_like(candidates, half)).amax(dim=1)
    return torch.where((largest < quant_max) & (quant_max <= _EXECUTED_QUANT_MAX), largest, quant_max)


def _two_largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the magnitudes of the two largest positive and of the two largest negative entries, each (O, 1 or 2)."""
    flat = values.flatten(1)
    count = min(2, flat.shape[1])
    return flat.topk(count, dim=1).values.clamp(min=0), (-flat).topk(count, dim=1).values.clamp(min=0)
