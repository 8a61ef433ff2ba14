"""Times of Triton's kernels by the constants that they are launched with: what `backend.py` and `_blocks` are set from.

Elementwise and per-channel kernels by warps, elements of a tile, parts and elements of a block; int8 convolutions by
the sizes of blocks, warps and stages, beside cuDNN's in bfloat16. A combination is compiled by a process of its own.

    python benchmarks/gpu_tuning.py
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from gpu_ceilings import kernel_calls
from measuring import RESULTS, machine, machine_line, markdown_table, write_results
from training_steps import gpu, synchronized_clock

from cpt_deploy.quantization.kernels.triton import backend, int8_convolution
from cpt_deploy.quantization.kernels.triton.int8_convolution import Geometry, convolve

SHAPES = [(256, 64, 112, 112), (256, 256, 56, 56), (256, 512, 28, 28), (256, 2048, 7, 7), (128, 16, 32, 32)]


class Constants(NamedTuple):
    """Warps of a program, elements of a tile, max number of parts, elements of a block."""

    warps: int
    tile: int
    parts: int
    block: int


CONSTANTS = [
    Constants(4, 2048, 1024, 4096),
    Constants(8, 2048, 1024, 4096),
    Constants(8, 4096, 1024, 4096),
    Constants(4, 1024, 2048, 2048),
    Constants(4, 2048, 2048, 2048),
    Constants(8, 4096, 528, 8192),
    Constants(4, 2048, 528, 4096),
]


class Layer(NamedTuple):
    """A convolution: images, inputs, outputs, kernel, stride, size."""

    images: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    size: int


LAYERS = [
    Layer(256, 3, 64, 7, 2, 224),
    Layer(256, 64, 64, 3, 1, 56),
    Layer(256, 64, 256, 1, 1, 56),
    Layer(256, 256, 64, 1, 1, 56),
    Layer(256, 128, 128, 3, 1, 28),
    Layer(256, 512, 128, 1, 1, 28),
    Layer(256, 256, 256, 3, 1, 14),
    Layer(256, 1024, 256, 1, 1, 14),
    Layer(256, 512, 512, 3, 1, 7),
    Layer(256, 512, 2048, 1, 1, 7),
    Layer(128, 16, 16, 3, 1, 32),
    Layer(128, 64, 64, 3, 1, 8),
]


class Blocks(NamedTuple):
    """Rows, columns and summed values of a block, warps, stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


BLOCKS = [
    Blocks(128, 64, 64, 4, 3),
    Blocks(128, 128, 64, 4, 4),
    Blocks(128, 128, 64, 8, 3),
    Blocks(128, 128, 128, 8, 3),
    Blocks(128, 256, 64, 8, 3),
    Blocks(256, 64, 64, 8, 3),
    Blocks(64, 128, 128, 4, 3),
    Blocks(64, 64, 64, 4, 4),
]
SMOKE_SHAPES, SMOKE_LAYERS = [(2, 8, 4, 4)], [Layer(2, 16, 16, 3, 1, 6)]

#: A call that is made for its compilation alone is not recorded.
_UNTIMED = torch.device("cpu")
_launch = backend.launch


def use_constants(constants: Constants) -> None:
    """Launch all elementwise and per-channel kernels with other constants, in this process."""

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        _launch(kernel, grid, *arguments, **{"num_warps": constants.warps, **options})

    backend.launch = launch
    backend._TILE, backend._PARTS, backend._BLOCK = constants[1:]


def use_blocks(blocks: Blocks, layer: Layer) -> None:
    """Compute convolutions with other blocks, in this process."""
    columns = min(blocks.n, max(triton.next_power_of_2(layer.outputs), 16))
    sizes = {"BLOCK_M": blocks.m, "BLOCK_N": columns, "BLOCK_K": blocks.k}
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    int8_convolution._blocks = lambda *_, **__: (sizes, options)  # type: ignore[assignment]


def microseconds(call: Callable[[], Any], device: torch.device, repeats: int = 6, rounds: int = 5) -> float:
    """Return the median time of a call; infinity if it fails, since one combination must not cost the others.

    On a GPU calls are recorded as a CUDA graph: launching a small kernel takes longer than the kernel.
    """
    try:
        if device.type == "cuda":
            return 1e3 * float(triton.testing.do_bench_cudagraph(call, rep=3, return_mode="median"))
        call()
        times = []
        for _ in range(rounds):
            begin = synchronized_clock(device)
            for _ in range(repeats):
                call()
            times.append((synchronized_clock(device) - begin) / repeats)
        return 1e6 * statistics.median(times)
    except Exception as error:
        print(f"not measured: {type(error).__name__}: {error}"[:300], file=sys.stderr)
        return math.inf


