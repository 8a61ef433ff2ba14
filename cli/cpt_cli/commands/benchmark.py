"""`cpt benchmark`: compare a bundle's speed with the float network and with onnxruntime's own quantization of it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command, ProviderOption, number_list
from cpt_cli.output import out
from cpt_cli.shown.benchmark import show_benchmark
from cpt_deploy import readable


def benchmark(
    bundle: Annotated[Path, typer.Argument(help="Bundle that cpt export wrote.")],
    batch: Annotated[str, typer.Option(metavar="N,...", help="Rows per call.")] = "1,8,32",
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
) -> None:
    """Compare a bundle with the float32 export of its network and with onnxruntime's static quantization of that.

    The models are timed in alternation. The float32 and static models need the trained run and PyTorch; without these,
    only the bundle is measured. Memory is measured in a separate process for each file, at the largest batch.
    """
    from cpt_deploy.workflows import benchmark_bundle, bundle_at

    batches, counts = number_list("--batch", batch), number_list("--threads", threads)
    if plot is not None:
        from cpt_deploy.report import check_plot_path

        check_plot_path(plot)
    report = benchmark_bundle(
        bundle_at(bundle), batches=batches, threads=counts, run=run, seconds=seconds, provider=provider, reporter=out
    )
    fields = report.to_dict()
    if plot is not None:
        from cpt_deploy.report import plot_benchmark

        plot_benchmark(fields, plot)
        plot.with_suffix(".json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        out.note(f"plot: {readable.path(plot)}, figures: {readable.path(plot.with_suffix('.json'))}")
    show_benchmark(report)
    out.result({**fields, "bundle": bundle})


COMMAND = Command(
    benchmark,
    "cpt benchmark runs/digits/bundle-8bit",
    "cpt benchmark my-bundle --run runs/fashion --batch 1,32 --threads 1,2 --plot latency.png",
)
