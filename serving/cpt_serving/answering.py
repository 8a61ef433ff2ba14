"""Inference by the Open Inference Protocol, for every model and every transport."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from cpt_deploy.bundle import Bundle
from cpt_serving.adapters import Adapter
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.model import Tensors, bytes_of
from cpt_serving.inference.threads import Work
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.schemas import InferRequest
from cpt_serving.telemetry.records import note_inference, note_model

T = TypeVar("T")

_INLINE_BYTES = 64 * 1024
"""Larger outputs are rendered in a thread."""


class InferCall(NamedTuple, Generic[T]):
    """A request for inference as received from a transport.

    Args:
        parse: Parses the request.
        heavy: Whether parsing or decoding may take longer than handing the work to a thread.
        deadline: Returns the deadline of the answer from the timeout in microseconds that the request states; 0 means
            that it states none.
        render: Writes the answer from the bundle, the request's id and the requested outputs.
    """

    parse: Callable[[], InferRequest]
    heavy: bool
    deadline: Callable[[int], float | None]
    render: Callable[[Bundle, str | None, Sequence[OutputTensor]], T]


async def infer(engine: Engine[Adapter], call: InferCall[T]) -> T:
    """Answer a request for inference.

    Raises:
        RequestError: If it cannot be answered as asked.
        ServingError: If the queue is full, the model is not loaded, or the deadline passed.
    """
    adapter = engine.model
    note_model(engine.bundle)
    with engine.admit(call.deadline(0)) as admission:
        request = await admission.prepare(lambda _: call.parse()) if call.heavy else call.parse()
        if request.timeout_us:
            admission.deadline = call.deadline(request.timeout_us)
        admission.claim(adapter.declared_rows(request))
        if not call.heavy and adapter.is_light(request):
            inputs = adapter.decode(request, Work())
        else:
            inputs = await admission.prepare(lambda work: adapter.decode(request, work))
        inference = await admission.compute(inputs)
    note_inference(inference)
    outputs = inference.outputs
    return await rendered(
        engine,
        outputs,
        lambda: call.render(engine.bundle, request.id, adapter.encode(request, outputs)),
        admission.deadline,
    )


async def rendered(engine: Engine[Adapter], outputs: Tensors, render: Callable[[], T], deadline: float | None) -> T:
    """Return the result of `render`, a function that writes outputs; it runs in a thread if they are large.

    Raises:
        DeadlineExceededError: If the deadline passes before, as when all threads are busy.
    """
    if bytes_of(outputs) > _INLINE_BYTES:
        return await engine.decoders.run(lambda _: render(), deadline)
    return render()
