"""The memory budget of decoding, shared by all requests of a process."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from cpt_serving.inference.threads import Work

_LOOK_AGAIN_S = 0.05


class MemoryBudget:
    """A budget of bytes that threads take and release, first come, first served.

    Args:
        limit: Size of the budget in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._used = 0

    @contextmanager
    def holding(self, size: int, work: Work) -> Iterator[None]:
        """Wait until a number of bytes, at most `limit`, is free, and hold them while the context is open.

        Raises:
            AbandonedError: If nobody waits for the work any more before the bytes are free.
        """
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while self._line[0] is not place or self._used + size > self.limit:
                    self._changed.wait(_LOOK_AGAIN_S)
                    work.check()
                self._used += size
            finally:
                self._line.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
