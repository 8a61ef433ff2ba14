"""`cpt benchmark`: what a bundle gains over the float network and over onnxruntime's own quantization of it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, ProviderOption, QuietFlag, number_list
from cpt_cli.output import out
from cpt_cli.shown.benchmark import show_benchmark
from cpt_deploy import readable


def benchmark(  # noqa: PLR0913, PLR0917  the options are its parameters
    bundle: Annotated[Path, typer.Argument(help="Bundle that cpt export wrote.")],
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images in a call.")] = "1,8,32",
    threads: Annotated[str, typer.Option(metavar="N,...", help="Threads of onnxruntime.")] = "1",
    run: Annotated[
        Path | None,
        typer.Option(help="Run whose float network to compare with.", show_default="the one that the bundle lies in"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to time each batch size and thread count.")] = 3.0,
    provider: ProviderOption = "cpu",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the times into this PNG, SVG or PDF file, and the figures as JSON beside.")
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Time a bundle beside the float32 export of its network and onnxruntime's static quantization of that.

    All of them take turns in one run. The two others need the trained run and PyTorch; without them only the bundle
    is measured. Memory is measured in a process of its own for each file, at the largest batch.
    """
    from cpt_deploy.workflows import benchmark_bundle

    batches, counts = number_list("--batch", batch), number_list("--threads", threads)
    if plot is not None:
        from cpt_deploy.report import check_plot_path

        check_plot_path(plot)
    report = benchmark_bundle(
        bundle, batches=batches, threads=counts, run=run, seconds=seconds, provider=provider, reporter=out
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
    name="benchmark",
    function=benchmark,
    panel=SHIP_PANEL,
    examples=(
        "cpt benchmark runs/digits/bundle-8bit",
        "cpt benchmark my-bundle --run runs/fashion --batch 1,32 --threads 1,2 --plot latency.png",
    ),
)
