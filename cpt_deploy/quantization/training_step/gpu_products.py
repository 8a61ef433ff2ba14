"""Forward products of quantized values on a GPU, exact, and the gradient of a weight.

Convolutions run on int8 tensor cores, see `kernels.triton.int8_convolution`. Matrix products have bfloat16 inputs and a
float32 result: integers within ±255 are exact in bfloat16, and so are sums of their products up to 2^24, which are
added in float32. Where there are no int8 tensor cores, and for depthwise convolutions, which no tensor core speeds up,
torch's own convolutions compute in float32; what it may choose among is kept to those that multiply and add.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cpt_deploy.quantization.kernels import Kernels
from cpt_deploy.quantization.training_step import int8_products


def forward(
    layer: nn.Conv2d | nn.Linear, codes: Tensor, zero_point: Tensor, weight: Tensor, kernels: Kernels
) -> Tensor:
    """Return a layer's integer sums of products, in float32, channels-last.

    Args:
        layer: Layer with stride, padding, dilation and groups.
        codes: Quantized values of the input, uint8.
        zero_point: Zero point, subtracted from `codes`.
        weight: Quantized values of the weight, int8.
        kernels: Backend.
    """
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer, codes, zero_point, weight, kernels)
    with as_written(codes.device):
        x = kernels.centre(codes, zero_point, torch.bfloat16).flatten(0, -2)
        sums = torch.mm(x, weight.to(torch.bfloat16).t(), out_dtype=torch.float32)
    return sums.view(*codes.shape[:-1], -1)


def _convolution(layer: nn.Conv2d, codes: Tensor, zero_point: Tensor, weight: Tensor, kernels: Kernels) -> Tensor:
    assert not isinstance(layer.padding, str)
    depthwise = layer.groups > 1 and weight.shape[1] == 1
    if int8_products.has_int8_tensor_cores(codes.device) and not depthwise:
        from cpt_deploy.quantization.kernels.triton import int8_convolution

        if int8_convolution.is_summed_exactly(weight):
            stride, padding, dilation = (
                (int(values[0]), int(values[1])) for values in (layer.stride, layer.padding, layer.dilation)
            )
            geometry = int8_convolution.Geometry(stride, padding, dilation, layer.groups)
            return int8_convolution.convolve(codes, zero_point, weight, geometry)
    x = kernels.centre(codes, zero_point, torch.float32)
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    with as_written(codes.device), torch.backends.cudnn.flags(enabled=False):
        return torch.conv2d(x, weight.float(), None, *options).contiguous(memory_format=torch.channels_last)


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Return `gradientᵀ · x`, float32 (O, I), of (rows, O) and (rows, I) in bfloat16 or float32."""
    if gradient.dtype == torch.float32:
        return gradient.t() @ x
    return torch.mm(gradient.t(), x, out_dtype=torch.float32)


def as_written(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast, which would round exact values."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
