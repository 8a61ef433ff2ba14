"""The access log: a line for each request, written by a thread of its own, so that requests do not wait for it."""

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from cpt_deploy.errors import DataError
from cpt_serving.settings import ServeSettings
from cpt_serving.web.records import RequestRecord

logger = logging.getLogger(__name__)

QUIET_ROUTES = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics", "/stats"})
"""Asked again and again by machines; left out unless they are asked for."""

_STDOUT = 1
_MOST_WAITING = 65_536
_WRITE_EVERY_S = 0.05
_ATOMIC_BYTES = 4096
"""Up to this many bytes, workers that write to one pipe do not mix their lines."""


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
    """Takes entries on the event loop and writes them in a thread; when that falls far behind, entries are dropped.

    Args:
        write: Takes some lines.
        form: Makes the line of an entry.
        everything: Whether health and metrics are logged too.
        release: Called when nothing is written any more.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        form: Format,
        *,
        everything: bool = False,
        release: Callable[[], object] | None = None,
    ) -> None:
        self._write = write
        self._release = release
        self._form = form
        self._quiet = frozenset() if everything else QUIET_ROUTES
        self._waiting: deque[AccessEntry] = deque()
        self._dropped = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, scope: Any, record: RequestRecord, route: str, status: int, duration_s: float) -> None:
        """Note an answered request."""
        if route in self._quiet:
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._dropped += 1
            return
        client = scope.get("client")
        self._waiting.append(
            AccessEntry(time.time(), record, scope["method"], route, status, duration_s, client[0] if client else "")
        )
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="access-log", daemon=True)
            self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what is waiting, and end."""
        self._closing = True
        if self._thread is not None:
            self._wake.set()
            self._thread.join()
        self._write_waiting()
        if self._dropped:
            logger.error("the access log left out %d requests: writing was too slow", self._dropped)
        if self._release is not None:
            self._release()

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait()
            if not self._closing:
                time.sleep(_WRITE_EVERY_S)
            self._wake.clear()
            self._write_waiting()

    def _write_waiting(self) -> None:
        try:
            for chunk in self._chunks():
                self._write(chunk)
        except OSError as error:
            logger.error("the access log cannot be written: %s", error.strerror or error)

    def _chunks(self) -> Iterator[bytes]:
        chunk = b""
        while self._waiting:
            line = self._form(self._waiting.popleft())
            if chunk and len(chunk) + len(line) > _ATOMIC_BYTES:
                yield chunk
                chunk = b""
            chunk += line
        if chunk:
            yield chunk


def json_line(entry: AccessEntry) -> bytes:
    """Return an entry as one line of JSON; what does not apply is left out."""
    return orjson.dumps(_fields(entry), option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


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
    return (" ".join([*parts, f"id={record.request_id}"]) + "\n").encode()


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


def open_access_log(settings: ServeSettings) -> AccessLog | None:
    """Return the log that the settings ask for, if they ask for one.

    Raises:
        DataError: If its file cannot be opened.
    """
    if not settings.access_log:
        return None
    target = _STDOUT if settings.access_log_file is None else _open(settings.access_log_file)
    as_text = settings.log_format == "text" or (
        settings.log_format == "auto" and target == _STDOUT and os.isatty(_STDOUT)
    )
    return AccessLog(
        functools.partial(_write_all, target),
        text_line if as_text else json_line,
        everything=settings.access_log_health,
        release=None if target == _STDOUT else functools.partial(os.close, target),
    )


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise DataError(f"Expected to write the access log to {path}, but got: {error.strerror or error}") from error


def _write_all(target: int, lines: bytes) -> None:
    while lines:
        lines = lines[os.write(target, lines) :]
