"""int8 products for tensor cores: exact against 64-bit integers, and compiled for GPUs that are not here.

Without a GPU the kernels run in Triton's interpreter, which a process has for all of Triton or not at all: one test
runs those of this file that need it in a process of their own.
"""

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cpt_deploy.quantization.kernels import QuantizationParameters
from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.modules.layers import quantized_layer
from cpt_deploy.quantization.state.precision_state import PrecisionState
from cpt_deploy.quantization.training_step import int8_products, products

triton = pytest.importorskip("triton")

from cpt_deploy.quantization.kernels.triton import int8_matmul  # noqa: E402  it is Triton's

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_CPU = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 or a GPU")
runs = pytest.mark.gpu if DEVICE == "cuda" else ON_CPU


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the tests themselves run here")
def test_all_hold_in_the_interpreter(run_interpreted: Callable[..., None]) -> None:
    run_interpreted(__file__)


def integers(low: int, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(low, high + 1, shape, device=DEVICE).to(dtype)


@runs
@settings(max_examples=8)
@given(
    m=st.integers(1, 70),
    n=st.integers(1, 70),
    k=st.integers(1, 150),
    unsigned=st.booleans(),
    parts=st.tuples(*[st.booleans()] * 4),
)
def test_a_product_is_exact_and_its_epilogue_rounds_step_by_step(m, n, k, unsigned, parts) -> None:
    a = integers(0, 255, m, k, dtype=torch.uint8) if unsigned else integers(-128, 127, m, k, dtype=torch.int8)
    b = integers(-127, 127, n, k, dtype=torch.int8)
    terms = (
        integers(-(2**33), 2**33, m, dtype=torch.int64),
        integers(-(2**33), 2**33, n, dtype=torch.int64),
        torch.rand(n, device=DEVICE),
        torch.randn(n, device=DEVICE),
    )
    rows, columns, factor, offset = (term if used else None for term, used in zip(terms, parts, strict=True))
    found = int8_matmul.multiply(a, b, int8_matmul.Epilogue(rows, columns, factor, offset))
    expected = ((a.cpu().long() - 128 * unsigned) @ b.cpu().long().t()).to(DEVICE)
    expected = expected + (0 if rows is None else rows[:, None]) + (0 if columns is None else columns)
    expected = expected.float()
    expected = expected if factor is None else expected * factor
    assert torch.equal(found, expected if offset is None else expected + offset)


@runs
def test_extreme_values_do_not_saturate() -> None:
    a, b = (torch.full((32, 2048), value, dtype=torch.int8, device=DEVICE) for value in (-128, -127))
    assert (int8_matmul.multiply(a, b, int8_matmul.Epilogue()) == 128 * 127 * 2048).all()


@runs
@settings(max_examples=8)
@given(m=st.integers(1, 130), n=st.integers(1, 130), low=st.integers(-255, 0), kind=st.sampled_from(["codes", "bf16"]))
def test_packing_shifts_turns_and_sums(m, n, low, kind) -> None:
    if kind == "codes":
        x, shift, expected = integers(0, 255, m, n, dtype=torch.uint8), None, 128
    else:
        x, expected = integers(low, low + 255, m, n, dtype=torch.bfloat16), low + 128
        shift = torch.tensor(float(expected), device=DEVICE)
    packed = int8_matmul.pack(x, shift, keep_rows=True)
    wanted = (x.long() - expected).to(torch.int8)
    assert packed.rows is not None
    assert torch.equal(packed.rows, wanted)
    assert torch.equal(packed.columns, wanted.t())
    assert torch.equal(packed.sums, wanted.sum(dim=0, dtype=torch.int32))
    assert int8_matmul.pack(x, shift, keep_rows=False).rows is None


def operands(
    rows: tuple[int, ...], inputs: int, outputs: int
) -> tuple[Tensor, Tensor, QuantizationParameters, Tensor, Tensor]:
    """Gradient codes, input codes with their grid, weight codes and scales."""
    zero_point = torch.randint(0, 256, (), device=DEVICE).float()
    grid = QuantizationParameters(torch.tensor(0.03, device=DEVICE), zero_point, torch.tensor(255.0, device=DEVICE))
    low = -int(torch.randint(0, 256, ()))
    return (
        integers(low, low + 255, *rows, outputs, dtype=torch.bfloat16),
        integers(0, 255, *rows, inputs, dtype=torch.uint8),
        grid,
        integers(-127, 127, outputs, inputs, dtype=torch.int8),
        torch.rand(outputs, device=DEVICE) + 0.1,
    )


@runs
def test_a_linears_products_are_those_of_integers(monkeypatch) -> None:
    """Through `products`, whose choice is told that the device has tensor cores and no product is too small."""
    torch.manual_seed(0)
    monkeypatch.setattr(int8_products, "has_int8_tensor_cores", lambda device: True)
    monkeypatch.setattr(int8_products, "_MIN_MACS", 0)
    gradient, codes, grid, weight, scales = operands((3, 16), 48, 32)
    precision = PrecisionState(8, 0)
    layer = quantized_layer(nn.Linear(48, 32), precision, "scheduled", 0)
    sums = products.forward_product(layer, codes, grid, weight, TorchKernels())
    exact = (codes.double() - grid.zero_point) @ weight.double().t()
    assert torch.equal(sums.double(), exact)
    scaled = products.forward_product(layer, codes, grid, weight, TorchKernels(), products.Scaling(scales, -scales))
    assert torch.equal(scaled, exact.float() * scales - scales)

    real = weight * scales.unsqueeze(1)
    grads = products.backward_products(layer, gradient, codes, grid, real, TorchKernels(), inward=True)
    rows = gradient.reshape(48, 32).double()
    assert torch.equal(grads[1].double(), rows.t() @ (codes.reshape(48, 48).double() - grid.zero_point))
    assert grads[0] is not None
    assert grads[0].dtype == torch.bfloat16
    assert grads[0].shape == codes.shape
    # Each weight moves by half of a step of its column at most, then the result is rounded to bfloat16.
    wanted = rows @ real.double()
    moved = rows.abs().sum(dim=1, keepdim=True) * (real.abs().amax(dim=0) / 254).double()
    assert ((grads[0].reshape(48, 48).double() - wanted).abs() <= moved + wanted.abs() * 2**-8 + 1e-9).all()
    none, same = products.backward_products(layer, gradient, codes, grid, real, TorchKernels(), inward=False)
    assert none is None
    assert torch.equal(same, grads[1])


@runs
def test_the_error_of_the_inputs_gradient_is_small_and_has_no_direction() -> None:
    torch.manual_seed(1)
    gradient, codes, grid, weight, scales = operands((64,), 64, 96)
    weight = torch.randn(96, 64, device=DEVICE).mul_(30).round_().clamp_(-127, 127).to(torch.int8)
    found, _ = int8_products.backward(gradient, codes, grid, weight * scales.unsqueeze(1), inward=True)
    assert found is not None
    wanted = gradient.double() @ (weight.double() * scales.unsqueeze(1))
    error = found.double() - wanted
    assert float(error.norm() / wanted.norm()) < 0.02
    assert abs(float((error * wanted).sum() / wanted.square().sum())) < 0.005


@runs
@pytest.mark.parametrize("where", ["gradient", "zero point"])
def test_what_is_no_number_raises_nothing(where) -> None:
    gradient, codes, grid, weight, scales = operands((32,), 32, 16)
    if where == "gradient":
        gradient[3, 4] = float("nan")
    else:
        grid = grid._replace(scale=grid.scale * float("nan"), zero_point=grid.zero_point * float("nan"))
    int8_products.forward(codes, grid, weight, scales * grid.scale, None)
    found, _ = int8_products.backward(gradient, codes, grid, weight * scales[:, None] * float("nan"), inward=True)
    assert found is not None
    assert found.isnan().all()  # the gradient's step is NaN, and so is the weight times it


@pytest.mark.parametrize("sizes", [(8, 64, 64), (64, 24, 64), (64, 64, 24)])
def test_shapes_that_tensor_cores_do_not_read_fast_go_elsewhere(monkeypatch, sizes) -> None:
    monkeypatch.setattr(int8_products, "has_int8_tensor_cores", lambda device: True)
    monkeypatch.setattr(int8_products, "_MIN_MACS", 0)
    rows, inputs, outputs = sizes
    codes, weight = torch.zeros(rows, inputs, dtype=torch.uint8), torch.zeros(outputs, inputs, dtype=torch.int8)
    assert not int8_products.suits_int8(codes, weight)
    assert int8_products.suits_int8(codes.new_zeros(32, 64), weight.new_zeros(64, 64))


def test_a_cpu_has_no_tensor_cores() -> None:
    assert not int8_products.has_int8_tensor_cores(torch.device("cpu"))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("capability", "instruction"), [(80, "mma.sync"), (90, "wgmma.mma_async")])
