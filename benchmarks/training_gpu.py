"""A training step on a GPU: float32, TF32, bfloat16 autocast, other quantizers, and each path of cpt-deploy.

ResNet-74 on 32x32 images, ResNet-50 on 224x224 and a GPT-like Transformer. All variants of a network start from the
same weights and run in one interleaved measurement; the limits of the GPU and its kernels are measured as well. It ends
within `--seconds` and lists what it did not reach. `--parts` measures one part after the other, each in a call of its
own: those of the same GPU and versions are kept.

    python benchmarks/training_gpu.py [--parts kernels resnet74 resnet50 gpt] [--seconds 560]
"""

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from gpu_ceilings import LARGE, SMALL, ceiling_tables, ceilings, kernel_bandwidth, linear_products
from measuring import RESULTS, interleaved, machine, machine_line, markdown_table, median_ratio, write_results
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training_steps import Step, gpu, graphed, kernel_times, peak_bytes, synchronized_clock, training_step
from training_variants import Gpt, fake_quantized, like_the_authors, paths_on

from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, prepare
from cpt_deploy.quantization.kernels import kernels_on

BASE = "bf16 autocast"
HEADLINE = "cpt-deploy bf16"
IN_GRAPH = ", CUDA graph"
BITS = 6
BARS = {"resnet50": 1.1, "gpt": 0.9}
PARTS = ("kernels", "resnet74", "resnet50", "gpt")
#: Variants whose kernels are listed, and how many kernels of each.
PROFILED, MOST = (BASE, HEADLINE), 20
#: Share of a network's time reserved for memory and launches, which are measured after the times.
FOR_COUNTS = 0.1

Build = Callable[[], Step]


class Network(NamedTuple):
    """A network with a batch.

    Args:
        title: Name and batch.
        items: Unit of throughput, and the number of units in a batch.
        variants: Functions that build the step of each variant.
    """

    title: str
    items: tuple[str, int]
    variants: dict[str, Build]


def in_tf32(step: Step) -> Step:
    """Return a step with float32 products in TF32."""

    def run() -> None:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        step()
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")

    return run


def variants(
    network: nn.Module, batch: tuple[Tensor, Tensor], ours: dict[str, Callable[[], nn.Module]], *, compiled: bool
) -> dict[str, Build]:
    """Return functions that build each variant's step, each with its own copy of the network."""
    x, labels = batch

    def step(model: nn.Module, *, autocast: bool = False) -> Step:
        return training_step(model, x, labels, autocast=autocast)

    def float32() -> Step:
        return step(copy.deepcopy(network))

    def bf16() -> Step:
        return step(copy.deepcopy(network), autocast=True)

    builds: dict[str, Build] = {
        BASE: bf16,
        "float32": float32,
        "TF32": lambda: in_tf32(float32()),
        "torch fake-quantize": lambda: step(fake_quantized(network).to(x.device)),
        "authors' scheme": lambda: step(like_the_authors(network, BITS)),
    }
    for name, model in ours.items():  # like the trainer: on a GPU under autocast
        builds[f"cpt-deploy {name}"] = lambda model=model: step(model(), autocast=x.is_cuda)  # type: ignore[misc]
    if compiled:
        builds[f"{BASE}, compiled"] = lambda: step(torch.compile(copy.deepcopy(network)), autocast=True)  # type: ignore[arg-type]
    if x.is_cuda:
        for name in [BASE, *(f"cpt-deploy {name}" for name in ours)]:
            builds[f"{name}{IN_GRAPH}"] = lambda name=name: graphed(builds[name]())  # type: ignore[misc]
    return in_order(builds)


def in_order(builds: dict[str, Build]) -> dict[str, Build]:
    """Return what the bars are about first, for time may run out, and the recording that may fail last."""
    first = (BASE, HEADLINE, f"{HEADLINE}{IN_GRAPH}", f"{BASE}{IN_GRAPH}")
    last = f"cpt-deploy modules{IN_GRAPH}"  # a failed recording may affect what follows
    return dict(sorted(builds.items(), key=lambda item: (item[0] not in first, item[0] == last)))


def image_network(name: str, size: int, batch: int, device: torch.device, *, compiled: bool) -> Network:
    """Return an image classifier in channels-last memory."""
    torch.manual_seed(0)
    classes = 10 if size == 32 else 1000
    network = build_model(name, num_classes=classes, in_channels=3, input_size=(size, size)).train()
    prepared = prepare(network, torch.zeros(2, 3, size, size), QuantizationConfig()).train()
    network, prepared = (m.to(device, memory_format=torch.channels_last) for m in (network, prepared))  # type: ignore[call-overload]
    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), device=device)
    prepared.set_bits(BITS, 8)

    def ours(compute: Any) -> nn.Module:
        model = copy.deepcopy(prepared)
        model.compute = compute
        return model

    models = {path: lambda path=path: ours(path) for path in paths_on(device)}
    built = variants(network, (x, labels), models, compiled=compiled)
    return Network(f"{name}, {batch} images of {size}²", ("images", batch), built)


