"""A Linear layer's three products in int8 on a GPU's tensor cores, without synchronising with the device.

In the forward product and the weight's gradient both operands are quantized values, shifted into int8; the shift's
contribution to the sums is corrected, so they are exact. In the input's gradient, the scales of the weight differ along
the summed dimension, so the real weight is rounded once more, to ±127 steps per column.
"""

import functools
from importlib.util import find_spec

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import QuantizationParameters
from cpt_deploy.quantization.numerics.affine import channel_scales

#: Below this number of multiply-accumulates bfloat16 products are used. A guess until it has been measured on a GPU:
#: `benchmarks/training_gpu.py` has a table of products for it.
_MIN_MACS = 1 << 33
#: Required multiple of the sizes in bytes: rows of int8 matrices then begin at addresses that tensor cores read fast.
_ALIGNMENT = 16
#: Minimum compute capability of tensor cores that multiply int8.
_MIN_CAPABILITY = (8, 0)


@functools.cache
def has_int8_tensor_cores(device: torch.device) -> bool:
    """Return whether a device multiplies int8 matrices on tensor cores, and Triton is available to compile for it."""
    if device.type != "cuda" or not torch.cuda.is_available() or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


def suits_int8(codes: Tensor, weight: Tensor) -> bool:
    """Return whether the sizes and shapes of a Linear's products suit int8 tensor cores.

    Args:
        codes: Quantized values of the input, (..., I).
        weight: Quantized values of the weight, (O, I).
    """
    if not has_int8_tensor_cores(codes.device):
        return False
    from cpt_deploy.quantization.kernels.triton.int8_matmul import MAX_SUMMED

    outputs, inputs = weight.shape
    rows = codes.numel() // inputs
    aligned = not any(size % _ALIGNMENT for size in (rows, inputs, outputs))
    return aligned and max(rows, inputs, outputs) <= MAX_SUMMED and rows * inputs * outputs >= _MIN_MACS


def forward(
    codes: Tensor, qparams: QuantizationParameters, weight: Tensor, factor: Tensor | None, offset: Tensor | None
) -> Tensor:
    """Return `(codes − zero_point) · weightᵀ · factor + offset`, float32 (..., O).

    Args:
        codes: Quantized values of the input, uint8 (..., I).
        qparams: Their quantization parameters.
        weight: Quantized values of the weight, int8 (O, I).
        factor: (O,) float32; `None` is 1.
        offset: (O,) float32; `None` is 0.
    """
    from cpt_deploy.quantization.kernels.triton.int8_matmul import Epilogue, multiply

    columns = (128 - _integer(qparams.zero_point)) * weight.sum(dim=1)
    product = multiply(codes.reshape(-1, codes.shape[-1]), weight, Epilogue(None, columns, factor, offset))
    return product.view(*codes.shape[:-1], -1)


def backward(
    gradient: Tensor, codes: Tensor, qparams: QuantizationParameters, weight: Tensor, *, inward: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of a Linear's input and weight.

    Args:
        gradient: Quantized gradient of the output, (..., O), integers within a range of 256 values, in bfloat16 or
            float32.
        codes: Quantized values of the input, uint8 (..., I).
        qparams: Their quantization parameters.
        weight: The weight times the gradient's step, real values (O, I).
        inward: Whether the input's gradient is needed.

    Returns:
        The input's gradient, (..., I) in the gradient's type, in real values; and the weight's, float32 (O, I), in
        units of the gradient's step times the input's scale.
    """
    from cpt_deploy.quantization.kernels.triton.int8_matmul import Epilogue, multiply, pack

    rows = gradient.reshape(-1, gradient.shape[-1])
    shift = rows.amin().float() + 128
    packed = pack(rows, shift, keep_rows=inward)
    grad_input = None
    if inward:
        assert packed.rows is not None
        turned, scales = _weight_columns(weight)
        columns = _integer(shift) * turned.sum(dim=1)
        grad_input = multiply(packed.rows, turned, Epilogue(columns=columns, factor=scales), gradient.dtype)
        grad_input = grad_input.view(codes.shape)
    inputs = pack(codes.reshape(len(rows), -1), None, keep_rows=False)
    back, less = 128 - _integer(qparams.zero_point), _integer(shift)
    epilogue = Epilogue(back * packed.sums.long(), less * inputs.sums.long() + less * back * len(rows))
    return grad_input, multiply(packed.columns, inputs.columns, epilogue)


def _weight_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the transpose of a weight in int8, (I, O), and the scales of its rows, (I,)."""
    turned = weight.float().t().contiguous()
    scales = channel_scales(turned, torch.full((), 127.0, device=turned.device))
    return torch.round(turned / scales.unsqueeze(1)).to(torch.int8), scales


def _integer(value: Tensor) -> Tensor:
    """Convert an integer in a float tensor to int64; if the tensor had a NaN, the scales are NaN anyway."""
    return value.nan_to_num().long()
