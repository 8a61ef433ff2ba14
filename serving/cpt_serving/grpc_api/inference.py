"""Inference over gRPC: converts messages, and otherwise answers as over HTTP."""

import time
from typing import Any

from cpt_serving.answering import InferCall, infer
from cpt_serving.grpc_api.messages import infer_message, parse_message
from cpt_serving.service import Service
from cpt_serving.web.deadlines import deadline_after

_INLINE_BYTES = 16 * 1024


async def model_infer(service: Service, message: Any) -> Any:
    """Compute a model's outputs.

    Args:
        service: The service that answers.
        message: A `ModelInferRequest`.

    Returns:
        A `ModelInferResponse`.

    Raises:
        RequestError: If it cannot be answered as asked.
        ServingError: If the queue is full, the model is not loaded, or the deadline passed.
    """
    arrived = time.monotonic()
    engine = service.find(message.model_name, message.model_version or None)

    def deadline(timeout_us: int) -> float | None:
        return deadline_after(arrived, [timeout_us / 1e6] if timeout_us else [], service.settings)

    # Raw bytes are used directly; all else in the message is read one by one.
    heavy = message.ByteSize() - sum(map(len, message.raw_input_contents)) > _INLINE_BYTES
    return await infer(engine, InferCall(lambda: parse_message(message), heavy, deadline, infer_message))
