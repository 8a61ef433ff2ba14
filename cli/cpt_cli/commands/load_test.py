"""`cpt load-test`: throughput and latency of a server under load."""

import asyncio
import json
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli import formats
from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, QuietFlag, number_list
from cpt_cli.output import Bar, out
from cpt_cli.server_key import ApiKeyOption, key_headers
from cpt_deploy.errors import CptError, DataError, UsageError

if TYPE_CHECKING:
    from cpt_serving.loadtest import LevelResult, PreparedRequest, Recorder

INTERRUPTED = 130
_STEPS = 1000


class Protocol(StrEnum):
    """How a load test asks."""

    BINARY = "binary"
    JSON = "json"
    PREDICT = "predict"


def load_test(  # noqa: PLR0913, PLR0917  the options are its parameters
    url: Annotated[str, typer.Argument(help="Address of the server, e.g. http://127.0.0.1:8000.")],
    clients: Annotated[
        str, typer.Option("--clients", "-c", metavar="N,...", help="Clients that ask at the same time; several levels.")
    ] = "1,8,64",
    seconds: Annotated[
        float | None, typer.Option(min=0.01, help="How long to measure each level.", show_default="10, or no limit")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests of each level at most.", show_default="no limit")
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            help="Open Inference Protocol with tensors as bytes (binary) or as JSON (json), or images to /predict.",
            show_default="predict with --image, else binary",
        ),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image file to send to /predict; several times.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Images or rows in a request.", show_default="1, or all of --image")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model, where several are served.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="Header of every request; several times.")
    ] = None,
    api_key: ApiKeyOption = None,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before each level is measured.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds after which an answer counts as missing.")] = 30.0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the latencies at every percentile into this PNG, SVG or PDF file.")
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure requests per second and latencies of a server at several numbers of clients.

    Each client has one request under way and sends the next one as soon as its answer is there, over a connection that
    stays open. Works with every server of the Open Inference Protocol. Ctrl-C shows what was measured until then.
    """
    from cpt_serving.loadtest import prepare

    levels = number_list("--clients", clients)
    if plot is not None:
        from cpt_deploy.report import check_plot_path

        check_plot_path(plot)
    images = [_read(path) for path in image or ()]
    chosen = protocol or (Protocol.PREDICT if images else Protocol.BINARY)
    if images and chosen is not Protocol.PREDICT:
        raise UsageError(f"Expected no --image with --protocol {chosen.value}, whose rows are numbers, but got one")
    request = prepare(
        url,
        chosen.value,
        rows=rows or max(1, len(images)),
        images=images,
        model=model,
        headers={**key_headers(api_key), **dict(_header(text) for text in header or ())},
    )
    duration_s = seconds if seconds is not None or requests is not None else 10.0
    results, interrupted = _measure(request, levels, duration_s, requests, warm_up, timeout)
    _report(request, results, plot, interrupted=interrupted)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _measure(
    request: "PreparedRequest",
    levels: list[int],
    duration_s: float | None,
    requests: int | None,
    warm_up_s: float,
    timeout_s: float,
) -> tuple[list["LevelResult"], bool]:
    """Run the levels with a bar; returns the results and whether Ctrl-C ended them early."""
    from cpt_serving.loadtest import fast_loop, run_levels

    async def run(bar: Bar) -> tuple[list["LevelResult"], bool]:
        def show(clients: int, recorder: "Recorder", share: float) -> None:
            failed = f", {sum(recorder.errors.values())} failed" if recorder.errors else ""
            done = levels.index(clients) + share
            bar.advance(round(done * _STEPS), detail=f"{clients} clients: {len(recorder.latencies_s)} answers{failed}")

        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        results = await run_levels(
            request,
            levels,
            duration_s=duration_s,
            requests=requests,
            warm_up_s=warm_up_s,
            timeout_s=timeout_s,
            stop=stop,
            on_progress=show,
        )
        return results, stop.is_set()

    with out.bar("load", len(levels) * _STEPS) as bar, fast_loop() as runner:
        return runner.run(run(bar))


def _report(request: "PreparedRequest", results: list["LevelResult"], plot: Path | None, *, interrupted: bool) -> None:
    answered = sum(result.requests for result in results)
    if not answered and not interrupted:
        messages = [text for result in results for text in result.messages.values()]
        kinds = sorted({kind for result in results for kind in result.errors})
        raise CptError(
            f"Expected answers from {request.url}, but got {', '.join(kinds) or 'none'}"
            + (f": {messages[0]}" if messages else "")
        )
    out.fields(
        f"Load on {request.url}",
        {
            "request": f"{request.description}, {formats.size(len(request.content))}",
            "rows": f"{request.rows} in a request",
        },
    )
    _show(results)
    if plot is not None:
        from cpt_deploy.report import plot_load

        title = f"{str(request.url).rstrip('/')}, {request.description}, {request.rows} in a request"
        plot_load({result.clients: result.latencies_s for result in results}, title, plot)
        plot.with_suffix(".json").write_text(json.dumps([result.to_dict() for result in results], indent=2) + "\n")
        out.note(f"plot: {formats.path(plot)}, figures: {formats.path(plot.with_suffix('.json'))}")
    out.result(
        {
            "url": str(request.url),
            "request": request.description,
            "request_bytes": len(request.content),
            "interrupted": interrupted,
            "levels": [result.to_dict() for result in results],
        }
    )


def _show(results: list["LevelResult"]) -> None:
    columns = ("clients", "requests/s", "rows/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "answers", "failed")
    out.table(
        columns,
        [
            (
                result.clients,
                f"{result.requests_per_s:.1f}",
                f"{result.rows_per_s:.1f}",
                *(_milliseconds(result.latency_ms(share)) for share in (0.5, 0.9, 0.99, 1.0)),
                result.requests,
                sum(result.errors.values()),
            )
            for result in results
        ],
    )
    for result in results:
        for kind, number in sorted(result.errors.items()):
            said = f": {result.messages[kind]}" if kind in result.messages else ""
            out.warning(f"{result.clients} clients: {number} times {kind}{said}")


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"Expected a readable image file at {path}, but got: {error.strerror or error}") from error


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isascii() or not text.isprintable():
        raise UsageError(f"Expected --header to be NAME:VALUE, but got {text!r}")
    return name.strip(), value.strip()


COMMAND = Command(
    name="load-test",
    function=load_test,
    panel=SHIP_PANEL,
    examples=(
        "cpt load-test http://127.0.0.1:8000",
        "cpt load-test http://127.0.0.1:8000 --clients 1,16 --rows 8 --seconds 30 --plot latency.png",
        "cpt load-test http://127.0.0.1:8000 --image digit.png --requests 1000 --json",
    ),
)
