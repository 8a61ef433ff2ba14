"""Products of quantized values on a GPU: in bfloat16 where the result is float32, otherwise in TF32.

Integers within ±255 are exact in both, and so are sums of their products up to 2^24, which are added in float32. Matrix
products have bfloat16 inputs and a float32 result. The result of a cuDNN convolution has the type of its inputs, and
bfloat16 would be rounded; so the forward convolution has float32 inputs, which its units read as TF32 unless torch is
configured otherwise.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cpt_deploy.quantization.kernels import Kernels
from cpt_deploy.quantization.kernels.layout import rows_of


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
    with as_written(codes.device):
        if not is_matrix_product(layer):
            assert isinstance(layer, nn.Conv2d)
            assert not isinstance(layer.padding, str)
            x = kernels.centre(codes, zero_point, torch.float32)
            options = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return torch.conv2d(x, weight.float(), None, *options).contiguous(memory_format=torch.channels_last)
        x = rows_of(kernels.centre(codes, zero_point, torch.bfloat16))
        sums = torch.mm(x, weight.flatten(1).to(torch.bfloat16).t(), out_dtype=torch.float32)
    if codes.dim() != 4:
        return sums.view(*codes.shape[:-1], -1)
    batch, _, height, width = codes.shape
    return sums.view(batch, height, width, -1).permute(0, 3, 1, 2)


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Return `gradientᵀ · x`, float32 (O, I), of (rows, O) and (rows, I) in bfloat16 or float32."""
    if gradient.dtype == torch.float32:
        return gradient.t() @ x
    return torch.mm(gradient.t(), x, out_dtype=torch.float32)


def is_matrix_product(layer: nn.Conv2d | nn.Linear) -> bool:
    """Return whether a layer is a matrix product on the channels of each position of its input."""
    if isinstance(layer, nn.Linear):
        return True
    is_point = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0)
    return is_point and layer.groups == 1


def as_written(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast, which would round exact values."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
