"""Running a load test: one number of clients after another, each warmed up and then counted."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from cpt_serving.loadtest.connections import Client
from cpt_serving.loadtest.requests import PreparedRequest
from cpt_serving.loadtest.results import LevelResult, Recorder

Progress = Callable[[int, Recorder, float], None]
"""Called a few times a second with the number of clients, what was counted, and the share of the level that is done."""

_TICK_S = 0.1


async def run_levels(
    request: PreparedRequest,
    levels: Sequence[int],
    *,
    duration_s: float | None,
    requests: int | None = None,
    warm_up_s: float = 1.0,
    timeout_s: float = 30.0,
    stop: asyncio.Event | None = None,
    on_progress: Progress | None = None,
) -> list[LevelResult]:
    """Measure a server at several numbers of clients, one after the other.

    Args:
        request: What each client sends, again as soon as its answer is there.
        levels: The numbers of clients.
        duration_s: Seconds to count for; `None` counts until `requests` are done.
        requests: Requests to count at most.
        warm_up_s: Seconds before counting begins.
        timeout_s: Seconds after which an answer counts as missing.
        stop: Ends the measurement early when it is set; what was counted until then is returned.
        on_progress: Hears how far it is.

    Returns:
        A result for each level that was begun.
    """
    stop = stop or asyncio.Event()
    results = []
    for clients in levels:
        if stop.is_set():
            break
        recorder = Recorder(limit=requests)
        group = [Client(request, recorder, timeout_s) for _ in range(clients)]
        tasks = [asyncio.create_task(client.run()) for client in group]
        try:
            await _watch(group, recorder, warm_up_s, stop, lambda _: None)
            recorder.counting, begun = True, time.perf_counter()
            report = _reporter(on_progress, clients, recorder, duration_s)
            await _watch(group, recorder, duration_s, stop, report)
            elapsed = time.perf_counter() - begun
        finally:
            recorder.stopped = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if recorder.finished_at is not None:
            elapsed = recorder.finished_at - begun
        results.append(
            LevelResult(
                clients=clients,
                rows=request.rows,
                duration_s=elapsed,
                latencies_s=recorder.latencies_s,
                errors=dict(recorder.errors),
                messages=dict(recorder.messages),
                complete=not stop.is_set(),
            )
        )
    return results


async def _watch(
    group: Sequence[Client],
    recorder: Recorder,
    duration_s: float | None,
    stop: asyncio.Event,
    report: Callable[[float], None],
) -> None:
    """Wait until the time is over, the requests are done or somebody stops it."""
    begun = time.perf_counter()
    while not recorder.stopped and not stop.is_set():
        now = time.perf_counter()
        left = _TICK_S if duration_s is None else duration_s - (now - begun)
        if left <= 0:
            return
        for client in group:
            client.check(now)
        report(now - begun)
        await asyncio.sleep(min(left, _TICK_S))


def _reporter(
    on_progress: Progress | None, clients: int, recorder: Recorder, duration_s: float | None
) -> Callable[[float], None]:
    def report(seconds: float) -> None:
        if on_progress is None:
            return
        shares = [seconds / duration_s] if duration_s else []
        if recorder.limit:
            shares.append(recorder.finished / recorder.limit)
        on_progress(clients, recorder, min(1.0, max(shares, default=0.0)))

    return report


@contextlib.contextmanager
def fast_loop() -> Iterator[asyncio.Runner]:
    """A runner of asyncio, on uvloop where it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        from uvloop import new_event_loop as factory
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner
