"""Logs that hold nobody up: a queue with a bound, and a thread that writes as fast as there is somebody who reads."""

import logging
import os
import queue
import select
import time
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener

_PIECE_BYTES = 4096
"""A pipe that takes anything takes this much without waiting."""
_LOOK_S = 0.1
_CLOSE_S = 1.0


class QueuedLog(QueueHandler):
    """Takes records on the event loop; when writing falls far behind, they are dropped and counted.

    Args:
        descriptor: The file that lines are written to.
        formatter: Makes the line of a record.
        most: Records that may wait.
        gather_s: How long the thread waits for more to write at once.
        dropped: Called for each record that is dropped.
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
        records: queue.Queue[logging.LogRecord] = queue.Queue(most)
        super().__init__(records)
        self._dropped = dropped
        self._writer = _Writer(descriptor, dropped)
        self._writer.setFormatter(formatter)
        self._listener = _Listener(records, self._writer, gather_s)
        self._listener.start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record with its message made; the rest is the thread's work."""
        record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Leave the record to the thread, or drop it."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped()

    def close(self) -> None:
        """Write what is waiting, for a second at most if nobody reads."""
        if not self._writer.closing:
            self._writer.close()
            self._listener.stop()
        super().close()


class _Writer(logging.Handler):
    """Writes lines to a descriptor; waits for a reader as long as it is not closed."""

    def __init__(self, descriptor: int, dropped: Callable[[], None]) -> None:
        super().__init__()
        self._dropped = dropped
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._waiting = bytearray()
        self._until = 0.0
        self.closing = False

    def createLock(self) -> None:  # noqa: N802  the library's name
        """Have none: one thread comes here, and at the end of the process nobody may wait for it."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self._waiting += (self.format(record) + "\n").encode()
        if len(self._waiting) >= _PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the lines that were taken."""
        lines, self._waiting = memoryview(bytes(self._waiting)), bytearray()
        try:
            while lines and self._writable():
                lines = lines[os.write(self._descriptor, lines[:_PIECE_BYTES]) :]
        except OSError:
            # Who read is gone, or the disk is full: the count is what tells of it.
            pass
        for _ in range(bytes(lines).count(b"\n")):
            self._dropped()

    def close(self) -> None:
        """Wait for a reader a moment longer at most."""
        self._until, self.closing = time.monotonic() + _CLOSE_S, True
        super().close()

    def _writable(self) -> bool:
        while not self._poll.poll(1000 * _LOOK_S):
            if self.closing and time.monotonic() > self._until:
                return False
        return True


class _Listener(QueueListener):
    """The library's thread, which writes many lines at once where there are many."""

    def __init__(self, records: "queue.Queue[logging.LogRecord]", writer: _Writer, gather_s: float) -> None:
        super().__init__(records, writer)
        self._records = records
        self._writer = writer
        self._gather_s = gather_s

    def dequeue(self, block: bool) -> logging.LogRecord:
        """Return the next record."""
        if not self._records.empty():
            return self._records.get(block)
        self._writer.flush()
        record = self._records.get(block)
        if not self._writer.closing:
            time.sleep(self._gather_s)
        return record

    def enqueue_sentinel(self) -> None:
        """End the thread behind the last record, also where the queue is full."""
        self._records.put(None)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Wait until all is written, or given up."""
        super().stop()
        self._writer.flush()
