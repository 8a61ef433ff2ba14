"""Benchmark latency, throughput, size and memory of a bundle and other files of the same network in onnxruntime."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel
from cpt_deploy.bundle.runtime.cpu import CpuInfo, read_cpu
from cpt_deploy.bundle.runtime.providers import CPU, provider_name
from cpt_deploy.bundle.runtime.tensors import Arrays
from cpt_deploy.errors import UsageError
from cpt_deploy.signature import INPUT_NAME, Signature
from cpt_deploy.validation.performance.peak_memory import measure_peak_memory
from cpt_deploy.validation.performance.software import software_versions
from cpt_deploy.validation.performance.timing import interleaved, median_ratio

BUNDLE = "bundle"
"""Name of the bundle's own model among the compared ones."""

MOST_ROUNDS = 2000


@dataclass(frozen=True)
class Latency:
    """The latency of one model.

    Args:
        model: Its name.
        batch: Rows per call.
        threads: Threads of onnxruntime.
        rounds: Number of timed calls.
        p50_ms: Median, milliseconds.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        rows_per_s: Throughput at the median.
        bundle_speedup: Speed of the bundle relative to this model: the median over rounds of the ratio of both times.
    """

    model: str
    batch: int
    threads: int
    rounds: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    rows_per_s: float
    bundle_speedup: float


@dataclass(frozen=True)
class Footprint:
    """The size and memory of one model.

    Args:
        model: Its name.
        file_bytes: Size of its ONNX file.
        peak_memory_bytes: Peak physical memory of a process that runs it at the largest batch; `None` if unknown.
        model_memory_bytes: The share of the model in it, without Python and onnxruntime.
    """

    model: str
    file_bytes: int
    peak_memory_bytes: int | None
    model_memory_bytes: int | None


@dataclass(frozen=True)
class BenchmarkReport:
    """The results of a benchmark.

    Args:
        bundle: Name of the model.
        model_sha256: Digest of its model.onnx.
        latencies: Latencies, sorted by threads, batch and model.
        footprints: Size and memory of each model.
        cpu: The processor.
        versions: Versions of the software.
        measured_at: Time of the measurement, ISO 8601 in UTC.
        provider: onnxruntime's name of the execution provider.
    """

    bundle: str
    model_sha256: str
    latencies: tuple[Latency, ...]
    footprints: tuple[Footprint, ...]
    cpu: CpuInfo
    versions: dict[str, str]
    measured_at: str
    provider: str = CPU

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return asdict(self)


def benchmark(
    bundle: Bundle,
    others: Mapping[str, bytes],
    *,
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (1,),
    seconds: float = 3.0,
    provider: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> BenchmarkReport:
    """Time a bundle and other files of the same network in one interleaved run.

    Args:
        bundle: The bundle.
        others: Further serialized ONNX models with the bundle's inputs and outputs, by name.
        batches: Numbers of rows per call.
        threads: Numbers of threads of onnxruntime.
        seconds: Time for each combination of batch and threads, all models together; at least ten rounds.
        provider: The execution provider of onnxruntime: "cpu", "cuda", "tensorrt", or onnxruntime's name of one.
        progress: Called with the number of finished combinations and their total.

    Raises:
        UsageError: If a number is out of range, or the provider is unknown.
        MissingExtraError: If the installed onnxruntime lacks the provider.
        BundleError: If onnxruntime cannot run one of the models.
    """
    if not batches or not threads or min(*batches, *threads) < 1 or not seconds > 0:
        raise UsageError(
            f"Expected batches, threads and seconds above 0, but got {list(batches)}, {list(threads)} and {seconds}"
        )
    models = {BUNDLE: bundle.onnx_path.read_bytes(), **others}
    latencies: list[Latency] = []
    combinations = [(count, batch) for count in threads for batch in batches]
    for done, (count, batch) in enumerate(combinations, start=1):
        latencies += _time(models, bundle, batch, count, seconds, provider)
        if progress is not None:
            progress(done, len(combinations))
    return BenchmarkReport(
        bundle=bundle.name,
        model_sha256=bundle.sha256,
        latencies=tuple(latencies),
        footprints=_footprints(models, max(batches), threads[0], provider),
        cpu=read_cpu(),
        versions=software_versions(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        provider=provider_name(provider),
    )


def as_float(bundle: Bundle, inputs: Arrays) -> tuple[Signature, Arrays]:
    """Return the signature of a bundle's float network, and inputs as it takes them: normalised images for bytes."""
    processor, signature = bundle.processor, bundle.signature
    if not isinstance(processor, ImageProcessor) or processor.pixels is None:
        return signature, inputs
    images = processor.preprocessing.normalize(processor.pixels_of(inputs[INPUT_NAME]))
    return replace(signature, inputs=(replace(processor, pixels=None).input,)), {INPUT_NAME: images}


def _time(
    models: Mapping[str, bytes], bundle: Bundle, batch: int, threads: int, seconds: float, provider: str
) -> list[Latency]:
    """Time the models on a batch that repeats the rows of the bundle's golden sample; states are the initial ones."""
    golden = bundle.golden.inputs
    inputs = {name: np.ascontiguousarray(rows[np.arange(batch) % len(rows)]) for name, rows in golden.items()}
    forms = {name: (bundle.signature, inputs) if name == BUNDLE else as_float(bundle, inputs) for name in models}
    # Threads of one model that spin after its call would slow down the next model.
    sessions = {
        name: OnnxRuntimeModel(model, forms[name][0], threads=threads, rest_between_runs=True, provider=provider)
        for name, model in models.items()
    }
    runs = {name: partial(session.run, forms[name][1]) for name, session in sessions.items()}
    times = interleaved(runs, rounds=MOST_ROUNDS, seconds=seconds)
    results = []
    for name, measured in times.items():
        p50, p90, p99 = (1e3 * float(value) for value in np.percentile(measured, (50, 90, 99)))
        results.append(
            Latency(
                model=name,
                batch=batch,
                threads=threads,
                rounds=len(measured),
                p50_ms=p50,
                p90_ms=p90,
                p99_ms=p99,
                rows_per_s=1e3 * batch / p50,
                bundle_speedup=median_ratio(measured, times[BUNDLE]),
            )
        )
    return results


def _footprints(models: Mapping[str, bytes], batch: int, threads: int, provider: str) -> tuple[Footprint, ...]:
    footprints = []
    with tempfile.TemporaryDirectory(prefix="cpt-benchmark-") as folder:
        for name, model in models.items():
            path = Path(folder) / "model.onnx"
            path.write_bytes(model)
            memory = measure_peak_memory(path, batch=batch, threads=threads, provider=provider)
            known = (None, None) if memory is None else (memory.peak, memory.of_model)
            footprints.append(Footprint(name, len(model), *known))
    return tuple(footprints)