def gpt_network(sizes: tuple[int, int, int, int, int], batch: int, device: torch.device, *, compiled: bool) -> Network:
    """Return a GPT-like network; `sizes` are vocabulary, length, blocks, width and heads."""
    torch.manual_seed(0)
    network, length = Gpt(*sizes).train().to(device), sizes[1]
    tokens, labels = (torch.randint(sizes[0], (batch, length), device=device) for _ in range(2))

    def ours(compute: Literal["modules", "float32", "bf16"]) -> nn.Module:
        model = copy.deepcopy(network)
        model.quantize(BITS, compute)
        return model

    models = {path: lambda path=path: ours(path) for path in paths_on(device)}
    builds: dict[str, Build] = {}
    if find_spec("torchao") is not None and device.type == "cuda":
        builds["torchao int8 mixed precision, compiled"] = lambda: training_step(
            _torchao(network), tokens, labels, autocast=True
        )
    own = variants(network, (tokens, labels), models, compiled=compiled)
    builds = {BASE: own.pop(BASE), **builds, **own}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    title = f"GPT of {parameters / 1e6:.0f} M parameters, {batch} x {length} tokens"
    return Network(title, ("tokens", batch * length), builds)


def _torchao(network: nn.Module) -> nn.Module:
    from torchao.prototype.quantized_training import int8_mixed_precision_training
    from torchao.quantization import quantize_

    model = copy.deepcopy(network)
    quantize_(model, int8_mixed_precision_training())
    compiled: Any = torch.compile(model)  # slow without compilation, by its documentation
    return compiled


def measure(network: Network, device: torch.device, until: float, rounds: int) -> dict[str, Any]:
    """Time the variants of a network, count what they launch, and measure their memory."""
    steps, missing = dict[str, Step](), dict[str, str]()
    for name, build in network.variants.items():
        if steps and time.perf_counter() > until:
            missing[name] = "no time was left"
            continue
        begin = time.perf_counter()
        try:
            steps[name] = build()
            steps[name]()
            print(f"{network.title}: {name}, ready in {synchronized_clock(device) - begin:.1f} s", file=sys.stderr)
        except Exception as error:  # out of memory, a step that cannot be recorded, a failure of any of the compilers
            if name == BASE:
                raise
            steps.pop(name, None)
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    with FlopCounterMode(display=False) as counter:
        steps[BASE]()
    left = max(0.0, until - time.perf_counter())
    times = interleaved(
        steps, rounds=rounds, warmup=1, seconds=left, min_rounds=3, clock=lambda: synchronized_clock(device)
    )
    unit, count = network.items
    kernels, results = dict[str, dict[str, dict[str, float]]](), dict[str, dict[str, Any]]()
    for name, values in times.items():
        results[name] = {
            "milliseconds": 1e3 * statistics.median(values),
            "time_ratio": 1 / median_ratio(times[BASE], values),
            "per_second": count / statistics.median(values),
            "rounds": len(values),
            "bytes": None,
            "launches": None,
        }
        try:
            kernels[name] = kernel_times(steps[name], device)
            results[name]["launches"] = sum(entry["count"] for entry in kernels[name].values())
            # The memory of a graph is a pool of its own, allocated when it is recorded.
            results[name]["bytes"] = None if name.endswith(IN_GRAPH) else peak_bytes(steps[name], device)
        except Exception as error:  # times that are measured must not be lost with a profile
            print(f"{network.title}: {name} was not counted: {error}", file=sys.stderr)
    return {
        "title": network.title, "unit": unit, "flops": counter.get_total_flops(), "variants": results,
        "missing": missing, "profiles": {name: first(kernels[name], MOST) for name in PROFILED if name in kernels},
    }  # fmt: skip


def first(kernels: dict[str, dict[str, float]], count: int) -> dict[str, dict[str, float]]:
    """Return the kernels that take the most time, and the sum of all."""
    total = {key: sum(entry[key] for entry in kernels.values()) for key in ("count", "milliseconds")}
    return {"all": total, **dict(list(kernels.items())[:count])}


