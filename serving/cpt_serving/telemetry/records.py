"""The record of the current request, filled in by all layers and read by the access log, the metrics and the trace."""

import itertools
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry.trace import SpanContext

from cpt_deploy.bundle import Bundle
from cpt_serving.inference.batching import Inference

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# Random bytes per process and a counter are as unique as random bytes per request, and cheaper.
_ID_PREFIX = uuid.uuid4().hex[:20]
_ID_COUNT = itertools.count()


@dataclass(slots=True)
class RequestRecord:
    """The facts of one request.

    Args:
        request_id: Id of the request, the client's or a new one.
        trace: The server's span, if the request is traced.
        key: Name of the API key that was sent.
        model: Name of the requested model, once known.
        version: Version of the model.
        rows: Number of rows to compute.
        asked_at: Time at which the rows were ready for the model, in seconds of `time.monotonic`.
        computed_at: Time at which the outputs were ready.
        inference: Timings of the inference, once computed; without outputs.
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
"""The request that the current task answers; `None` outside of requests."""


def note_model(bundle: Bundle, rows: int = 0) -> None:
    """Record which model the current request is for."""
    record = current_record.get()
    if record is not None:
        record.model, record.version, record.rows = bundle.name, bundle.version, rows


def note_inference(inference: Inference) -> None:
    """Record the inference of the current request."""
    record = current_record.get()
    if record is not None:
        # Without the outputs, which would be in memory until the answer has been sent.
        record.inference, record.rows = inference._replace(outputs={}), inference.rows
        record.asked_at, record.computed_at = inference.asked_at, time.monotonic()


def given_or_new_id(given: bytes) -> str:
    """Return the client's id of a request if it is safe in logs and headers, else a new id."""
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"{_ID_PREFIX}{next(_ID_COUNT):012x}"
