"""Lines that are written without ever blocking the server: a bounded queue, and a thread that writes them."""

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from queue import SimpleQueue
from typing import Generic, TypeVar

_PIECE_BYTES = 4096
_CLOSE_S = 1.0
_STDERR = 2

T = TypeVar("T")


class LineQueue(Generic[T]):
    """Takes entries on the event loop; if writing falls far behind, entries are dropped and counted.

    Args:
        descriptor: File descriptor that lines are written to; closed at the end, except stdout and stderr.
        line: Returns the line of an entry, with its end; called in the thread.
        most: Maximum waiting entries.
        gather_s: Seconds for which the thread collects entries to write at once.
        dropped: Called for each dropped entry.
    """

    def __init__(
        self,
        descriptor: int,
        line: Callable[[T], bytes],
        *,
        most: int = 65_536,
        gather_s: float = 0.0,
        dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self._descriptor, self._line, self._most = descriptor, line, most
        self._gather_s, self._dropped = gather_s, dropped
        self._entries: SimpleQueue[T | None] = SimpleQueue()
        self._taken = self._done = 0
        self._ending = self._torn = False
        # It may block forever on a pipe that nobody reads: the process must be able to end without it.
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def put(self, entry: T) -> None:
        """Put an entry into the queue, or drop it if the queue is full."""
        if self._entries.qsize() < self._most:
            self._entries.put(entry)
            self._taken += 1
        else:
            self._dropped()

    def close(self) -> None:
        """Write the waiting entries, for at most a second if nobody reads."""
        if self._ending:
            return
        self._ending = True
        self._entries.put(None)
        self._thread.join(_CLOSE_S)
        for _ in range(self._taken - self._done):
            self._dropped()

    def _work(self) -> None:
        lines: list[bytes] = []
        while (entry := self._entries.get()) is not None:
            try:
                lines.append(self._line(entry))
            except Exception:
                # A line that cannot be written must not end the thread that writes all others.
                self._dropped()
                self._done += 1
            if self._gather_s and sum(map(len, lines)) < _PIECE_BYTES and not self._entries.empty():
                continue
            self._write(lines)
            lines = []
            if self._entries.empty():
                time.sleep(self._gather_s)
        self._write(lines)
        if self._descriptor > _STDERR:
            os.close(self._descriptor)

    def _write(self, lines: Sequence[bytes]) -> None:
        begin = b"\n" * self._torn
        data, written = memoryview(begin + b"".join(lines)), 0
        ends = list(accumulate(map(len, lines), initial=len(begin)))
        try:
            while written < len(data):
                written += self._written(data[written:])
        except OSError:
            # The reader is gone, or the disk is full: the count shows it.
            for _ in range(sum(end > written for end in ends[1:])):
                self._dropped()
        if written:
            self._torn = written not in ends
        self._done += len(lines)

    def _written(self, data: memoryview) -> int:
        """Write what fits at once, and return the number of bytes; wait for the reader if nothing fits."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # whoever opened the descriptor made it non-blocking
            waiting = select.poll()
            waiting.register(self._descriptor, select.POLLOUT)
            waiting.poll()
            return 0
