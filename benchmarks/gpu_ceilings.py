"""Limits of a GPU, bandwidth and matrix products, and how close the kernels of quantized training come to them.

Used by `training_gpu.py`. On a CPU it runs on tiny shapes, for the tests.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from measuring import interleaved, markdown_table
from torch import Tensor
from training_steps import Step, synchronized_clock

from cpt_deploy.quantization.kernels import Clamp, GradientTerms, Kernels, OutputGradient, QuantizationParameters
from cpt_deploy.quantization.training_step import int8_products

REPEATS = 10


class Sizes(NamedTuple):
    """Shapes of the measurements.

    Args:
        copied: Bytes of the copy that measures the bandwidth.
        matrix: Side of the square products that measure the limits of the matrix units.
        activation: (N, C, H, W) of the tensor on which the elementwise kernels are timed.
        linears: (rows, inputs, outputs) of the Linear layers whose products are timed.
    """

    copied: int
    matrix: int
    activation: tuple[int, int, int, int]
    linears: tuple[tuple[int, int, int], ...]


LARGE = Sizes(
    copied=2**31,
    matrix=8192,
    activation=(256, 256, 56, 56),
    linears=(
        (4096, 768, 768),
        (16384, 768, 768),
        (16384, 768, 3072),
        (16384, 3072, 768),
        (16384, 2048, 8192),
        (16384, 4096, 4096),
    ),
)
SMALL = Sizes(
    copied=2**16,
    matrix=64,
    activation=(2, 8, 4, 4),
    linears=((32, 32, 48),),
)


def seconds(steps: Mapping[str, Step], device: torch.device, rounds: int) -> dict[str, float]:
    """Return the median time of each function over batches of several calls."""

    def repeated(step: Step) -> Step:
        def run() -> None:
            for _ in range(REPEATS):
                step()

        return run

    runs = {name: repeated(step) for name, step in steps.items()}
    times = interleaved(runs, rounds=rounds, warmup=2, clock=lambda: synchronized_clock(device))
    return {name: statistics.median(values) / REPEATS for name, values in times.items()}


def ceilings(device: torch.device, sizes: Sizes, rounds: int) -> dict[str, float]:
    """Return bytes per second of a copy, reads plus writes, and operations per second of products by type."""
    source = torch.ones(sizes.copied, dtype=torch.uint8, device=device)
    target, n = torch.empty_like(source), sizes.matrix
    left, right = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    halves = left.bfloat16(), right.bfloat16()
    codes = [torch.randint(-127, 128, (n, n), device=device).to(torch.int8) for _ in range(2)]
    steps: dict[str, Step] = {
        "copy": lambda: target.copy_(source),  # type: ignore[dict-item]
        "float32": lambda: _product(left, right, tf32=False),
        "TF32": lambda: _product(left, right, tf32=True),
        "bfloat16": lambda: _product(*halves, tf32=False),
        "int8, cuBLAS": lambda: _discard(torch._int_mm(codes[0], codes[1].t())),
    }
    if int8_products.has_int8_tensor_cores(device):
        from cpt_deploy.quantization.kernels.triton.int8_matmul import Epilogue, multiply

        steps["int8, Triton"] = lambda: _discard(multiply(codes[0], codes[1], Epilogue()))
    times = seconds(steps, device, rounds)
    return {name: (2 * sizes.copied if name == "copy" else 2 * n**3) / time for name, time in times.items()}


def kernel_bandwidth(device: torch.device, kernels: Kernels, sizes: Sizes, rounds: int) -> dict[str, dict[str, float]]:
    """Return time and bytes per second of each elementwise kernel, by the bytes that it must read and write."""
    calls = kernel_calls(device, kernels, sizes.activation)
    elements = torch.Size(sizes.activation).numel()
    times = seconds({name: call for name, (call, _) in calls.items()}, device, rounds)
    return {
        name: {"microseconds": 1e6 * times[name], "bytes_per_s": elements * passes / times[name]}
        for name, (_, passes) in calls.items()
    }


def kernel_calls(device: torch.device, kernels: Kernels, shape: tuple[int, ...]) -> dict[str, tuple[Step, float]]:
    """Return each kernel on an activation, and the bytes per element that it must read and write."""
    x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(x).bfloat16()
    number = torch.tensor(255.0, device=device)
    grid = QuantizationParameters(torch.tensor(0.05, device=device), torch.tensor(128.0, device=device), number)
    codes = kernels.quantize(x, grid)
    ones, zeros = torch.ones(shape[1], device=device), torch.zeros(shape[1], device=device)
    output, terms, relu = (
        OutputGradient(gradient, x, ones, zeros, Clamp(low=0.0)),
        GradientTerms(ones, zeros, zeros),
        Clamp(low=0.0),
    )
    step, seed = torch.tensor(0.1, device=device), torch.tensor(7, device=device)
    _, passed = kernels.add_quantize(codes, codes, (grid, grid), relu, grid)
    calls: dict[str, tuple[Callable[[], Any], float]] = {
        "range": (lambda: kernels.range(x), 4),
        "quantize": (lambda: kernels.quantize(x, grid), 5),
        "centre": (lambda: kernels.centre(codes, grid.zero_point, torch.bfloat16), 3),
        "dequantize": (lambda: kernels.dequantize(codes, grid), 5),
        "statistics": (lambda: kernels.statistics(x), 4),
        "affine_quantize": (lambda: kernels.affine_quantize(x, ones, zeros, relu, grid), 5),
        "add_range": (lambda: kernels.add_range(codes, codes, (grid, grid), relu), 2),
        "add_quantize": (lambda: kernels.add_quantize(codes, codes, (grid, grid), relu, grid), 3.125),
        "mask": (lambda: kernels.mask(gradient, passed), 4.125),
        "gradient_sums": (lambda: kernels.gradient_sums(output, zeros), 6),
        "gradient_range": (lambda: kernels.gradient_range(output, terms), 6),
        "gradient_codes": (lambda: kernels.gradient_codes(output, terms, step, seed, torch.bfloat16), 8),
    }
    return {name: (lambda call=call: _discard(call()), moved) for name, (call, moved) in calls.items()}  # type: ignore[misc]


def linear_products(device: torch.device, sizes: Sizes, rounds: int) -> list[dict[str, Any]]:
    """Time a Linear's forward product and its two backward products in bfloat16 and in int8, shape by shape."""
    results = []
    for rows, inputs, outputs in sizes.linears:
        codes = torch.randint(0, 256, (rows, inputs), device=device).to(torch.uint8)
        weight = torch.randint(-127, 128, (outputs, inputs), device=device).to(torch.int8)
        gradient = torch.randint(-120, 120, (rows, outputs), device=device).bfloat16()
        grid = QuantizationParameters(*(torch.tensor(value, device=device) for value in (0.05, 128.0, 255.0)))
        factor = torch.rand(outputs, device=device)
        x, real = codes.bfloat16(), weight.bfloat16()
        steps: dict[str, Step] = {
            "bfloat16 forward": lambda x=x, real=real: _discard(x @ real.t()),  # type: ignore[misc]
            "bfloat16 backward": lambda x=x, real=real, gradient=gradient: _discard(  # type: ignore[misc]
                gradient @ real, gradient.t() @ x
            ),
        }
        if int8_products.has_int8_tensor_cores(device):
            steps["int8 forward"] = lambda a=(codes, grid, weight, factor, None): _discard(  # type: ignore[misc]
                int8_products.forward(*a)
            )
            steps["int8 backward"] = lambda a=(gradient, codes, grid, real): _discard(  # type: ignore[misc]
                int8_products.backward(*a, inward=True)
            )
        times = seconds(steps, device, rounds)
        microseconds = {name: 1e6 * time for name, time in times.items()}
        results.append({"rows": rows, "inputs": inputs, "outputs": outputs, "microseconds": microseconds})
    return results


