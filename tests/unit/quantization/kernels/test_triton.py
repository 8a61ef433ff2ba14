"""Triton's kernels: what `test_native.py` has no other backend for, a step of training, and code for GPUs.

Without a GPU the kernels run in Triton's interpreter, which a process has for all of Triton or not at all: one test
runs what needs it in a process of its own.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization import model as model_module
from cpt_deploy.quantization.kernels import (
    AccumulatorScale,
    Average,
    BatchNorm,
    Clamp,
    Kernels,
    OutputGradient,
    QuantizationParameters,
    QuantMax,
)
from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.kernels.selection import Selection

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.driver import DriverBase  # noqa: E402

from cpt_deploy.quantization.kernels.triton import backend, channels, elements, parameters  # noqa: E402
from tests.unit.quantization.kernels.conftest import interpreted_or_on_gpu  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TORCH = TorchKernels()
WIDTH, HEIGHT = torch.tensor(255.0), torch.tensor(7.0)


@pytest.mark.skipif(INTERPRETED, reason="the tests themselves run here")
def test_all_hold_in_the_interpreter(run_interpreted: Callable[..., None]) -> None:
    run_interpreted(*(str(Path(__file__).with_name(f"test_{name}.py")) for name in ("triton", "native", "parameters")))


# --- a step of training -----------------------------------------------------------------------------------------------


def network() -> QuantizedModel:
    """Strided and pointwise convolutions, BatchNorm, a residual sum, pooling, a Linear layer."""
    torch.manual_seed(0)
    float_model = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8), width=8)
    return (
        prepare(float_model, torch.zeros(2, 1, 8, 8), QuantizationConfig())
        .train()
        .to(memory_format=torch.channels_last)
    )


def losses(model: QuantizedModel, steps: int, device: str = "cpu", batch: int = 24) -> Tensor:
    model = model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    history = []
    for number in range(steps):
        generator = torch.Generator().manual_seed(number)
        labels = torch.randint(0, 10, (batch,), generator=generator)
        images = functional.one_hot(labels, 10).float().view(batch, 1, 1, 10).expand(-1, -1, 8, -1)[..., :8]
        images = images + 0.5 * torch.randn(batch, 1, 8, 8, generator=generator)
        model.set_bits(3 + number % 6, 8)
        model.set_step(number)
        loss = functional.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.detach().cpu())
    return torch.stack(history)


def test_losses_are_those_of_the_cpu(triton_kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    if not INTERPRETED:
        pytest.skip("the kernels run on the model's device")
    found = []
    for kernels in (triton_kernels, TORCH):
        monkeypatch.setattr(model_module, "active", lambda _, kernels=kernels: Selection(kernels, native=True))
        model = network()
        model.compute = "float32"
        found.append(losses(model, 2, batch=4))
    # Sums are added in another order, by which a code may round the other way later on.
    assert torch.allclose(found[0][:1], found[1][:1], rtol=1e-5)
    assert torch.allclose(found[0], found[1], atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_losses_of_200_steps_on_a_gpu_are_those_of_the_cpu() -> None:
    """The bounds are those of `test_program.py`: means over 20 steps within 0.2, that of all within 0.06."""
    found, expected = losses(network(), 200, "cuda").view(10, 20).mean(1), losses(network(), 200).view(10, 20).mean(1)
    assert (found - expected).abs().max() < 0.2
    assert (found.mean() - expected.mean()).abs() < 0.06


# --- code for GPUs ----------------------------------------------------------------------------------------------------


def every_launch(kernels: Kernels, shape: tuple[int, int, int, int]) -> None:
    """Call each function once on tensors of a shape, or twice where types or constants differ."""
    scalar, x = torch.tensor(1.0), torch.randn(shape).contiguous(memory_format=torch.channels_last)
    codes, channels, grid = x.to(torch.uint8), torch.ones(shape[1]), QuantizationParameters(scalar, scalar, scalar)
    average, count, rows = Average(scalar, scalar, torch.tensor(0), 0.1), torch.tensor(0), x.numel() // shape[1]
    kernels.observe(*kernels.range(x), average, QuantMax(scalar, scalar, 0.0, False))
    kernels.observe(channels, channels, None, QuantMax(scalar, scalar, 0.0, True))
    kernels.quantize(x, grid)
    kernels.requantize(codes, grid, grid)
    kernels.centre(codes, scalar, torch.bfloat16)
    kernels.dequantize(codes, grid)
    kernels.quantize_weight(x, scalar)
    kernels.real_weight(codes.to(torch.int8), torch.ones(shape[0]), scalar, torch.bfloat16)
    kernels.add_range(codes, codes, (grid, grid), Clamp(low=0.0))
    kernels.add_quantize(codes, codes, (grid, grid), Clamp(low=0.0), grid)
    kernels.mask(x.bfloat16(), codes)
    norm = BatchNorm(channels, channels, channels, channels, count, 0.1, 1e-5)
    statistics = kernels.statistics(x)
    normalised, _ = kernels.normalise(statistics, AccumulatorScale(scalar, channels), None, norm, Clamp(), rows)
    kernels.normalise(statistics, AccumulatorScale(scalar, channels), channels, None, Clamp(), rows)
    kernels.affine_quantize(x, channels, channels, Clamp(), grid)
    kernels.scale_sums(x.to(torch.int32), channels.to(torch.int32), channels, channels)
    kernels.scale_sums(x, None, channels, channels)
    output = OutputGradient(x.bfloat16(), x, channels, channels, Clamp(low=0.0))
    kernels.gradient_sums(output, channels)
    terms, _ = kernels.normalisation_terms(normalised, channels, channels, rows)
    kernels.gradient_range(output, terms)
    kernels.gradient_step(channels, channels, scalar)
    kernels.gradient_codes(output, terms, scalar, count, torch.bfloat16)
    kernels.round_gradient(x, scalar, count)
    kernels.scale(x.bfloat16(), scalar, scalar)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (4, 16, 8, 8), (3, 5, 7, 9)])
def test_every_launch_runs_on_a_gpu(triton_kernels, shape) -> None:
    """What `.ci/race-check` looks at: all of these kernels, and none of another library."""
    every_launch(triton_kernels, shape)
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_quotient_by_a_reciprocal_is_that_of_a_division() -> None:
    """Codes of values between, at and beside the bounds where rounding changes, for many scales."""
    kernels = interpreted_or_on_gpu()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        scale = torch.rand((), generator=generator) * 2.0 ** float(torch.randint(-140, 20, (), generator=generator))
        bound = (torch.arange(-130, 130) + 0.5) * scale
        beside = [torch.nextafter(bound, torch.tensor(end)) for end in (-float("inf"), float("inf"))]
        x = torch.cat([bound, *beside, torch.randn(2000, generator=generator) * 100 * scale])
        x = torch.cat([x, torch.tensor([float("inf"), -float("inf"), 1e38, -1e38, 1e-40, 0.0])])
        grid = QuantizationParameters(scale, torch.tensor(117.0), torch.tensor(255.0))
        assert torch.equal(kernels.quantize(x, grid), TORCH.quantize(x, grid))


class NoCard(DriverBase):  # type: ignore[misc]
    """What Triton asks of a driver until it launches, for a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> None:
        return None

    def get_current_device(self) -> str:
        return f"no GPU of {self.capability}"  # kernels are kept by device

    def get_current_stream(self, _: object) -> int:
        return 0


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("capability", "shape"), [(80, (1, 1, 1, 1)), (90, (4, 16, 8, 8))])
def test_every_launch_compiles_without_a_gpu(
    capability, shape, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the runtime compiles: a kernel is looked at again at its second launch, and a size of 1 is a constant."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", NoCard(capability))
    launched = []

    def launch(kernel, grid, *passed, **constants) -> None:
        code = kernel.warmup(*passed, **constants, grid=grid, enable_fp_fusion=False).asm["ptx"]
        launched.append((kernel.fn.__name__, code))

    monkeypatch.setattr(backend, "launch", launch)
    for _ in range(2):
        every_launch(backend.TritonKernels(), shape)
    for name, code in launched:
        # Each operation rounds; `quotient` alone fuses, four times for the one value that it takes the size of.
        assert code.count("fma.rn.f32") == 4 * code.count("abs.f32"), name
        assert "div.full" not in code, name
    modules = (elements, channels, parameters)
    assert {name for name, _ in launched} == {
        name for module in modules for name in vars(module) if name.endswith("_kernel")
    }
