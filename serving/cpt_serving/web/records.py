"""What is known of the request under way: collected where it becomes known, for the log, the metrics and the trace."""

import itertools
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry.trace import SpanContext

from cpt_deploy.bundle.opened import OpenedBundle
from cpt_serving.inference.batching import Inference

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# Processes have random bytes of their own, so that those and a count are as unique as random bytes for each request.
_ID_PREFIX = uuid.uuid4().hex[:20]
_ID_COUNT = itertools.count()


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Args:
        request_id: Its id, the client's or a new one.
        trace: The server's span of it, if it is traced.
        key: Name of the API key that it came with.
        model: Name of the model that it asked for, once it asked.
        version: Version of the model.
        rows: How many rows it asked for.
        asked_at: When the rows were ready for the model, in seconds of `time.monotonic`.
        computed_at: When the logits were there.
        inference: What came of it.
    """

    request_id: str
    trace: SpanContext | None = None
    key: str = ""
    model: str = ""
    version: str = ""
    rows: int = 0
    asked_at: float = 0.0
    computed_at: float = 0.0
    inference: Inference | None = None


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)
"""The request that the running task answers; `None` outside of requests."""


def note_model(bundle: OpenedBundle, rows: int = 0) -> None:
    """Note which model the running request is for."""
    record = current_record.get()
    if record is not None:
        record.model, record.version, record.rows = bundle.name, bundle.version, rows


def note_inference(inference: Inference) -> None:
    """Note what came of the running request's rows, as soon as it is known."""
    record = current_record.get()
    if record is not None:
        record.inference, record.rows = inference, inference.rows
        record.asked_at, record.computed_at = inference.asked_at, time.monotonic()


def given_or_new_id(given: bytes) -> str:
    """Return the client's id of a request, if it is one that can stand in logs and headers, else a new one."""
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"{_ID_PREFIX}{next(_ID_COUNT):012x}"
