"""The output of `cpt benchmark`: times and sizes side by side."""

from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_deploy.validation import BenchmarkReport


def show_benchmark(report: "BenchmarkReport") -> None:
    """Print the times of each model, then their sizes and memory."""
    from cpt_deploy.validation.performance.benchmarking import BUNDLE

    compared = len(report.footprints) > 1
    columns = ["threads", "batch", "model", "p50 ms", "p90 ms", "p99 ms", "rows/s"]
    rows = [
        [
            entry.threads, entry.batch, entry.model, f"{entry.p50_ms:.3f}", f"{entry.p90_ms:.3f}",
            f"{entry.p99_ms:.3f}", f"{entry.rows_per_s:,.0f}",
            *(["" if entry.model == BUNDLE else f"{entry.bundle_speedup:.2f}x"] if compared else []),
        ]
        for entry in report.latencies
    ]  # fmt: skip
    if out.quiet:
        for row in rows:
            out.line(" ".join(str(cell).replace(" ", "-") for cell in row))
        return
    title = f"{report.bundle} in onnxruntime, {report.provider}, on {report.cpu.model}"
    out.table([*columns, "speed-up of the bundle"] if compared else columns, rows, title=title)
    out.table(
        ("model", "size", "of float32", "peak memory", "of the model"),
        [
            (
                entry.model, readable.size(entry.file_bytes), _share_of_float(entry.file_bytes, report),
                _memory(entry.peak_memory_bytes), _memory(entry.model_memory_bytes),
            )
            for entry in report.footprints
        ],
    )  # fmt: skip


def _share_of_float(file_bytes: int, report: "BenchmarkReport") -> str:
    from cpt_deploy.workflows.benchmark import FLOAT

    sizes = {entry.model: entry.file_bytes for entry in report.footprints}
    return readable.share(file_bytes / sizes[FLOAT], 1) if FLOAT in sizes else ""


def _memory(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else readable.size(size_bytes)
