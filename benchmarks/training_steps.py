"""A training step of a network, and measurements of it: shared by the benchmarks of CPUs and GPUs."""

import functools
import subprocess
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity

from cpt_deploy.errors import CptWarning

Step = Callable[[], None]


def training_step(model: nn.Module, x: Tensor, labels: Tensor, *, autocast: bool = False) -> Step:
    """Return a function that takes one step of SGD with momentum.

    Args:
        model: Network that returns logits (..., K).
        x: A batch.
        labels: Classes, of the logits' shape without K.
        autocast: Whether the forward pass runs under bfloat16 autocast.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    # every step has the same number, so that all do the same work; repeated noise does not matter here
    warnings.filterwarnings("ignore", "two training steps have the same number", CptWarning)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            logits = model(x)
        loss = functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@functools.cache
def _shared_pool() -> Any:
    """Return the memory pool of all recordings; they are replayed one after the other, so that they can share it."""
    return torch.cuda.graph_pool_handle()


def graphed(step: Step) -> Step:
    """Return a step recorded once as a CUDA graph and replayed, which measures it without launch overhead.

    Raises:
        RuntimeError: If the step synchronizes with the device or allocates in a way that a graph does not support.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_shared_pool()):
        step()
    return graph.replay


def synchronized_clock(device: torch.device) -> float:
    """Return the time in seconds after the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(step: Step, device: torch.device | None = None) -> int:
    """Return the peak memory that torch allocates in a step, beyond that allocated before it."""
    step()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    present = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        present += event.nbytes()
        peak = max(peak, present)
    return peak


def launches(step: Step, device: torch.device) -> int:
    """Return the number of kernels that a step launches on a GPU, or of torch operators that it calls on a CPU."""
    return sum(entry["count"] for entry in kernel_times(step, device).values())


def kernel_times(step: Step, device: torch.device) -> dict[str, dict[str, float]]:
    """Return count and milliseconds of each kernel of a step on a GPU, or of each torch operator on a CPU."""
    step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        synchronized_clock(device)
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    found: dict[str, dict[str, float]] = {}
    for event in profile.events():
        copies = on_gpu and event.name.startswith(("Memcpy", "Memset"))
        if event.device_type == kind and not event.is_user_annotation and not copies:
            entry = found.setdefault(event.name, {"count": 0, "milliseconds": 0.0})
            entry["count"] += 1
            entry["milliseconds"] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
    return dict(sorted(found.items(), key=lambda item: -item[1]["milliseconds"]))


@functools.cache
def gpu() -> dict[str, Any]:
    """Return the GPU, its driver, and the versions that matter only on GPUs."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {
        "name": properties.name,
        "driver": driver,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
