"""Logs that never block the server: a bounded queue, and a thread that writes as fast as the reader reads."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable

_PIECE_BYTES = 4096
_CLOSE_S = 1.0
_STDERR = 2


class QueuedLog(logging.Handler):
    """Takes records on the event loop; if writing falls far behind, records are dropped and counted.

    Args:
        descriptor: File descriptor that lines are written to; closed at the end, except stdout and stderr.
        formatter: Formats the line of a record, in the thread.
        most: Maximum waiting records.
        gather_s: Seconds for which the thread collects records to write at once.
        dropped: Called for each dropped record.
    """

    def __init__(
        self,
        descriptor: int,
        formatter: logging.Formatter,
        *,
        most: int = 65_536,
        gather_s: float = 0.0,
        dropped: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor, self._gather_s, self._dropped = descriptor, gather_s, dropped
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(most)
        self._taken = self._done = 0
        self._ending = False
        # It may block forever on a pipe that nobody reads: the process must be able to end without it.
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format the message now, as its arguments may change later, and leave the rest to the thread."""
        record.msg, record.args = record.getMessage(), None
        self.put(record)

    def put(self, record: logging.LogRecord) -> None:
        """Put a record into the queue unchanged, or drop it if the queue is full."""
        try:
            self._records.put_nowait(record)
            self._taken += 1
        except queue.Full:
            self._dropped()

    def close(self) -> None:
        """Write the waiting records, for at most a second if nobody reads."""
        if self._ending:  # the library calls this again at the end of the process
            return
        self._ending, end = True, time.monotonic() + _CLOSE_S
        try:
            self._records.put(None, timeout=_CLOSE_S)
            self._thread.join(max(0.0, end - time.monotonic()))
        except queue.Full:
            pass
        for _ in range(self._taken - self._done):
            self._dropped()
        super().close()

    def _work(self) -> None:
        lines, count = bytearray(), 0
        while (record := self._records.get()) is not None:
            lines += (self.format(record) + "\n").encode()
            count += 1
            if self._gather_s and len(lines) < _PIECE_BYTES and not self._records.empty():
                continue
            self._write(lines, count)
            lines, count = bytearray(), 0
            if self._records.empty():
                time.sleep(self._gather_s)
        self._write(lines, count)
        if self._descriptor > _STDERR:
            os.close(self._descriptor)

    def _write(self, lines: bytearray, count: int) -> None:
        try:
            while lines:
                del lines[: os.write(self._descriptor, lines)]
        except OSError:
            # The reader is gone, or the disk is full: the count shows it.
            for _ in range(count):
                self._dropped()
        self._done += count