def network_table(name: str, result: dict[str, Any], limits: dict[str, float]) -> str:
    """Return a network's variants as a Markdown table."""
    header = ["step", "ms", f"of {BASE}", f"{result['unit']}/s", "peak memory", "launches", "of the bfloat16 ceiling"]
    rows = []
    for variant, entry in result["variants"].items():
        bar = f" (bar {BARS[name]})" if name in BARS and variant.startswith("cpt-deploy bf16") else ""
        achieved = result["flops"] / (entry["milliseconds"] / 1e3) / limits["bfloat16"]
        rows.append(
            [
                variant, f"{entry['milliseconds']:.2f}", f"{entry['time_ratio']:.2f}{bar}",
                f"{entry['per_second']:,.0f}", "-" if entry["bytes"] is None else f"{entry['bytes'] / 1e9:.2f} GB",
                "-" if entry["launches"] is None else str(entry["launches"]),
                f"{100 * achieved:.0f} %",
            ]
        )  # fmt: skip
    rows += [[variant, f"not measured: {reason}", *[""] * 5] for variant, reason in result["missing"].items()]
    texts = [f"**{result['title']}**", markdown_table(header, rows)]
    for variant, kernels in result["profiles"].items():
        total = kernels["all"]
        listed = [
            [f"`{kernel[:70]}`", f"{entry['count']:.0f}", f"{entry['milliseconds']:.2f}"]
            for kernel, entry in kernels.items()
            if kernel != "all"
        ]
        texts += [
            f"Where the time of one step goes, {variant}: {total['count']:.0f} kernels, {total['milliseconds']:.2f} ms",
            markdown_table(["kernel", "launches", "ms"], listed),
        ]
    return "\n\n".join(texts)


def networks(device: torch.device, *, smoke: bool, compiled: bool) -> dict[str, Callable[[], Network]]:
    """Return functions that build each network, at full size or as small as possible."""
    if smoke:
        return {
            "resnet74": lambda: image_network("tiny", 32, 2, device, compiled=compiled),
            "gpt": lambda: gpt_network((50, 8, 1, 16, 2), 2, device, compiled=compiled),
        }
    return {
        "resnet74": lambda: image_network("resnet74", 32, 128, device, compiled=compiled),
        "resnet50": lambda: image_network("torchvision/resnet50", 224, 256, device, compiled=compiled),
        "gpt": lambda: gpt_network((50304, 1024, 12, 768, 12), 16, device, compiled=compiled),
    }


def known_results(folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Return the earlier results of the same kind of GPU and versions, also of another machine."""
    path = folder / "training_gpu.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    earlier = known.get("machine", {})
    same = all(earlier.get(key) == info.get(key) for key in ("gpu", "versions")) and known.get("bits") == BITS
    return {**known, "machine": info} if same else {"machine": info, "bits": BITS, "networks": {}}


def table(content: dict[str, Any]) -> str:
    """Return all results as tables."""
    parts = [
        f"A step: forward, loss, backward, SGD; medians of an interleaved run, {BITS} bits forward and 8 backward "
        f"where cpt-deploy or the authors quantize (`python benchmarks/training_gpu.py`)",
        *(network_table(name, result, content["ceilings"]) for name, result in content["networks"].items()),
        *([ceiling_tables(content)] if "kernels" in content else []),
        machine_line(content["machine"]),
    ]
    return "\n\n".join(parts)


def main(words: list[str] | None = None) -> None:
    """Measure and write the results."""
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=560.0, help="when to end")
    parser.add_argument("--no-compile", action="store_true", help="leave out what torch.compile makes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to try the program")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated.*")
    device = torch.device(arguments.device)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    info = machine() | ({"gpu": gpu()} if device.type == "cuda" else {})
    sizes, rounds, step_rounds = (SMALL, 2, 2) if arguments.smoke else (LARGE, 5, 30)
    content = known_results(arguments.results, info)
    if "kernels" in arguments.parts or "ceilings" not in content:
        content["ceilings"] = ceilings(device, sizes, rounds)
    if "kernels" in arguments.parts:
        content["kernels"] = kernel_bandwidth(device, kernels_on(device), sizes, rounds)
        content["linears"] = linear_products(device, sizes, rounds)
    builders = networks(device, smoke=arguments.smoke, compiled=not arguments.no_compile)
    chosen = [name for name in builders if name in arguments.parts]
    for done, name in enumerate(chosen):
        now = time.perf_counter()
        left = begin + arguments.seconds - now
        until = now + left / (len(chosen) - done) * (1 - FOR_COUNTS)
        content["networks"][name] = measure(builders[name](), device, until, step_rounds)
        write_results("training_gpu", content, table(content), arguments.results)
    if not chosen:
        write_results("training_gpu", content, table(content), arguments.results)


if __name__ == "__main__":
    main()
