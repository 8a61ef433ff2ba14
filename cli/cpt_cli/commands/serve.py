"""`cpt serve`: serve bundles over HTTP and gRPC."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli import garbage
from cpt_cli.command import PROVIDER_HELP, Command
from cpt_cli.output import out
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_serving.settings import ServeSettings

_LOAD = "Load"
_MODELS = "Models"
_ACCESS = "Access"
_WATCH = "Log and trace"


def serve(  # noqa: PLR0913, PLR0917  the options are its parameters
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE|RUN|FILE|DIRECTORY",
            help="Bundle that cpt export wrote, its run, any ONNX file, or a directory of NAME/VERSION/ and NAME.onnx.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 selects a free one.", show_default="8000")
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the Open Inference Protocol over gRPC.", show_default="off"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with any of the settings; options and environment variables override it."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of threads per inference.", show_default="1")
    ] = None,
    provider: Annotated[str | None, typer.Option(help=PROVIDER_HELP, show_default="cpu")] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of rows per batch.", show_default="16", rich_help_panel=_LOAD),
    ] = None,
    queue_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of rows that wait for a model; further requests get 429.",
            show_default="1024",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0, help="Deadline in seconds of requests without their own.", rich_help_panel=_LOAD
        ),
    ] = None,
    golden: Annotated[
        str | None,
        typer.Option(
            metavar="exact|labels|off",
            help="Check of the golden sample at loading: exact outputs, only the same labels, or none.",
            show_default="exact",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    require_evidence: Annotated[
        bool | None,
        typer.Option(
            "--require-evidence",
            help="Refuse bundles that have not passed cpt validate in their present state.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    require_signature: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYS",
            help="Refuse bundles that are not signed with this public key, or one of a folder of them; see cpt sign.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    watch_s: Annotated[
        float | None,
        typer.Option(
            "--watch",
            metavar="SECONDS",
            min=0,
            help="Interval of checks for new, changed and removed versions.",
            show_default="off",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File of API keys, one of which every request needs; see cpt api-key.", rich_help_panel=_ACCESS
        ),
    ] = None,
    open_metrics: Annotated[
        bool | None, typer.Option("--open-metrics", help="Show /metrics without a key.", rich_help_panel=_ACCESS)
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate with its chain, PEM; enables HTTPS.", rich_help_panel=_ACCESS),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Private key of the certificate, PEM, if it is in another file.", rich_help_panel=_ACCESS),
    ] = None,
    cors_origins: Annotated[
        str | None,
        typer.Option(
            metavar="ORIGIN,...",
            help="Origins whose web pages may send requests.",
            show_default="none",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    access_log: Annotated[
        bool | None,
        typer.Option(
            "--access-log/--no-access-log",
            help="Log each request on stdout.",
            show_default="on",
            rich_help_panel=_WATCH,
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="auto|json|text", help="auto is text on a terminal.", show_default="auto", rich_help_panel=_WATCH
        ),
    ] = None,
    tracing: Annotated[
        str | None,
        typer.Option(
            metavar="auto|on|off",
            help="OpenTelemetry; auto is on if OTEL_EXPORTER_OTLP_ENDPOINT is set.",
            show_default="auto",
            rich_help_panel=_WATCH,
        ),
    ] = None,
) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C: /predict, health, metrics, the Open Inference Protocol v2.

    Checksums and golden samples are checked before the server listens. Every setting can also be given by an
    environment variable, CPT_SERVE_PORT=9000, CPT_SERVE_MAX_BODY_BYTES, ..., or in a YAML file;
    docs/reference/server-settings.md lists them.
    """
    from cpt_deploy.workflows import bundle_at
    from cpt_serving.repository.model_directory import find_models
    from cpt_serving.server import run
    from cpt_serving.settings import load_settings

    terse = out.quiet or out.json_mode
    settings = load_settings(
        config=config,
        bundle=bundle and bundle_at(bundle),
        host=host,
        port=port,
        grpc_port=grpc_port,
        threads=threads,
        provider=provider,
        max_batch=max_batch,
        queue_rows=queue_rows,
        timeout_s=timeout_s,
        golden=golden,
        require_evidence=require_evidence,
        require_signature=require_signature,
        watch_s=watch_s,
        api_keys=api_keys,
        open_metrics=open_metrics,
        tls_cert=tls_cert,
        tls_key=tls_key,
        cors_origins=cors_origins,
        log_format=log_format,
        tracing=tracing,
        # The access log goes to stdout, which is reserved for the result here.
        access_log=False if terse and access_log is None else access_log,
        log_level="warning" if terse else None,
    )

    def announce(url: str) -> None:
        loaded()
        locations = {location.address()[0]: location for location in find_models(settings.bundle)}
        models = sorted(locations)
        first = models[0] if models else "NAME"
        place = url if len(models) == 1 else f"{url}/models/{first}"
        path = locations[first].path if first in locations else settings.bundle
        bare = [name for name, location in locations.items() if location.path.is_file()]
        out.fields(
            f"Serving {readable.path(settings.bundle)}",
            {
                "address": url,
                **({} if settings.grpc_port is None else {"gRPC": f"{settings.host}:{settings.grpc_port}"}),
                "models": ", ".join(models) or "none yet",
                **({"evidence": f"none for {', '.join(bare)}: served as it is, see cpt validate"} if bare else {}),
                "page": f"{url}/" if settings.page else "off",
                "try it": _curl(settings, f"{url}/v2/models/{first}" if path.is_file() else _example(path, place)),
                "docs": f"{url}/docs" if settings.docs else "off",
                "ready": f"{url}/health/ready",
                "keys": "none: everyone who can reach the address can use the server"
                if settings.api_keys is None
                else readable.path(settings.api_keys),
                "in parallel": f"{readable.counted(settings.inferences_at_once, 'inference')} of "
                f"{readable.counted(settings.threads, 'thread')} each",
            },
        )
        if out.quiet:
            out.line(url)
        out.result(
            {
                "url": url,
                "bundle": settings.bundle,
                "models": models,
                "threads": settings.threads,
                "without_evidence": bare,
            }
        )

    garbage.look_as_usual()
    with out.waiting(f"loading {readable.path(settings.bundle)}") as loaded:
        run(settings, on_listening=announce)


def _example(bundle: Path, address: str) -> str:
    """Return arguments of curl for an example request: as the task of a bundle says, else with rows of tensors."""
    from cpt_deploy.bundle.reading import bundle_task
    from cpt_deploy.recipe.tasks import tasks
    from cpt_deploy.tasks import task_named

    task = bundle_task(bundle)
    if task is not None and task in tasks:
        return task_named(task).example_request(address)
    return f"""-H 'Content-Type: application/json' -d '{{"inputs": …}}' {address}/predict"""


def _curl(settings: "ServeSettings", request: str) -> str:
    key = "" if settings.api_keys is None else "-H 'X-API-Key: …' "
    trust = "" if settings.tls_cert is None else f"--cacert {settings.tls_cert} "
    return f"curl {trust}{key}{request}"


COMMAND = Command(
    serve,
    "cpt serve runs/digits/bundle-8bit",
    "cpt serve models/ --watch 5 --require-evidence  # models/NAME/VERSION/; new versions are loaded while it runs",
    "cpt serve model.onnx --grpc-port 8001  # any ONNX file, without evidence; over gRPC too",
    "cpt serve my-bundle --host 0.0.0.0 --api-keys keys.txt --tls-cert cert.pem --tls-key key.pem",
    "cpt serve --config serve.yaml",
)
