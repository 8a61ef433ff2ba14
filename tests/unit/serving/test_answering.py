import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from cpt_serving.answering import rendered
from cpt_serving.inference.errors import DeadlineExceededError
from cpt_serving.inference.threads import Threads


def test_rendering_large_outputs_waits_for_a_thread_no_longer_than_the_deadline():
    decoders, busy, done = Threads(1, "decode"), threading.Event(), []

    async def render():
        engine, outputs = SimpleNamespace(decoders=decoders), {"logits": np.zeros(100_000)}
        decoders.offer(busy.wait)
        with pytest.raises(DeadlineExceededError):
            await rendered(engine, outputs, lambda: done.append("late"), time.monotonic() + 0.01)
        busy.set()
        return await rendered(engine, outputs, lambda: "in time", time.monotonic() + 600)

    try:
        assert asyncio.run(render()) == "in time"
    finally:
        decoders.close()
    assert not done
