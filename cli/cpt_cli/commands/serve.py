"""`cpt serve`: answer predictions over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli import formats
from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out


def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle that cpt export wrote.")],
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.", show_default="8000")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with the model in memory.", show_default="1")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that one inference computes with.", show_default="1")
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Serve a bundle over HTTP until SIGTERM or Ctrl-C: /predict, health, metrics, and the Open Inference Protocol v2.

    The bundle's checksums and golden sample are checked before anything listens. Every setting can also be given by an
    environment variable: CPT_SERVE_PORT=9000, CPT_SERVE_MAX_BODY_BYTES, CPT_SERVE_GOLDEN … (docs/http-api.md).
    """
    from cpt_serving.server import run
    from cpt_serving.settings import load_settings

    terse = out.quiet or out.json_mode
    settings = load_settings(
        bundle=bundle,
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        # uvicorn logs requests to stdout, which belongs to the result here.
        access_log=False if terse else None,
        log_level="warning" if terse else None,
    )

    def announce(url: str) -> None:
        out.fields(
            f"Serving {formats.path(bundle)}",
            {
                "address": url,
                "try it": f"curl -F file=@image.png {url}/predict",
                "docs": f"{url}/docs" if settings.docs else "off",
                "ready": f"{url}/health/ready",
                "workers": f"{settings.workers}, {settings.threads} threads for one inference",
            },
        )
        if out.quiet:
            out.line(url)
        out.result({"url": url, "bundle": bundle, "workers": settings.workers, "threads": settings.threads})

    run(settings, on_listening=announce)


COMMAND = Command(
    name="serve",
    function=serve,
    panel=SHIP_PANEL,
    examples=(
        "cpt serve runs/digits/bundle-8bit",
        "cpt serve my-bundle --host 0.0.0.0 --port 9000 --workers 4",
    ),
)
