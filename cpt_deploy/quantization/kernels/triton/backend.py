"""The backend of Triton kernels, for tensors on a GPU, or on the CPU in Triton's interpreter.

Nothing here reads a value back from the device, and work is partitioned by shapes alone.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from cpt_deploy.quantization.kernels import interface as k
from cpt_deploy.quantization.kernels.layout import aligned, channels_of, check_not_empty, dense
from cpt_deploy.quantization.kernels.triton import channels as channels_
from cpt_deploy.quantization.kernels.triton import elements, parameters

#: Elements per program in element-wise kernels, per tile in per-channel kernels, and per program that merges parts.
_BLOCK, _TILE, _MERGED = 4096, 2048, 1024
#: Max number of parts of a range or of sums: enough to fill a GPU, few enough for one program to merge.
_PARTS = 1024
_MAX_WIDTH = 128


class TritonKernels:
    """Launches one Triton kernel per function; sums and ranges need a second one that merges parts."""

    name = "triton"

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_not_empty("range", x)
        x = dense(x)
        count = _parts(x.numel())
        parts = x.new_empty(2, count)
        launch(elements.range_kernel, (count,), x, parts, x.numel(), count, block=_BLOCK)
        return parts[0], parts[1]

    def observe(self, low: Tensor, high: Tensor, average: k.Average | None, quant_max: k.QuantMax) -> k.Observed:
        out = low.new_empty(8)
        kept = (low, high, quant_max.own, 1.0) if average is None else average
        launch(
            parameters.observe_kernel, (1,),
            low, high, low.numel(), *kept[:3], float(kept[3]), quant_max.own, quant_max.scheduled,
            float(quant_max.own_min), out,
            averages=average is not None, symmetric=quant_max.symmetric, block=_MERGED,
        )  # fmt: skip
        bottom, top, *rest = out.unbind()
        return k.Observed(bottom, top, k.QuantizationParameters(*rest[:3]), k.QuantizationParameters(*rest[3:]))

    def quantize(self, x: Tensor, qparams: k.QuantizationParameters) -> Tensor:
        x = dense(x)
        return _each(elements.quantize_kernel, x, torch.empty_like(x, dtype=torch.uint8), *qparams)

    def requantize(self, codes: Tensor, source: k.QuantizationParameters, target: k.QuantizationParameters) -> Tensor:
        return _each(elements.requantize_kernel, codes, torch.empty_like(codes), *source[:2], *target)

    def centre(self, codes: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
        return _each(elements.centre_kernel, codes, torch.empty_like(codes, dtype=dtype), zero_point)

    def dequantize(self, codes: Tensor, qparams: k.QuantizationParameters) -> Tensor:
        return _each(elements.dequantize_kernel, codes, torch.empty_like(codes, dtype=torch.float32), *qparams[:2])

    def quantize_weight(self, weight: Tensor, quant_max: Tensor) -> tuple[Tensor, Tensor]:
        check_not_empty("quantize_weight", weight)
        weight, count = dense(weight.detach()), weight.shape[0]
        codes, scales = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(count)
        inputs, stride = weight.numel() // count, quant_max.stride(0) if quant_max.dim() else 0
        block = min(triton.next_power_of_2(inputs), _BLOCK)
        launch(
            parameters.quantize_weight_kernel, (count,), weight, codes, scales, inputs, quant_max, stride, block=block
        )
        return codes, scales

    def real_weight(self, codes: Tensor, scales: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
        out, inputs = torch.empty_like(codes, dtype=dtype), codes.numel() // len(codes)
        block = min(triton.next_power_of_2(inputs), _TILE)
        grid = (len(codes), triton.cdiv(inputs, block))
        launch(parameters.real_weight_kernel, grid, codes, out, scales, inputs, step, block=block)
        return out

    def add_range(self, a: Tensor, b: Tensor, qparams_each: k.Both, clamp: k.Clamp) -> tuple[Tensor, Tensor]:
        check_not_empty("add_range", a)
        b, count = aligned(b, a), _parts(a.numel())
        parts = qparams_each[0].scale.new_empty(2, count)
        launch(
            elements.add_range_kernel, (count,),
            a, b, parts, a.numel(), count, *qparams_each[0][:2], *qparams_each[1][:2], *clamp, block=_BLOCK,
        )  # fmt: skip
        return parts[0], parts[1]

    def add_quantize(
        self, a: Tensor, b: Tensor, qparams_each: k.Both, clamp: k.Clamp, qparams: k.QuantizationParameters
    ) -> tuple[Tensor, Tensor]:
        b, codes = aligned(b, a), torch.empty_like(a)
        passed = a.new_empty((a.numel() + 7) // 8)
        launch(
            elements.add_quantize_kernel, (triton.cdiv(a.numel(), _BLOCK),),
            a, b, codes, passed, a.numel(), *qparams_each[0][:2], *qparams_each[1][:2], *clamp, *qparams, block=_BLOCK,
        )  # fmt: skip
        return codes, passed

    def mask(self, gradient: Tensor, passed: Tensor) -> Tensor:
        out = torch.empty_like(gradient)
        grid = (triton.cdiv(gradient.numel(), _BLOCK),)
        launch(elements.mask_kernel, grid, gradient, passed, out, gradient.numel(), block=_BLOCK)
        return out

    def statistics(self, x: Tensor) -> k.Statistics:
        check_not_empty("statistics", x)
        tiles = _Tiles(x)
        parts, out = x.new_empty(tiles.parts, 4, tiles.channels), x.new_empty(4, tiles.channels)
        launch(channels_.statistics_kernel, tiles.in_parts, x, parts, *tiles.shape, tiles.parts, **tiles.sizes)
        launch(channels_.merge_statistics_kernel, tiles.merge, x, parts, out, *tiles.shape, tiles.parts, **_MERGE)
        return k.Statistics(*out.unbind())

    def normalise(
        self,
        statistics: k.Statistics,
        unit: k.AccumulatorScale,
        bias: Tensor | None,
        norm: k.BatchNorm | None,
        clamp: k.Clamp,
        count: int,
    ) -> tuple[k.Normalised, tuple[Tensor, Tensor]]:
        channels = len(unit.weight)
        out, ends = unit.weight.new_empty(5, channels), unit.weight.new_empty(2, channels)
        nothing = unit.weight
        following = (nothing, nothing, nothing, nothing, nothing, 0.0, 0.0) if norm is None else norm
        launch(
            parameters.normalise_kernel, (triton.cdiv(channels, _MAX_WIDTH),),
            *statistics, *unit, nothing if bias is None else bias, *following, count, out, ends, channels, *clamp,
            biased=bias is not None, normed=norm is not None, width=_MAX_WIDTH,
        )  # fmt: skip
        return k.Normalised(*out.unbind()), (ends[0], ends[1])

    def affine_quantize(
        self, x: Tensor, factor: Tensor, offset: Tensor, clamp: k.Clamp, qparams: k.QuantizationParameters
    ) -> Tensor:
        tiles, codes = _Tiles(x), torch.empty_like(x, dtype=torch.uint8)
        launch(
            channels_.affine_quantize_kernel, tiles.all,
            x, codes, factor, offset, *tiles.shape, *clamp, *qparams, **tiles.sizes,
        )  # fmt: skip
        return codes

    def scale_sums(self, sums: Tensor, shift: Tensor | None, factor: Tensor, offset: Tensor) -> Tensor:
        tiles, out = _Tiles(sums), torch.empty_like(sums, dtype=torch.float32)
        launch(
            channels_.scale_sums_kernel, tiles.all,
            sums, out, factor if shift is None else shift, factor, offset, *tiles.shape,
            shifted=shift is not None, **tiles.sizes,
        )  # fmt: skip
        return out

    def gradient_sums(self, output: k.OutputGradient, mean: Tensor) -> tuple[Tensor, Tensor]:
        check_not_empty("gradient_sums", output.x)
        tiles = _Tiles(output.x)
        parts, out = output.x.new_empty(tiles.parts, 2, tiles.channels), output.x.new_empty(2, tiles.channels)
        launch(
            channels_.gradient_sums_kernel, tiles.in_parts,
            *output[:4], parts, *tiles.shape, tiles.parts, *output.clamp, **tiles.sizes,
        )  # fmt: skip
        launch(
            channels_.merge_gradient_sums_kernel, tiles.merge,
            output.x, mean, parts, out, tiles.channels, tiles.parts, **_MERGE,
        )  # fmt: skip
        return out[0], out[1]

    def normalisation_terms(
        self, norm: k.Normalised, passed: Tensor, products: Tensor, count: int
    ) -> tuple[k.GradientTerms, Tensor]:
        channels = len(passed)
        out = passed.new_empty(3, channels)
        launch(
            parameters.normalisation_terms_kernel, (triton.cdiv(channels, _MAX_WIDTH),),
            norm.mean, norm.gain, norm.deviation, passed, products, out, channels, count, width=_MAX_WIDTH,
        )  # fmt: skip
        return k.GradientTerms(norm.gain, out[0], out[1]), out[2]

    def gradient_range(self, output: k.OutputGradient, terms: k.GradientTerms) -> tuple[Tensor, Tensor]:
        check_not_empty("gradient_range", output.x)
        tiles = _Tiles(output.x)
        parts = output.x.new_empty(2, tiles.parts * tiles.across)
        launch(
            channels_.gradient_range_kernel, tiles.in_parts,
            *output[:4], *terms, parts, *tiles.shape, tiles.parts, *output.clamp, **tiles.sizes,
        )  # fmt: skip
        return parts[0], parts[1]

    def gradient_step(self, low: Tensor, high: Tensor, quant_max: Tensor) -> Tensor:
        step = torch.empty_like(quant_max)
        launch(parameters.gradient_step_kernel, (1,), low, high, low.numel(), quant_max, step, block=_MERGED)
        return step

    def gradient_codes(
        self, output: k.OutputGradient, terms: k.GradientTerms, step: Tensor, seed: Tensor, dtype: torch.dtype
    ) -> Tensor:
        tiles, codes = _Tiles(output.x), torch.empty_like(output.gradient, dtype=dtype)
        launch(
            channels_.gradient_codes_kernel, tiles.all,
            *output[:4], *terms, codes, *tiles.shape, *output.clamp, step, seed, **tiles.sizes,
        )  # fmt: skip
        return codes

    def round_gradient(self, gradient: Tensor, step: Tensor, seed: Tensor) -> Tensor:
        gradient = dense(gradient)
        return _each(elements.round_gradient_kernel, gradient, torch.empty_like(gradient), step, seed)

    def scale(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        x = dense(x)
        return _each(elements.scale_kernel, x, torch.empty_like(x, dtype=torch.float32), a, b)


def launch(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument.

    Multiply-adds are not fused, since that would omit a rounding that the other backends have.

    Args:
        kernel: The kernel, or its autotuner.
        grid: Number of blocks in each dimension, or the function of the tuned constants that returns it.
        arguments: Its tensors and numbers.
        constants: Its constants.
    """
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **constants, enable_fp_fusion=False)
    else:
        kernel[grid](*arguments, **constants, enable_fp_fusion=False)


def _each(kernel: Any, x: Tensor, out: Tensor, *arguments: Tensor) -> Tensor:
    launch(kernel, (triton.cdiv(x.numel(), _BLOCK),), x, out, x.numel(), *arguments, block=_BLOCK)
    return out


def _parts(count: int) -> int:
    return min(-(-count // _BLOCK), _PARTS)


_MERGE = {"parts_a_tile": 64, "width": 16}


class _Tiles:
    """The partition of rows × channels: into tiles, one program each, or into parts of several tiles each."""

    def __init__(self, x: Tensor) -> None:
        self.channels = channels_of(x)
        rows = x.numel() // self.channels
        width = min(triton.next_power_of_2(self.channels), _MAX_WIDTH)
        height = _TILE // width
        self.across = triton.cdiv(self.channels, width)
        down = triton.cdiv(rows, height)
        self.parts = min(down, max(_PARTS // self.across, 1))
        self.shape = (rows, self.channels)
        self.sizes = {"rows_a_tile": height, "width": width}
        self.all, self.in_parts = (down, self.across), (self.parts, self.across)
        self.merge = (triton.cdiv(self.channels, _MERGE["width"]),)
