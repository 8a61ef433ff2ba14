"""Settings of the server: arguments, else environment variables `CPT_SERVE_...`, else a YAML file, else defaults."""

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from cpt_deploy import readable
from cpt_deploy.bundle import MAX_PIXELS
from cpt_deploy.errors import UsageError
from cpt_deploy.invalid_values import place_of, problem_of
from cpt_serving.cores import available_cores

ENV_PREFIX = "CPT_SERVE_"


class ServeSettings(BaseSettings):
    """What a server serves and how."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    config: Path | None = None
    """A YAML file with any of the other settings."""

    bundle: Path
    """A bundle, an ONNX file, or a directory of bundles, `name/version/`."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 chooses a free one."""

    grpc_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the Open Inference Protocol over gRPC; off by default."""

    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of one inference."""

    concurrency: int | None = Field(default=None, ge=1, le=1024)
    """Concurrent inferences; by default the cores, or the container's limit, divided by `threads`."""

    max_batch: int = Field(default=16, ge=1, le=65536)
    """Maximum rows of a batch; 1 computes each request on its own."""

    queue_rows: int = Field(default=1024, ge=1)
    """Maximum waiting rows of a model; a request beyond is answered 429."""

    queue_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Maximum bytes of the waiting rows of a model; fewer than `queue_rows` large inputs wait."""

    timeout_s: float | None = Field(default=None, gt=0, le=3600)
    """Deadline of requests that state none; no deadline by default."""

    provider: str = "cpu"
    """Execution provider of onnxruntime: cpu, cuda, tensorrt, another by its full name, or NAME=PATH from a library."""

    golden: Literal["exact", "labels", "off"] = "exact"
    """Required match of the golden sample before the server is ready: every integer, the top classes, or none."""

    require_evidence: bool = False
    """Whether to refuse bundles without a validation.json that passed and is of the bundle's present files."""

    require_signature: Path | None = None
    """A public key in PEM, or a directory of them; bundles not signed with one of them are refused."""

    generations: int = Field(default=16, ge=1, le=4096)
    """Maximum concurrent texts of a model; a request beyond is answered 429."""

    max_new_tokens: int = Field(default=1024, ge=1)
    """Maximum tokens to generate for one request."""

    max_free_size: int = Field(default=8192, ge=1)
    """Maximum of each free size of a request, such as the tokens of a text, if the model itself has no maximum."""

    watch_s: float = Field(default=0.0, ge=0, le=86_400)
    """Seconds between checks for new, changed and removed versions; 0 checks only on request."""

    top_k: int = Field(default=5, ge=1)
    """Classes in an answer of `/predict` if the client states no number."""

    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Maximum size of a request body."""

    max_json_bytes: int = Field(default=8 * 1024 * 1024, ge=1)
    """Maximum size of JSON in a request; binary tensors and files are limited by `max_body_bytes`."""

    max_memory_bytes: int = Field(default=128 * 1024 * 1024, ge=1)
    """Memory for the bodies of all requests in progress (503 beyond); the default fits the manifests' 512 MiB."""

    head_timeout_s: float = Field(default=10.0, gt=0, le=3600)
    """Seconds for the head of a request to arrive, from the opening of its connection or its first byte."""

    body_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """Seconds for the body of a request to arrive, or for 8 KiB per second of it."""

    max_connections: int = Field(default=1024, ge=1)
    """Maximum open connections; a client beyond is answered 503."""

    keep_alive_s: int = Field(default=5, ge=0, le=3600)
    """Seconds after which a connection without a further request is closed."""

    max_rows: int = Field(default=256, ge=1)
    """Maximum rows, such as images, in one request."""

    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Maximum pixels (width x height) of one image, by its header."""

    max_request_pixels: int = Field(default=8 * MAX_PIXELS, ge=1)
    """Maximum pixels of all images of one request, decoded and scaled."""

    decode_bytes: int = Field(default=192 * 1024 * 1024, ge=1)
    """Memory for decoding images at once; an image that needs more is refused, others wait."""

    drain_s: float = Field(default=1.0, ge=0, le=3600)
    """Seconds from SIGTERM, when readiness fails, until the port is closed, for load balancers to notice."""

    shutdown_s: int = Field(default=30, ge=0, le=3600)
    """Seconds after that for requests in progress to finish."""

    docs: bool = True
    """Whether `/docs` and `/openapi.json` are served."""

    page: bool = True
    """Whether the page at `/` and the routes that it reads are served."""

    access_log: bool = True
    """Whether each request is logged as a line on stdout."""

    access_log_file: Path | None = None
    """A file to append the lines to instead."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """Format of the lines; by default text on a terminal and JSON elsewhere."""

    tracing: Literal["auto", "on", "off"] = "auto"
    """Whether requests are traced with OpenTelemetry; by default if its variables name an endpoint."""

    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """Minimum severity of the log."""

    api_keys: Path | None = None
    """A file of API keys, as `cpt api-key` writes it; without it every client may send requests."""

    open_metrics: bool = False
    """Whether `/metrics` needs no API key although other routes do."""

    cors_origins: str = ""
    """Origins whose pages may send requests (CORS), separated by commas; * for all, empty for none."""

    trusted_proxies: str = ""
    """Addresses of trusted proxies, whose `X-Forwarded-For` and `-Proto` are used, separated by commas; * for all."""

    max_head_bytes: int = Field(default=16 * 1024, ge=1024)
    """Maximum size of the head of a request: its first line and its headers."""

    tls_cert: Path | None = None
    """Certificate with its chain, in PEM; enables HTTPS."""

    tls_key: Path | None = None
    """Private key of the certificate in PEM, if it is not in the same file."""

    @property
    def inferences_at_once(self) -> int:
        """`concurrency`, or by default the available cores divided by `threads`."""
        if self.concurrency is not None:
            return self.concurrency
        return max(1, available_cores() // self.threads)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of values, the first one taking precedence."""
        given = init_settings()["config"] if "config" in init_settings() else os.environ.get(f"{ENV_PREFIX}CONFIG")
        if given is None:
            return init_settings, env_settings
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=_readable(Path(given)))


