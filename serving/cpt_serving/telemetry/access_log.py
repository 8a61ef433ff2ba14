"""The access log: one line per request, written by a thread of its own so that requests do not wait."""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.trace import format_span_id, format_trace_id

from cpt_deploy.errors import DataError
from cpt_serving.settings import ServeSettings
from cpt_serving.telemetry.line_queue import LineQueue
from cpt_serving.telemetry.records import RequestRecord

QUIET_ROUTES = frozenset({
    "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics", "/stats",
    "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady",
})  # fmt: skip
"""Routes polled by machines, which are neither logged nor traced."""

Fields = dict[str, Any]
"""What is logged of a request, by name."""

_STDOUT = 1
_WRITE_EVERY_S = 0.05


class AccessLog:
    """The log of answered requests.

    Args:
        descriptor: File descriptor that lines are written to.
        line: Returns the line of a request from its fields.
        dropped: Called for each request that is left out because writing is too slow.
    """

    def __init__(
        self, descriptor: int, line: Callable[[Fields], bytes], *, dropped: Callable[[], None] = lambda: None
    ) -> None:
        self._lines = LineQueue(descriptor, line, gather_s=_WRITE_EVERY_S, dropped=dropped)

    def add(self, scope: Mapping[str, Any], record: RequestRecord, route: str, status: int, duration_s: float) -> None:
        """Log an answered request.

        Args:
            scope: ASGI scope, of which the method and the client are logged.
            record: Record of the request.
            route: Template of the route.
            status: Status of the answer.
            duration_s: Seconds from the head of the request to the end of the answer.
        """
        if route in QUIET_ROUTES:
            return
        fields: Fields = {
            "time": datetime.now(UTC),
            "request_id": record.request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "duration_ms": round(duration_s * 1e3, 3),
            "client": scope["client"][0] if scope.get("client") else "",
        }
        if record.key:
            fields["key"] = record.key
        if record.model:
            fields |= {"model": record.model, "version": record.version}
        if record.rows:
            fields["rows"] = record.rows
        if (inference := record.inference) is not None:
            fields["queue_ms"] = round(inference.queue_ms, 3)
            fields["inference_ms"] = round(inference.inference_ms, 3)
            fields["batch_rows"] = inference.batch_rows
        if record.trace is not None:
            fields["trace_id"] = format_trace_id(record.trace.trace_id)
            fields["span_id"] = format_span_id(record.trace.span_id)
        self._lines.put(fields)

    def close(self) -> None:
        """Write the waiting lines, and end the thread."""
        self._lines.close()


def json_line(fields: Fields) -> bytes:
    """Return a request as one line of JSON; fields that do not apply are left out."""
    return orjson.dumps(fields, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def text_line(fields: Fields) -> bytes:
    """Return a request as one line for people."""
    parts = [f"{fields['time']:%Y-%m-%dT%H:%M:%S}Z", fields["client"] or "-", fields["method"], fields["route"]]
    parts += [str(fields["status"]), f"{fields['duration_ms']:.1f}ms"]
    if "model" in fields:
        parts.append(f"{fields['model']}/{fields['version']}")
    parts += [f"{name}={fields[name]}" for name in ("rows", "key") if name in fields]
    return (" ".join([*parts, f"id={fields['request_id']}"]) + "\n").encode()


def open_access_log(settings: ServeSettings, dropped: Callable[[], None] = lambda: None) -> AccessLog | None:
    """Open the access log, if the settings ask for one.

    Args:
        settings: Settings with its file and format.
        dropped: Called for each request that is left out.

    Raises:
        DataError: If its file cannot be opened.
    """
    if not settings.access_log:
        return None
    target = _STDOUT if settings.access_log_file is None else _open(settings.access_log_file)
    read_by_people = target == _STDOUT and os.isatty(_STDOUT)
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and read_by_people)
    return AccessLog(target, text_line if as_text else json_line, dropped=dropped)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise DataError(f"Expected to write the access log to {path}, but got: {error.strerror or error}") from error
