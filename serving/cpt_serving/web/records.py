"""What is known of the request under way: collected where it becomes known, for the log, the metrics and the trace."""

import time
from contextvars import ContextVar
from dataclasses import dataclass

from cpt_deploy.bundle.opened import OpenedBundle
from cpt_serving.inference.batching import Inference
from cpt_serving.telemetry.trace_context import TraceContext


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Args:
        request_id: Its id, the client's or a new one.
        trace: The server's span of the trace that it belongs to, if it belongs to one.
        key: Name of the API key that it came with.
        model: Name of the model that it asked for, once it asked.
        version: Version of the model.
        rows: How many rows it asked for.
        asked_at: When the rows were ready for the model, in seconds of `time.monotonic`.
        computed_at: When the logits were there.
        inference: What came of it.
    """

    request_id: str
    trace: TraceContext | None = None
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
