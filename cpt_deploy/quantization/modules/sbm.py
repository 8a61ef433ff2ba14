"""The quantizers of the scheme "sbm", on which the CPT paper's published code trains; they cannot be exported.

Weights are quantized per output channel, activations and gradients per tensor, each from its min to its max, see
`numerics/real_zero_point.py`.
"""

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels.layout import dense
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.numerics.affine import in_memory_order
from cpt_deploy.quantization.numerics.real_zero_point import (
    channel_ranges,
    fake_quantize_in_range,
    round_to_range,
)
from cpt_deploy.quantization.numerics.stochastic_rounding import index_noise


class SbmQuantizer(ActivationQuantizer):
    """Quantizes the input of a layer: per tensor, from min to max, with a real-valued zero point.

    In training it uses the range of the batch and updates a moving average of min and max, which evaluation uses. The
    average begins with the first batch, not with zero as the published code's does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` fake-quantized at the current bits, same shape, float32 or wider."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # a real zero point is not exact in bfloat16
        if self.training:
            low, high = torch.aminmax(in_memory_order(x.detach()))
            self.current = low, high
            if not self.deferred:
                self.observe(low, high)
        else:
            self.current = self.low, self.high
        if not self.precision.quantizes_activations(self.group):
            return x
        return fake_quantize_in_range(x, *self.current, self.precision.activation_quant_max(self.group))


def fake_quantize_channels(weight: Tensor, quant_max: Tensor) -> Tensor:
    """Return a weight (O, ...) fake-quantized per output channel from min to max, with the straight-through gradient.

    Args:
        weight: Float tensor with output channels first.
        quant_max: Max quantized value, `2^bits − 1`, 0-dim float32.
    """
    return fake_quantize_in_range(weight, *channel_ranges(weight), quant_max)


def round_gradient(gradient: Tensor, quant_max: Tensor, seed: Tensor) -> Tensor:
    """Round a gradient to `quant_max + 1` values from its min to its max, after adding uniform noise of ± half a step.

    Rounding is unbiased, also at both ends. Zero is no quantized value, so exact zeros become small random values.

    Args:
        gradient: Float tensor of any shape; it is converted to float32.
        quant_max: Max quantized value, 0-dim float32.
        seed: Seed of the noise, 0-dim int64 on the gradient's device; each place in memory has its own noise.
    """
    gradient = dense(gradient.float())
    noise = index_noise(gradient.numel(), seed, gradient.device).sub_(0.5)
    low, high = torch.aminmax(in_memory_order(gradient))
    return round_to_range(gradient, low, high, quant_max, noise.as_strided(gradient.shape, gradient.stride()))