def test_the_product_compiles_to_int8_tensor_core_instructions(capability, instruction) -> None:
    chosen = int8_matmul.CONFIGURATIONS[0]
    code = compiled(
        int8_matmul.product,
        {"a": "*u8", "b": "*i8", "out": "*fp32", "rows": "*i64", "columns": "*i64", "factor": "*fp32"}
        | {"offset": "*fp32", "height": "i32", "width": "i32", "depth": "i32"},
        {"HAS_ROWS": True, "HAS_COLUMNS": True, "HAS_FACTOR": True, "HAS_OFFSET": True, "UNSIGNED": True}
        | chosen.kwargs,
        capability,
        {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages, "enable_fp_fusion": False},
    )
    lines = [line for line in code.splitlines() if instruction in line]
    assert any("s8.s8" in line for line in lines)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("capability", "kind"), [(80, "*bf16"), (90, "*u8"), (90, "*bf16")])
def test_packing_compiles(capability, kind) -> None:
    pointers = {"x": kind, "shift": "*fp32", "rows": "*i8", "columns": "*i8", "sums": "*i32"}
    signature = pointers | {"height": "i32", "width": "i32"}
    constants = {"HAS_SHIFT": kind != "*u8", "KEEP_ROWS": True, "BLOCK": int8_matmul.PACK_BLOCK}
    assert ".entry packing" in compiled(int8_matmul.packing, signature, constants, capability, {})


def compiled(kernel, signature, constants, capability, options) -> str:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = signature | dict.fromkeys(constants, "constexpr")
    result = triton.compile(ASTSource(kernel, types, constants), GPUTarget("cuda", capability, 32), options)
    assert result.asm["cubin"]
    return result.asm["ptx"]