def load_settings(**values: Any) -> ServeSettings:
    """Return the settings for arguments; arguments that are `None` count as not given.

    Raises:
        UsageError: If the file cannot be read, values are missing or out of range, or a variable `CPT_SERVE_...` is no
            setting; the message lists all of them in one line.
    """
    known = {f"{ENV_PREFIX}{name}".upper() for name in ServeSettings.model_fields}
    unknown = [name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in known]
    if unknown:
        # A misspelt CPT_SERVE_API_KEYS must not leave the server open.
        names = ", ".join(readable.name(each) for each in sorted(unknown))
        raise UsageError(
            f"Expected variables {ENV_PREFIX}... to be settings, but got {names}",
            hint="cpt serve --help lists the settings; in Kubernetes, enableServiceLinks: false",
        )
    try:
        return ServeSettings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(f"{place_of(dict(each))}: {problem_of(dict(each))}" for each in error.errors())
        raise UsageError(
            f"Expected valid settings, but got: {problems}",
            hint=f"each can be an option, an environment variable, e.g. {ENV_PREFIX}PORT=8000, or a line in the file "
            "of --config",
        ) from error


def local_settings(bundle: Path, threads: int | None) -> ServeSettings:
    """Return the defaults for a bundle that only this process uses, whatever the environment says.

    Args:
        bundle: The bundle.
        threads: Threads of one inference; None is all cores.
    """
    return ServeSettings.model_construct(bundle=bundle, threads=threads or available_cores(), golden="off")


def _readable(path: Path) -> Path:
    """Check that a YAML file holds a mapping, and return its path.

    Raises:
        UsageError: If it does not.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Expected a file with settings at {path}, but got: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"Expected YAML in {path}, but got: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"Expected {path} to hold settings as `name: value`, but got {type(content).__name__}")
    return path