def elementwise(device: torch.device, shapes: list[tuple[int, int, int, int]]) -> dict[str, dict[str, list[float]]]:
    """Return µs by kernel and constants, for each shape."""
    found: dict[str, dict[str, list[float]]] = {}
    for shape in shapes:
        calls = kernel_calls(device, backend.TritonKernels(), shape)
        for constants in CONSTANTS:
            use_constants(constants)
            for name, (call, _) in calls.items():
                times = found.setdefault(name, {}).setdefault("/".join(map(str, constants)), [])
                times.append(microseconds(call, device))
    backend.launch = _launch
    return found


def convolution(layer: Layer, device: torch.device) -> Callable[[], Any]:
    """Return a call of the int8 convolution of a layer."""
    codes = torch.randint(0, 256, (layer.images, layer.inputs, layer.size, layer.size), device=device).to(torch.uint8)
    weight = torch.randint(-127, 128, (layer.outputs, layer.inputs, layer.kernel, layer.kernel), device=device)
    geometry = Geometry((layer.stride,) * 2, (layer.kernel // 2,) * 2, (1, 1), 1)
    operands = (codes.contiguous(memory_format=torch.channels_last), torch.tensor(3.0, device=device))
    weight = weight.to(torch.int8)
    return lambda: convolve(*operands, weight, geometry)


def convolutions(device: torch.device, layers: list[Layer]) -> list[dict[str, Any]]:
    """Return µs of each layer: cuDNN's in bfloat16, ours as it is set, and by blocks."""
    default, results = int8_convolution._blocks, []
    for layer in layers:
        x = torch.randn(layer.images, layer.inputs, layer.size, layer.size, device=device).bfloat16()
        weight = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel, device=device).bfloat16()
        x, weight = (values.contiguous(memory_format=torch.channels_last) for values in (x, weight))
        floats = (x, weight, None, layer.stride, layer.kernel // 2)
        call = convolution(layer, device)
        times = {
            "cuDNN bfloat16": microseconds(lambda a=floats: torch.conv2d(*a), device),  # type: ignore[misc]
            "as set": microseconds(call, device),
        }
        for blocks in BLOCKS:
            use_blocks(blocks, layer)
            times["/".join(map(str, blocks))] = microseconds(call, device)
        int8_convolution._blocks = default
        results.append({"layer": layer._asdict(), "microseconds": times})
    return results


def compile_one(number: int, device_name: str, smoke: bool) -> None:
    """Compile what one combination needs into Triton's cache; the body of a process."""
    device = torch.device(device_name)
    if number < len(CONSTANTS):
        use_constants(CONSTANTS[number])
        for shape in SHAPES:  # with few images, but as many as are specialized alike: multiples of 16
            for call, _ in kernel_calls(device, backend.TritonKernels(), (16, *shape[1:])).values():
                microseconds(call, _UNTIMED, 1, 1)
        return
    for layer in SMOKE_LAYERS if smoke else LAYERS:
        use_blocks(BLOCKS[number - len(CONSTANTS)], layer)
        microseconds(convolution(layer, device), _UNTIMED, 1, 1)


def table(content: dict[str, Any]) -> str:
    """Return the times as tables; those of convolutions are measured last."""
    names = ["/".join(map(str, constants)) for constants in CONSTANTS]
    by_kernel = [[name, *(f"{sum(times[key]):.0f}" for key in names)] for name, times in content["kernels"].items()]
    heads = ["cuDNN bfloat16", "as set", *("/".join(map(str, blocks)) for blocks in BLOCKS)]
    by_layer = [
        [json.dumps(list(product["layer"].values())), *(f"{product['microseconds'][key]:.0f}" for key in heads)]
        for product in content["convolutions"]
    ]
    return "\n\n".join(
        [
            "Kernels in µs, summed over the shapes, by warps/tile/parts/block (`python benchmarks/gpu_tuning.py`)",
            markdown_table(["kernel", *names], by_kernel),
            "int8 convolutions in µs (images, inputs, outputs, kernel, stride, size), by m/n/k of a block/warps/stages",
            markdown_table(["layer", *heads], by_layer),
            machine_line(content["machine"]),
        ]
    )


def main(words: list[str] | None = None) -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to try the program")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    device = torch.device(arguments.device)
    torch.backends.cudnn.benchmark = True
    if not arguments.smoke:
        context, combinations = multiprocessing.get_context("spawn"), len(CONSTANTS) + len(BLOCKS)
        with context.Pool(combinations) as pool:
            pool.starmap(compile_one, [(number, arguments.device, False) for number in range(combinations)])
    shapes, layers = (SMOKE_SHAPES, SMOKE_LAYERS) if arguments.smoke else (SHAPES, LAYERS)
    info = machine() | ({"gpu": gpu()} if device.type == "cuda" else {})
    content: dict[str, Any] = {"machine": info, "kernels": elementwise(device, shapes), "convolutions": []}
    write_results("gpu_tuning", content, table(content), arguments.results)
    content["convolutions"] = convolutions(device, layers)
    write_results("gpu_tuning", content, table(content), arguments.results)


if __name__ == "__main__":
    main()
