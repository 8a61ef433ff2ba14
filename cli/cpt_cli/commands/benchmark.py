"""`cpt benchmark`: compare a bundle's speed with the float network and with onnxruntime's own quantization of it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli import formats
from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, ProviderOption, QuietFlag, number_list
from cpt_cli.output import out
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.validation import BenchmarkReport

FLOAT, STATIC = "float32", "onnxruntime static"


def benchmark(  # noqa: PLR0913, PLR0917  the options are its parameters
    bundle: Annotated[Path, typer.Argument(help="Bundle that cpt export wrote.")],
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images per call.")] = "1,8,32",
    threads: Annotated[str, typer.Option(metavar="N,...", help="Threads of onnxruntime.")] = "1",
    run: Annotated[
        Path | None,
        typer.Option(help="Run whose float network to compare with.", show_default="the run that contains the bundle"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time to measure each batch size and thread count.")] = 3.0,
    provider: ProviderOption = "cpu",
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the times into this PNG, SVG or PDF file; the figures go into a JSON file beside it."),
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Compare a bundle with the float32 export of its network and with onnxruntime's static quantization of that.

    The models are timed in alternation. The float32 and static models need the trained run and PyTorch; without these,
    only the bundle is measured. Memory is measured in a separate process for each file, at the largest batch.
    """
    from onnxruntime import SessionOptions

    from cpt_deploy.bundle import Bundle
    from cpt_deploy.bundle.runtime.providers import choose_provider
    from cpt_deploy.validation import benchmark as measure

    batches, counts = number_list("--batch", batch), number_list("--threads", threads)
    if plot is not None:
        from cpt_deploy.report import check_plot_path

        check_plot_path(plot)
    opened = Bundle.open(bundle)
    choose_provider(SessionOptions(), provider)  # raises before the float network is created
    others = _others(opened, run)
    with out.bar("timing", len(batches) * len(counts)) as bar:
        report = measure(
            opened, others, batches=batches, threads=counts, seconds=seconds, provider=provider, progress=bar.advance
        )
    fields = report.to_dict()
    if plot is not None:
        from cpt_deploy.report import plot_benchmark

        plot_benchmark(fields, plot)
        plot.with_suffix(".json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        out.note(f"plot: {formats.path(plot)}, figures: {formats.path(plot.with_suffix('.json'))}")
    _show(report)
    out.result({**fields, "bundle": opened.path})


def _others(bundle: "Bundle", run: Path | None) -> dict[str, bytes]:
    """Return the float32 export of the bundle's network and onnxruntime's quantization of it.

    These need the run, or the float model that the bundle was calibrated from; without either the result is empty.
    """
    from cpt_cli.sources import find_source, source_as_prepared
    from cpt_cli.workflow import find_run, is_run_of

    if run is not None and not is_run_of(run, bundle):
        raise UsageError(
            f"Expected the run that {formats.path(bundle.path)} was exported from, but {formats.path(run)} has other "
            "trained weights",
            hint="leave --run out to measure only the bundle",
        )
    found = run or find_run(bundle)
    source = find_source(bundle)
    if found is None and source is None:
        out.note("only the bundle is measured: it is not in the directory of its run (see --run)")
        return {}
    if run is None and (find_spec("torch") is None or find_spec("onnx") is None):
        out.note("only the bundle is measured: PyTorch and onnx, which export the float network, are not installed")
        return {}
    from cpt_deploy.export import write_float_onnx
    from cpt_deploy.training import load_run
    from cpt_deploy.validation import static_quantization

    if found is not None:
        model = load_run(found).model
    else:
        assert source is not None
        model = source_as_prepared(bundle, source)
    floats = write_float_onnx(model)
    # The times do not depend on the accuracy of the ranges, so a few images are enough to calibrate.
    return {FLOAT: floats, STATIC: static_quantization(floats, [bundle.golden.inputs])}


def _show(report: "BenchmarkReport") -> None:
    from cpt_deploy.validation.performance.benchmarking import BUNDLE

    compared = len(report.footprints) > 1
    columns = ["threads", "batch", "model", "p50 ms", "p90 ms", "p99 ms", "images/s"]
    rows = [
        [
            entry.threads, entry.batch, entry.model, f"{entry.p50_ms:.3f}", f"{entry.p90_ms:.3f}",
            f"{entry.p99_ms:.3f}", f"{entry.images_per_s:,.0f}",
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
                entry.model, formats.size(entry.file_bytes), _share_of_float(entry.file_bytes, report),
                _memory(entry.peak_memory_bytes), _memory(entry.model_memory_bytes),
            )
            for entry in report.footprints
        ],
    )  # fmt: skip


def _share_of_float(file_bytes: int, report: "BenchmarkReport") -> str:
    sizes = {entry.model: entry.file_bytes for entry in report.footprints}
    return formats.share(file_bytes / sizes[FLOAT], 1) if FLOAT in sizes else ""


def _memory(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else formats.size(size_bytes)


COMMAND = Command(
    name="benchmark",
    function=benchmark,
    panel=SHIP_PANEL,
    examples=(
        "cpt benchmark runs/digits/bundle-8bit",
        "cpt benchmark my-bundle --run runs/fashion --batch 1,32 --threads 1,2 --plot latency.png",
    ),
)
