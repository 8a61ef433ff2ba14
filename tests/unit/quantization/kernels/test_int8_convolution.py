"""int8 convolutions for tensor cores: exact against float64, and compiled for GPUs that are not here."""

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton")

from cpt_deploy.quantization.kernels.triton import int8_convolution  # noqa: E402  it is Triton's
from cpt_deploy.quantization.kernels.triton.int8_convolution import Geometry, convolve  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_CPU = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 or a GPU")
runs = pytest.mark.gpu if DEVICE == "cuda" else ON_CPU
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the tests themselves run here")
def test_all_hold_in_the_interpreter(run_interpreted: Callable[..., None]) -> None:
    run_interpreted(__file__)


def operands(shape: tuple[int, ...], outputs: int, kernel: tuple[int, int], groups: int) -> tuple[Tensor, ...]:
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
    weight = torch.randint(-127, 128, (outputs, shape[1] // groups, *kernel), device=DEVICE).to(torch.int8)
    return codes, torch.randint(0, 256, (), device=DEVICE).float(), weight


def check(codes: Tensor, zero_point: Tensor, weight: Tensor, geometry: Geometry) -> None:
    found = convolve(codes, zero_point, weight, geometry)
    options = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    wanted = torch.conv2d(codes.cpu().double() - zero_point.cpu().double(), weight.cpu().double(), None, *options)
    assert torch.equal(found.cpu().double(), wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


@runs
@settings(max_examples=5 if INTERPRETED else 60, deadline=None)
@given(
    kernel=pairs,
    stride=pairs,
    dilation=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 20),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(7, 10), st.integers(7, 10)),
)
def test_sums_are_those_of_float64(kernel, stride, dilation, padding, inputs, outputs, groups, size) -> None:
    torch.manual_seed(inputs)
    values = operands((2, inputs * groups, *size), outputs * groups, kernel, groups)
    check(*values, Geometry(stride, padding, dilation, groups))


@runs
@pytest.mark.parametrize("inputs", [3, 16, 64, 130])
def test_common_layers(inputs) -> None:
    """A stem, a block of one position and one of several, a last block that is not full."""
    torch.manual_seed(0)
    check(*operands((2, inputs, 12, 9), 40, (3, 3), 1), Geometry((2, 2), (1, 1), (1, 1), 1))
    check(*operands((1, inputs, 6, 6), 24, (1, 1), 1), Geometry((1, 1), (0, 0), (1, 1), 1))


@runs
def test_extreme_values_do_not_saturate() -> None:
    codes = torch.full((1, 512, 3, 3), 255, dtype=torch.uint8, device=DEVICE)
    weight = torch.full((16, 512, 3, 3), -127, dtype=torch.int8, device=DEVICE)
    found = convolve(codes, torch.tensor(0.0, device=DEVICE), weight, Geometry((1, 1), (0, 0), (1, 1), 1))
    assert (found == -127 * 255 * 512 * 9).all()


@runs
def test_a_zero_point_that_is_no_number_raises_nothing() -> None:
    codes, _, weight = operands((1, 4, 5, 5), 3, (3, 3), 1)
    nan = torch.tensor(float("nan"), device=DEVICE)
    assert convolve(codes, nan, weight, Geometry((1, 1), (1, 1), (1, 1), 1)).shape == (1, 3, 5, 5)


def test_long_sums_go_elsewhere() -> None:
    assert int8_convolution.is_summed_exactly(torch.empty(1, 7000, 3, 3))
    assert not int8_convolution.is_summed_exactly(torch.empty(1, 8000, 3, 3))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("capability", "instruction"), [(80, "mma.sync"), (90, "wgmma.mma_async")])
@pytest.mark.parametrize("inputs", [3, 256])
def test_it_compiles_to_int8_tensor_core_instructions(capability, instruction, inputs) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sizes, options = int8_convolution._blocks(64, inputs, interpreted=False)
    constants = {"KERNEL_H": 3, "KERNEL_W": 3, "FEW_INPUTS": inputs if inputs < 64 else 0, **sizes}
    names = int8_convolution.convolution_kernel.arg_names
    pointers = {"codes": "*u8", "filters": "*i8", "filter_sums": "*i32", "out": "*fp32", "zero_point": "*fp32"}
    types = {name: pointers.get(name, "i32") for name in names} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(int8_convolution.convolution_kernel, types, constants)
    lines = triton.compile(source, GPUTarget("cuda", capability, 32), options).asm["ptx"].splitlines()
    assert any(instruction in line and "s8.s8" in line for line in lines)
