"""How much memory decoding may take at once, over all requests of a process."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from cpt_serving.inference.threads import Work

_LOOK_AGAIN_S = 0.05


class MemoryBudget:
    """Bytes that threads take and give back, first come, first served.

    Args:
        limit: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._used = 0

    @contextmanager
    def holding(self, size: int, work: Work) -> Iterator[None]:
        """Hold so many bytes, as soon as they are free; no more than `limit`.

        Raises:
            AbandonedError: If nobody waits any more before they are.
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
