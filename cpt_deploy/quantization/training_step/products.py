"""A layer's three products on quantized values: forward exact, backward in bfloat16 or float32.

The forward product of integers is exact in int8 units, which add in 32 bits, and in float32 up to 2^24; both give the
same result. In the backward products, quantized values are exact in bfloat16; the real weight and the products are
rounded to it, except for a Linear's weight gradient, which is exact (see `linear_products`).
"""

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.kernels import Kernels, QuantizationParameters
from cpt_deploy.quantization.modules.layers import (
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLayer,
    QuantizedLinear,
)
from cpt_deploy.quantization.modules.strided import seen_pixels, skips_pixels, spread_pixels
from cpt_deploy.quantization.training_step import gpu_products, int8_products, linear_products

Compute = Literal["auto", "float32", "bf16", "modules"]
"""How a training step computes: `float32` and `bf16` are the dtype of backward products, `modules` runs module by
module as in evaluation, and `auto` is the fastest of them that suits the processor."""


@functools.cache
def has_bf16_units(device: str = "cpu") -> bool:
    """Return whether the processor, or the GPU, multiplies bfloat16 natively."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@functools.cache
def int8_is_exact() -> bool:
    """Return whether int8 convolutions and products add without saturation on this processor, found by trying."""
    codes = torch.full((1, 64, 4, 4), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.full((16, 64, 3, 3), 127, dtype=torch.int8).contiguous(memory_format=torch.channels_last)
    rows = codes.reshape(16, 64)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    try:
        found = _int8_convolution(codes, 3, weight, geometry)
        product = torch._int_mm((rows ^ 128).view(torch.int8), weight[:, :, 0, 0].t())
    except (RuntimeError, AttributeError):  # builds of torch for other processors lack these operators
        return False
    wanted = torch.conv2d(codes.double() - 3, weight.double(), padding=1)
    return bool(torch.equal(found.double(), wanted)) and bool((product == 127 * 127 * 64).all())


def choose_compute(compute: Compute, *, native: bool, device: str = "cpu") -> Literal["float32", "bf16", "modules"]:
    """Resolve `auto`, or check that the requested setting is possible.

    Args:
        compute: The setting.
        native: Whether there are kernels compiled for the device.
        device: Device type, "cpu" or "cuda".

    Raises:
        UsageError: If bfloat16 is requested on a processor without it.
    """
    if compute == "auto":
        if not native:
            return "modules"
        return "bf16" if has_bf16_units(device) else "float32"
    if compute == "bf16" and not has_bf16_units(device):
        raise UsageError(
            "Expected a processor with bfloat16 units for compute=bf16, but this one has none",
            hint="compute=auto takes the fastest that there is",
        )
    return compute


class Scaling(NamedTuple):
    """Factor and offset of a layer's sums; (O,) each."""

    factor: Tensor
    offset: Tensor


def forward_product(
    layer: QuantizedLayer,
    codes: Tensor,
    qparams: QuantizationParameters,
    weight: Tensor,
    kernels: Kernels,
    scaling: Scaling | None = None,
) -> Tensor:
    """Return a layer's sums of products, float32: integers, or real values if a scaling is given.

    Args:
        layer: Layer with stride, padding, dilation and groups.
        codes: Quantized values of the input, uint8.
        qparams: Their quantization parameters; the zero point is subtracted.
        weight: Quantized values of the weight, int8.
        kernels: Backend.
        scaling: Factor and offset from integers to real values.
    """
    if isinstance(layer, QuantizedLinear) and int8_products.suits_int8(codes, weight):
        return int8_products.forward(codes, qparams, weight, *(scaling or (None, None)))
    if isinstance(layer, QuantizedConvTranspose2d):
        sums = _transposed_convolution(layer, codes, qparams, weight, kernels)
        return sums if scaling is None else kernels.scale_sums(sums, None, *scaling)
    if codes.device.type != "cpu":
        assert isinstance(layer, QuantizedConv2d | QuantizedLinear)
        sums = gpu_products.forward(layer, codes, qparams.zero_point, weight, kernels)
        return sums if scaling is None else kernels.scale_sums(sums, None, *scaling)
    if isinstance(layer, QuantizedLinear) and int8_is_exact():
        factor, offset = scaling or (torch.ones(len(weight)), torch.zeros(len(weight)))
        return linear_products.forward(codes, qparams, weight, kernels, factor, offset)
    if not isinstance(layer, QuantizedConv2d):
        sums = kernels.centre(codes, qparams.zero_point, torch.float32) @ weight.float().t()
    elif int8_is_exact():
        sums = _int8_convolution(codes, linear_products.integer(qparams.zero_point), weight, _geometry(layer))
    else:
        x = kernels.centre(codes, qparams.zero_point, torch.float32)
        sums = _channels_last(torch.conv2d(x, weight.float(), None, *_geometry(layer)))
    if scaling is None:
        return sums
    factor, offset = (values.view(1, -1, 1, 1) if sums.dim() == 4 else values for values in scaling)
    return sums.mul_(factor).add_(offset)


