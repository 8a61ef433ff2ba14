"""A Linear layer's three products in int8 on a GPU's tensor cores; nothing here waits for the device.

Forward and for the weight's gradient both sides are codes, brought into int8 by shifts whose share of the sums is put
back, so the sums are exact. For the input's gradient the weight with its scales, which differ from row to row of what
is summed, is rounded once more: to 127 levels a side of each column.
"""

import functools
from importlib.util import find_spec

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import QuantizationParameters
from cpt_deploy.quantization.numerics.affine import channel_scales

#: Below so many multiply-accumulates products in bfloat16 are taken. A guess until it has been measured on a GPU, see
#: `benchmarks/training_gpu.py`, whose table of products is there for it.
_LEAST_MACS = 1 << 33
#: Rows of int8 matrices then begin at addresses that tensor cores read fast.
_ALIGNMENT = 16
#: Tensor cores multiply int8 from this compute capability on.
_LEAST_CAPABILITY = (8, 0)


@functools.cache
def has_int8_tensor_cores(device: torch.device) -> bool:
    """Return whether a device multiplies int8 matrices on tensor cores, and Triton is there to tell it to."""
    if device.type != "cuda" or not torch.cuda.is_available() or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def suits_int8(codes: Tensor, weight: Tensor) -> bool:
    """Return whether a Linear's products are large enough, and of shapes, for int8 tensor cores.

    Args:
        codes: Codes of the input, (..., I).
        weight: Codes of the weight, (O, I).
    """
    if not has_int8_tensor_cores(codes.device):
        return False
    from cpt_deploy.quantization.kernels.int8_matmul import MOST_SUMMED

    outputs, inputs = weight.shape
    rows = codes.numel() // inputs
    aligned = not any(size % _ALIGNMENT for size in (rows, inputs, outputs))
    return aligned and max(rows, inputs, outputs) <= MOST_SUMMED and rows * inputs * outputs >= _LEAST_MACS


def forward(
    codes: Tensor, qparams: QuantizationParameters, weight: Tensor, factor: Tensor | None, offset: Tensor | None
) -> Tensor:
    """Return `(codes − zero_point) · weightᵀ · factor + offset`, float32 (..., O).

    Args:
        codes: uint8 (..., I).
        qparams: Their grid.
        weight: Codes, int8 (O, I).
        factor: (O,) float32; `None` is 1.
        offset: (O,) float32; `None` is 0.
    """
    from cpt_deploy.quantization.kernels.int8_matmul import Epilogue, multiply

    columns = (128 - _integer(qparams.zero_point)) * weight.sum(dim=1)
    product = multiply(codes.reshape(-1, codes.shape[-1]), weight, Epilogue(None, columns, factor, offset))
    return product.view(*codes.shape[:-1], -1)


def backward(
    gradient: Tensor, codes: Tensor, qparams: QuantizationParameters, weight: Tensor, *, inward: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of a Linear's input and weight.

    Args:
        gradient: Codes of the output's gradient, integers (..., O) of at most 256 successive values, in bfloat16 or
            float32.
        codes: Codes of the input, uint8 (..., I).
        qparams: Their grid.
        weight: The weight times the gradient's step, real values (O, I).
        inward: Whether the input's gradient is wanted.

    Returns:
        The input's gradient, (..., I) in the gradient's type, in real values; and the weight's, float32 (O, I), in
        units of the gradient's step times the input's scale.
    """
    from cpt_deploy.quantization.kernels.int8_matmul import Epilogue, multiply, pack

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
    """Return an integer in a float tensor as int64; where a NaN stood in the tensor the scales are NaN."""
    return value.nan_to_num().long()