def ceiling_tables(content: Mapping[str, Any]) -> str:
    """Return the tables of limits, kernels and products as Markdown."""
    limits, kernels, linears = content["ceilings"], content["kernels"], content["linears"]
    products = {name: value for name, value in limits.items() if name != "copy"}
    measured = [f"{limits['copy'] / 1e9:,.0f} GB/s", *(f"{value / 1e12:,.1f}" for value in products.values())]
    passes = [
        [
            name,
            f"{entry['microseconds']:.1f}",
            f"{entry['bytes_per_s'] / 1e9:,.0f}",
            f"{100 * entry['bytes_per_s'] / limits['copy']:.0f} %",
        ]
        for name, entry in kernels.items()
    ]
    names = list(dict.fromkeys(name for linear in linears for name in linear["microseconds"]))
    rows = [
        [
            f"{linear['rows']}, {linear['inputs']}, {linear['outputs']}",
            *(f"{linear['microseconds'][name]:.1f}" if name in linear["microseconds"] else "-" for name in names),
        ]
        for linear in linears
    ]
    return "\n\n".join(
        [
            "Ceilings measured on this machine: a copy, read and written, and square products, in TFLOP/s or TOP/s",
            markdown_table(["copy", *products], [measured]),
            "Passes over memory, at what they have to move",
            markdown_table(["kernel", "µs", "GB/s", "of the copy"], passes),
            "A Linear's products in µs; shifts, transposes and scales included in int8",
            markdown_table(["rows, inputs, outputs", *names], rows),
        ]
    )


def _product(a: Tensor, b: Tensor, *, tf32: bool) -> None:
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.mm(a, b)
    torch.set_float32_matmul_precision("highest")


def _discard(*_: object) -> None:
    """Discard results, so that a call has the type of a step."""
