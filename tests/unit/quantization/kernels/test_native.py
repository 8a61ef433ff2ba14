"""Compiled kernels against plain torch: equal bit for bit, on every instruction set that this processor runs.

So are Triton's, in its interpreter, where `test_triton.py` runs this file, or on a GPU.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpt_deploy.quantization.kernels import Clamp, GradientTerms, Kernels, OutputGradient, QuantizationParameters
from cpt_deploy.quantization.kernels import compile as compilation
from cpt_deploy.quantization.kernels.native import NativeKernels
from cpt_deploy.quantization.kernels.parameters import gradient_step, whole
from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.kernels.selection import load_native
from cpt_deploy.quantization.numerics.affine import affine_parameters, including_zero

TORCH = TorchKernels()
CLAMPS = [Clamp(), Clamp(low=0.0), Clamp(0.0, 1.5)]
SHAPES = [(3, 16, 9, 7), (2, 5, 3, 3), (1, 1, 1, 1), (4, 31, 48)]
# The interpreter is slow.
SHAPES += [(2, 150, 2, 2), (70, 37)] if os.environ.get("TRITON_INTERPRET") else [(9, 24, 40, 40), (300, 37)]


def tensor(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def quant_max(bits: int) -> Tensor:
    return torch.tensor(float(2**bits - 1))


def qparams_of(x: Tensor, bits: int = 8) -> QuantizationParameters:
    scale, zero_point = affine_parameters(*including_zero(*torch.aminmax(x)), quant_max(bits))
    return QuantizationParameters(scale, zero_point, quant_max(bits))


def per_channel(x: Tensor, seed: int) -> Tensor:
    count = x.shape[1] if x.dim() == 4 else x.shape[-1]
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.5


def equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ranges_and_codes_are_those_of_torch(native: Kernels, shape: tuple[int, ...]) -> None:
    x = tensor(shape)
    assert whole(*native.range(x)) == TORCH.range(x)
    for bits in (2, 3, 8):
        qparams, coarse = qparams_of(x, bits), qparams_of(2 * x, 2)
        codes = TORCH.quantize(x, qparams)
        assert equal(native.quantize(x, qparams), codes)
        assert equal(native.requantize(codes, qparams, coarse), TORCH.requantize(codes, qparams, coarse))
        assert equal(native.dequantize(codes, qparams), TORCH.dequantize(codes, qparams))
        for dtype in (torch.float32, torch.bfloat16):
            centred = native.centre(codes, qparams.zero_point, dtype)
            assert equal(centred, TORCH.centre(codes, qparams.zero_point, dtype))
            assert torch.equal(centred.double() + qparams.zero_point, codes.double())


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_floats_have_the_range_that_torch_gives_them(native: Kernels, values: list[float]) -> None:
    x = torch.tensor(values)
    assert all(equal(a, b) for a, b in zip(whole(*native.range(x)), TORCH.range(x), strict=True))


@pytest.mark.parametrize("place", [0, 63, 64, 20000, 40959, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_single_bad_value_shows_in_the_range_wherever_it_stands(native: Kernels, value: float, place: int) -> None:
    x = tensor((41000,))
    x[place] = value
    assert all(equal(a, b) for a, b in zip(whole(*native.range(x)), TORCH.range(x), strict=True))
    assert not torch.isfinite(torch.stack(whole(*native.range(x)))).all()


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (10, 64), (1, 1), (48, 1, 3, 3)], ids=str)
def test_weights_have_the_codes_and_scales_that_torch_gives_them(native: Kernels, shape: tuple[int, ...]) -> None:
    weight = tensor(shape)
    weight[0] = 0.0
    for most in (torch.tensor(127.0), torch.tensor(3.0), torch.randint(60, 128, (shape[0],)).float()):
        found, expected = native.quantize_weight(weight, most), TORCH.quantize_weight(weight, most)
        assert all(equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("clamp", CLAMPS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_their_masks_are_those_of_torch(native: Kernels, shape: tuple[int, ...], clamp: Clamp) -> None:
    a, b = tensor(shape, 1), tensor(shape, 2)
    qparams_each = (qparams_of(a), qparams_of(b))
    codes = (TORCH.quantize(a, qparams_each[0]), TORCH.quantize(b, qparams_each[1]))
    expected = TORCH.add_range(*codes, qparams_each, clamp)
    assert whole(*native.add_range(*codes, qparams_each, clamp)) == expected
    qparams = QuantizationParameters(*affine_parameters(*including_zero(*expected), quant_max(8)), quant_max(8))
    found, passed = native.add_quantize(*codes, qparams_each, clamp, qparams)
    expected_codes, expected_passed = TORCH.add_quantize(*codes, qparams_each, clamp, qparams)
    assert equal(found, expected_codes)
    assert equal(passed, expected_passed)
    for dtype in (torch.float32, torch.bfloat16):
        gradient = tensor(shape, 3).to(dtype)
        total = TORCH.dequantize(codes[0], qparams_each[0]) + TORCH.dequantize(codes[1], qparams_each[1])
        inside = (total > clamp.low) & (total < clamp.high)
        for kernels in (native, TORCH):
            assert equal(kernels.mask(gradient, passed), torch.where(inside, gradient, torch.zeros_like(gradient)))


@pytest.mark.parametrize("clamp", CLAMPS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_follows_a_layer_is_that_of_torch(native: Kernels, shape: tuple[int, ...], clamp: Clamp) -> None:
    x = tensor(shape, scale=100.0).round()
    factor, offset = per_channel(x, 1) * 0.01, per_channel(x, 2) - 1
    qparams = qparams_of(torch.stack([-factor.max() * 300, factor.max() * 300]).clamp(*clamp))
    expected = TORCH.affine_quantize(x, factor, offset, clamp, qparams)
    assert equal(native.affine_quantize(x, factor, offset, clamp, qparams), expected)
    for dtype in (torch.float32, torch.bfloat16):
        output = OutputGradient(tensor(shape, 3).to(dtype), x, factor, offset, clamp)
        terms = GradientTerms(per_channel(x, 4), per_channel(x, 5) * 1e-3, per_channel(x, 6) - 1)
        low, high = TORCH.gradient_range(output, terms)
        assert whole(*native.gradient_range(output, terms)) == (low, high)
        step = gradient_step(*including_zero(low, high), quant_max(8))
        for kept in {dtype, torch.bfloat16}:
            codes = native.gradient_codes(output, terms, step, torch.tensor(0xFFFFFFF0), kept)
            assert equal(codes, TORCH.gradient_codes(output, terms, step, torch.tensor(0xFFFFFFF0), kept))
            assert torch.all(codes.float() == codes.float().round())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_are_those_of_float64(native: Kernels, shape: tuple[int, ...]) -> None:
    x = tensor(shape) + 1000.0  # the variance survives a mean that is far away
    rows = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(-1, len(per_channel(x, 0))).double()
    for kernels in (native, TORCH):
        found = kernels.statistics(x)
        assert torch.allclose(found.mean.double(), rows.mean(dim=0), rtol=1e-6)
        assert torch.allclose(found.variance.double(), rows.var(dim=0, correction=0), rtol=1e-4, atol=1e-6)
        assert torch.equal(found.low.double(), rows.amin(dim=0))
        assert torch.equal(found.high.double(), rows.amax(dim=0))


@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (300, 64)], ids=str)
def test_scaled_sums_are_those_of_torch(native: Kernels, shape: tuple[int, int]) -> None:
    sums = torch.randint(-(2**24), 2**24, shape, dtype=torch.int32)
    shift = torch.randint(-1000, 1000, (shape[1],), dtype=torch.int32)
    factor, offset = per_channel(sums, 1) * 1e-4, per_channel(sums, 2) - 1
    for shifts in (shift, None):
        assert equal(native.scale_sums(sums, shifts, factor, offset), TORCH.scale_sums(sums, shifts, factor, offset))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_sums_are_those_of_float64(native: Kernels, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, factor = tensor(shape) + 10.0, per_channel(tensor(shape), 1)
    gradient = tensor(shape, 3).to(dtype)
    output = OutputGradient(gradient, x, factor, -10 * factor, Clamp(low=0.0))
    mean = TORCH.statistics(x).mean

    def rows(values: Tensor) -> Tensor:
        return (values.permute(0, 2, 3, 1) if values.dim() == 4 else values).reshape(-1, len(factor)).double()

    along = factor.view(1, -1, 1, 1) if x.dim() == 4 else factor
    passed = torch.where((x * along + -10 * along) > 0, gradient.float(), torch.zeros(()))
    expected = rows(passed).sum(dim=0), (rows(passed) * (rows(x) - mean.double())).sum(dim=0)
    for kernels in (native, TORCH):
        for found, wanted in zip(kernels.gradient_sums(output, mean), expected, strict=True):
            assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-4 * rows(passed).shape[0] ** 0.5)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("size", [1.0, 1e-8, 1e-30])
def test_gradients_are_rounded_as_in_plain_torch(native: Kernels, size: float, seed: int) -> None:
    gradient = tensor((7, 24, 9, 5), 5, size)
    step = gradient_step(*including_zero(*TORCH.range(gradient)), quant_max(8))
    of_seed = step, torch.tensor(seed)
    assert equal(native.round_gradient(gradient, *of_seed), TORCH.round_gradient(gradient, *of_seed))


def test_results_do_not_depend_on_the_number_of_threads(native: Kernels) -> None:
    if not isinstance(native, NativeKernels):
        pytest.skip("a matter of the CPU")
    x = tensor((16, 24, 40, 40), scale=50.0)
    output = OutputGradient(tensor((16, 24, 40, 40), 3), x, per_channel(x, 1), per_channel(x, 2), Clamp(low=0.0))

    def results() -> list[Tensor]:
        mean = native.statistics(x)
        return [*mean, *native.gradient_sums(output, mean.mean), *native.range(x), native.quantize(x, qparams_of(x))]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = results()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(single, results(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (0, 5, 3, 3)], ids=str)
def test_an_empty_tensor_has_codes_but_no_range_and_no_statistics(native: Kernels, shape: tuple[int, ...]) -> None:
    x, one = torch.empty(shape), torch.ones(())
    codes, qparams = torch.empty(shape, dtype=torch.uint8), QuantizationParameters(one, one, quant_max(8))
    output = OutputGradient(x, x, torch.ones(5), torch.ones(5), Clamp())
    for kernels in (native, TORCH):
        with pytest.raises(ValueError, match="at least one element"):
            kernels.range(x)
        with pytest.raises(ValueError, match="at least one element"):
            kernels.add_range(codes, codes, (qparams, qparams), Clamp())
        if len(shape) > 1:
            with pytest.raises(ValueError, match="at least one element"):
                kernels.statistics(x)
            with pytest.raises(ValueError, match="at least one element"):
                kernels.gradient_sums(output, torch.ones(5))
            with pytest.raises(ValueError, match="at least one element"):
                kernels.gradient_range(output, GradientTerms(*torch.ones(3, 5)))
            with pytest.raises(ValueError, match="at least one element"):
                kernels.quantize_weight(x, quant_max(8))
    assert TORCH.quantize(x, qparams).shape == shape


@pytest.mark.parametrize("shape", [(0,), (0, 5)], ids=str)
def test_compiled_kernels_leave_an_empty_tensor_as_it_is(native: Kernels, shape: tuple[int, ...]) -> None:
    if not isinstance(native, NativeKernels):
        pytest.skip("a matter of the CPU")
    x, one = torch.empty(shape), torch.ones(())
    qparams, terms = QuantizationParameters(one, one, quant_max(8)), GradientTerms(*torch.ones(3, 5))
    codes = native.quantize(x, qparams)
    assert codes.shape == native.dequantize(native.requantize(codes, qparams, qparams), qparams).shape == shape
    assert native.round_gradient(x, one, torch.tensor(1)).shape == shape
    if len(shape) > 1:
        assert native.affine_quantize(x, torch.ones(5), torch.ones(5), Clamp(), qparams).shape == shape
        output = OutputGradient(x, x, torch.ones(5), torch.ones(5), Clamp())
        assert native.gradient_codes(output, terms, one, torch.tensor(1), torch.float32).shape == shape


def test_a_kernel_without_memory_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels compiled with an allocator that never has memory."""
    allocator = tmp_path / "allocator.h"
    allocator.write_text("#include <stdlib.h>\n#define malloc(size) NULL\n#define calloc(count, size) NULL\n")
    monkeypatch.setattr(compilation, "OBJECTS", tmp_path / "compiled")
    monkeypatch.setenv("CC", f"{os.environ.get('CC', 'cc')} -include {allocator}")
    if why := compilation.compile_kernels()["generic"]:
        pytest.skip(f"no compiled kernels: {why}")
    kernels = load_native("generic")
    assert isinstance(kernels, NativeKernels)
    x, one = tensor((2, 5, 3, 3)), torch.ones(())
    qparams, output = qparams_of(x), OutputGradient(x, x, torch.ones(5), torch.ones(5), Clamp())
    codes = kernels.quantize(x, qparams)  # needs none of its own
    calls: list[Callable[[], object]] = [
        lambda: kernels.range(x),
        lambda: kernels.add_range(codes, codes, (qparams, qparams), Clamp()),
        lambda: kernels.statistics(x),
        lambda: kernels.affine_quantize(x, torch.ones(5), torch.ones(5), Clamp(), qparams),
        lambda: kernels.gradient_sums(output, torch.ones(5)),
        lambda: kernels.gradient_range(output, GradientTerms(*torch.ones(3, 5))),
        lambda: kernels.gradient_codes(output, GradientTerms(*torch.ones(3, 5)), one, torch.tensor(1), torch.float32),
    ]
    for call in calls:
        with pytest.raises(MemoryError, match="Expected memory"):
            call()
