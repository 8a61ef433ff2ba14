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

from cpt_deploy.bundle import MAX_PIXELS
from cpt_deploy.errors import UsageError
from cpt_serving.cores import available_cores

ENV_PREFIX = "CPT_SERVE_"


class ServeSettings(BaseSettings):
    """What a server serves and how."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    config: Path | None = None
    """A YAML file with any of the settings below."""

    bundle: Path
    """A bundle, or a directory of `name/version/` bundles."""

    host: str = "127.0.0.1"
    """Address to listen on; only this machine reaches the default."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    grpc_port: int | None = Field(default=None, ge=1, le=65535)
    """Port for the Open Inference Protocol over gRPC; without it there is none."""

    threads: int = Field(default=1, ge=1, le=1024)
    """Threads that one inference computes with."""

    concurrency: int | None = Field(default=None, ge=1, le=1024)
    """Inferences that run at once; by default the cores divided by `threads`."""

    max_batch: int = Field(default=16, ge=1, le=65536)
    """Most rows that are computed together; 1 computes each request on its own."""

    queue_rows: int = Field(default=1024, ge=1)
    """Most rows of a model that wait; a request that comes on top is answered 429."""

    queue_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Most bytes that the rows of a model take which wait; of large inputs fewer wait than `queue_rows`."""

    timeout_s: float | None = Field(default=None, gt=0, le=3600)
    """Deadline of requests that state none; by default they have none."""

    provider: str = "cpu"
    """Execution provider of onnxruntime."""

    golden: Literal["exact", "labels", "off"] = "exact"
    """What the golden sample has to reproduce before the server is ready: every code, the top classes, or nothing."""

    require_evidence: bool = False
    """Whether a bundle is refused unless its validation.json is there, passed, and of its files as they are."""

    require_signature: Path | None = None
    """A public key in PEM, or a directory of such: a bundle is refused unless it is signed with one of them."""

    generations: int = Field(default=16, ge=1, le=4096)
    """Most texts that a language model works on at once; a request that comes on top is answered 429."""

    max_new_tokens: int = Field(default=1024, ge=1)
    """Most tokens that one request may have generated."""

    max_prompt_tokens: int = Field(default=8192, ge=1)
    """Most tokens of a text that a request brings, where the model's own context allows more."""

    watch_s: float = Field(default=0.0, ge=0, le=86_400)
    """Seconds between two looks for new, changed and removed versions; 0 looks only when asked."""

    top_k: int = Field(default=5, ge=1)
    """Classes in an answer of `/predict` when the client does not say."""

    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Largest request body."""

    max_json_bytes: int = Field(default=8 * 1024 * 1024, ge=1)
    """Largest JSON in a request; tensors as bytes and files are bounded by `max_body_bytes`."""

    max_memory_bytes: int = Field(default=128 * 1024 * 1024, ge=1)
    """Memory for the bodies of all requests under way; what comes on top is answered 503."""

    head_timeout_s: float = Field(default=10.0, gt=0, le=3600)
    """Seconds in which the head of a request has to come, from the opening of its connection or its first byte."""

    body_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """Seconds in which the body, or 8 KiB of it for each second, has to come."""

    max_connections: int = Field(default=1024, ge=1)
    """Most connections that are open at once; who comes on top is answered 503."""

    keep_alive_s: int = Field(default=5, ge=0, le=3600)
    """Seconds after which a connection without a further request is closed."""

    max_rows: int = Field(default=256, ge=1)
    """Most images or rows in one request."""

    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Most pixels (width x height) that one image may declare."""

    max_request_pixels: int = Field(default=8 * MAX_PIXELS, ge=1)
    """Most pixels that are made of the images of one request, decoded and scaled."""

    decode_bytes: int = Field(default=192 * 1024 * 1024, ge=1)
    """Most bytes in which images are decoded at once; one that needs more is refused, others wait for their turn."""

    drain_s: float = Field(default=1.0, ge=0, le=3600)
    """Seconds from SIGTERM, when readiness fails, until the port is closed; what routes traffic needs to notice."""

    shutdown_s: int = Field(default=30, ge=0, le=3600)
    """Seconds after that in which requests under way may finish."""

    docs: bool = True
    """Whether `/docs` and `/openapi.json` are served."""

    page: bool = True
    """Whether the page at `/` and what it reads is served."""

    access_log: bool = True
    """Whether each request is logged, as a line on stdout."""

    access_log_file: Path | None = None
    """A file to which the lines are appended instead."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """How lines are written; by default as JSON, and as text on a terminal."""

    tracing: Literal["auto", "on", "off"] = "auto"
    """Whether requests are traced with OpenTelemetry; by default if its variables name an endpoint."""

    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """Least severity of what is logged."""

    api_keys: Path | None = None
    """A file of API keys, as `cpt api-key` writes it; without one everybody who reaches the address may ask."""

    open_metrics: bool = False
    """Whether `/metrics` needs no key where other routes do."""

    cors_origins: str = ""
    """Origins whose pages may ask, with commas between; * for all, empty for none."""

    trusted_proxies: str = ""
    """Addresses of proxies whose `X-Forwarded-For` and `-Proto` are believed, with commas between; * for all."""

    max_head_bytes: int = Field(default=16 * 1024, ge=1024)
    """Largest head of a request: its first line and its headers."""

    tls_cert: Path | None = None
    """Certificate, with its chain, in PEM; makes the server speak HTTPS."""

    tls_key: Path | None = None
    """Private key of the certificate in PEM, where it is not in the same file."""

    @property
    def inferences_at_once(self) -> int:
        """`concurrency`, or what the cores that this process may use allow for."""
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
        """Return where values come from, first one first."""
        given = init_settings()["config"] if "config" in init_settings() else os.environ.get(f"{ENV_PREFIX}CONFIG")
        if given is None:
            return init_settings, env_settings
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=_readable(Path(given)))


def load_settings(**values: Any) -> ServeSettings:
    """Return the settings for arguments; those that are `None` count as not given.

    Raises:
        UsageError: If the file cannot be read, or a value is missing or out of range; the message lists all of them in
            one line.
    """
    try:
        return ServeSettings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, but got {problem['input']!r}"
            if problem["type"] != "missing"
            else f"{'.'.join(map(str, problem['loc']))} is missing"
            for problem in error.errors()
        )
        raise UsageError(
            f"Expected settings that fit, but got: {problems}",
            hint=f"each can be an option, an environment variable, e.g. {ENV_PREFIX}PORT=8000, or stand in the file of "
            "--config",
        ) from error


def _readable(path: Path) -> Path:
    """Return the path of a YAML file, once it is known to hold a mapping.

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
