"""The access log: a line for each request, written by a thread of its own, so that requests do not wait for it."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from cpt_deploy.errors import DataError
from cpt_serving.settings import ServeSettings
from cpt_serving.telemetry.log_queue import QueuedLog
from cpt_serving.web.records import RequestRecord

QUIET_ROUTES = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics", "/stats"})
"""Asked again and again by machines; left out unless they are asked for."""

_STDOUT = 1
_WRITE_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class AccessEntry:
    """An answered request.

    Args:
        time: When it was answered, in seconds since 1970.
        record: What became known of it.
        method: Its method.
        route: Template of its route.
        status: Status of its answer.
        duration_s: Seconds from its head to the end of its answer.
        client: Address that it came from.
    """

    time: float
    record: RequestRecord
    method: str
    route: str
    status: int
    duration_s: float
    client: str


Format = Callable[[AccessEntry], bytes]


class AccessLog:
    """The log of answered requests.

    Args:
        descriptor: The file that lines are written to.
        form: Makes the line of an entry.
        everything: Whether health and metrics are logged too.
        dropped: Called for each request that is left out, as writing is too slow.
    """

    def __init__(
        self,
        descriptor: int,
        form: Format,
        *,
        everything: bool = False,
        dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self._descriptor = descriptor
        self._quiet = frozenset() if everything else QUIET_ROUTES
        self._log = QueuedLog(descriptor, _Form(form), gather_s=_WRITE_EVERY_S, dropped=dropped)

    def add(self, scope: Any, record: RequestRecord, route: str, status: int, duration_s: float) -> None:
        """Note an answered request."""
        if route in self._quiet:
            return
        client = scope["client"][0] if scope.get("client") else ""
        self._log.enqueue(
            _Answered(AccessEntry(time.time(), record, scope["method"], route, status, duration_s, client))
        )

    def close(self) -> None:
        """Write what is waiting, and end."""
        self._log.close()
        if self._descriptor != _STDOUT:
            os.close(self._descriptor)


class _Answered(logging.LogRecord):
    """An answered request on its way to the file."""

    def __init__(self, entry: AccessEntry) -> None:
        super().__init__(__name__, logging.INFO, "", 0, "", None, None)
        self.entry = entry


class _Form(logging.Formatter):
    def __init__(self, form: Format) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        return self._form(record.entry).decode() if isinstance(record, _Answered) else super().format(record)


def json_line(entry: AccessEntry) -> bytes:
    """Return an entry as one line of JSON; what does not apply is left out."""
    return orjson.dumps(_fields(entry), option=orjson.OPT_UTC_Z)


def text_line(entry: AccessEntry) -> bytes:
    """Return an entry as one line for people."""
    record = entry.record
    parts = [
        f"{datetime.fromtimestamp(entry.time, UTC):%Y-%m-%dT%H:%M:%S}Z",
        entry.client or "-",
        entry.method,
        entry.route,
        str(entry.status),
        f"{entry.duration_s * 1e3:.1f}ms",
    ]
    if record.model:
        parts.append(f"{record.model}/{record.version}")
    if record.rows:
        parts.append(f"rows={record.rows}")
    if record.key:
        parts.append(f"key={record.key}")
    return " ".join([*parts, f"id={record.request_id}"]).encode()


def _fields(entry: AccessEntry) -> dict[str, Any]:
    record, inference = entry.record, entry.record.inference
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(entry.time, UTC),
        "request_id": record.request_id,
        "method": entry.method,
        "route": entry.route,
        "status": entry.status,
        "duration_ms": round(entry.duration_s * 1e3, 3),
        "client": entry.client,
    }
    if record.key:
        fields["key"] = record.key
    if record.model:
        fields |= {"model": record.model, "version": record.version}
    if record.rows:
        fields["rows"] = record.rows
    if inference is not None:
        fields |= {
            "queue_ms": round(inference.queue_ms, 3),
            "inference_ms": round(inference.inference_ms, 3),
            "batch_rows": inference.batch_rows,
        }
    if record.trace is not None:
        fields |= {"trace_id": record.trace.trace_id, "span_id": record.trace.span_id}
    return fields


def open_access_log(settings: ServeSettings, dropped: Callable[[], None] = lambda: None) -> AccessLog | None:
    """Return the log that the settings ask for, if they ask for one.

    Args:
        settings: Whether, where and how.
        dropped: Called for each request that is left out.

    Raises:
        DataError: If its file cannot be opened.
    """
    if not settings.access_log:
        return None
    target = _STDOUT if settings.access_log_file is None else _open(settings.access_log_file)
    as_text = settings.log_format == "text" or (
        settings.log_format == "auto" and target == _STDOUT and os.isatty(_STDOUT)
    )
    form = text_line if as_text else json_line
    return AccessLog(target, form, everything=settings.access_log_health, dropped=dropped)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise DataError(f"Expected to write the access log to {path}, but got: {error.strerror or error}") from error
