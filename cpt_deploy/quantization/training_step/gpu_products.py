"""Products of codes on a GPU: bfloat16 matrix units where they tell sums in float32, TF32 where they do not.

Integers within ±255 are exact in both, and so are sums of their products up to 2^24, which are added in float32. A
product of matrices takes bfloat16 and gives float32. A convolution of cuDNN's gives the type that it takes, so forward
it takes float32, which its units read as TF32 unless torch is told otherwise; a bfloat16 result would be rounded.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cpt_deploy.quantization.kernels import Kernels
from cpt_deploy.quantization.kernels.layout import rows_of


def forward(
    layer: nn.Conv2d | nn.Linear, codes: Tensor, zero_point: Tensor, weight: Tensor, kernels: Kernels
) -> Tensor:
    """Return the sums of products of a layer's codes: integers in float32, channels-last.

    Args:
        layer: Gives stride, padding, dilation and groups.
        codes: Codes of the input, uint8.
        zero_point: What counts is `code − zero_point`.
        weight: Codes of the weight, int8.
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
    """Return whether a layer is a product of its input's rows of channels and a matrix."""
    if isinstance(layer, nn.Linear):
        return True
    is_point = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0)
    return is_point and layer.groups == 1


def as_written(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast from rounding what is exact."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