def backward_products(
    layer: QuantizedLayer,
    gradient: Tensor,
    codes: Tensor,
    qparams: QuantizationParameters,
    weight: Tensor,
    kernels: Kernels,
    *,
    inward: bool,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of a layer's input and weight.

    Args:
        layer: Layer with stride, padding, dilation and groups.
        gradient: Quantized gradient of the output: integers in bfloat16 or float32, the dtype of the products.
        codes: Quantized values of the input, uint8.
        qparams: Their quantization parameters.
        weight: The weight times the gradient's step, in the gradient's dtype.
        kernels: Backend.
        inward: Whether the input's gradient is needed.

    Returns:
        The input's gradient in real values, and the weight's, float32 or the gradient's type, in units of step times
        input scale.
    """
    if isinstance(layer, QuantizedConvTranspose2d):
        x = kernels.centre(codes, qparams.zero_point, gradient.dtype)
        geometry = (layer.stride, layer.padding, layer.dilation, True, layer.output_padding, layer.groups)
        grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, layer.turned(weight), None, *geometry, [inward, True, False]
        )
        return grad_input, layer.turned(grad_weight).contiguous()
    if isinstance(layer, QuantizedConv2d):
        stride, padding, dilation, groups = _geometry(layer)
        skips = skips_pixels(layer, codes.device)
        seen = _channels_last(seen_pixels(codes, layer)) if skips else codes
        x = kernels.centre(seen, qparams.zero_point, gradient.dtype)
        grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [1, 1] if skips else stride, padding, dilation, False, [0, 0], groups,
            [inward, True, False],
        )  # fmt: skip
        if skips and inward:
            grad_input = spread_pixels(grad_input, layer, codes.shape)
        return grad_input, grad_weight
    if gradient.dtype == torch.bfloat16 and int8_products.suits_int8(codes, weight):
        return int8_products.backward(gradient, codes, qparams, weight, inward=inward)
    grad_input = gradient @ weight if inward else None
    rows = gradient.reshape(-1, gradient.shape[-1])
    x = codes.reshape(len(rows), -1)
    if codes.device.type != "cpu":
        return grad_input, gpu_products.weight_gradient(rows, kernels.centre(x, qparams.zero_point, gradient.dtype))
    if len(rows) <= linear_products.MAX_ROWS and int8_is_exact():
        return grad_input, linear_products.weight_gradient(rows, x, qparams, kernels)
    return grad_input, (rows.t() @ kernels.centre(x, qparams.zero_point, gradient.dtype))


def _transposed_convolution(
    layer: QuantizedConvTranspose2d, codes: Tensor, qparams: QuantizationParameters, weight: Tensor, kernels: Kernels
) -> Tensor:
    """Return the sums of a transposed convolution in float32; int8 kernels have no such product.

    The equivalent ordinary convolution (`integer.lowering.subpixel`) is slower in int8 than this one in float32.
    """
    x, kernel = kernels.centre(codes, qparams.zero_point, torch.float32), layer.turned(weight.float())
    geometry = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    # cuDNN may choose an algorithm that is not exact, such as Winograd's.
    with gpu_products.as_written(codes.device), torch.backends.cudnn.flags(enabled=False):
        return _channels_last(torch.conv_transpose2d(x, kernel, None, *geometry))  # type: ignore[arg-type]


def _int8_convolution(
    codes: Tensor, zero_point: int, weight: Tensor, geometry: tuple[list[int], list[int], list[int], int]
) -> Tensor:
    operators = torch.ops.onednn
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    packed = operators.qconv_prepack(weight, ones, 1.0, zero_point, *geometry, list(codes.shape))
    result: Tensor = operators.qconv2d_pointwise(
        codes, 1.0, zero_point, packed, ones, zeros, None, *geometry, 1.0, 0, torch.float32, "none", [], ""
    )
    return _channels_last(result)


def _geometry(layer: nn.Conv2d) -> tuple[list[int], list[int], list[int], int]:
    assert not isinstance(layer.padding, str)
    return list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups


def _channels_last(x: Tensor) -> Tensor:
    return x if x.permute(0, 2, 3, 1).is_contiguous() else x.contiguous(memory_format=torch.channels_last)
