"""The server log on stderr: text on a terminal, else lines of JSON."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import orjson
from PIL import _imaging
from uvicorn.logging import DefaultFormatter

from cpt_serving.settings import ServeSettings
from cpt_serving.telemetry.line_queue import LineQueue

_STDERR = 2
_LOGGERS = ("uvicorn", "cpt_serving", "cpt_deploy", "opentelemetry", "asyncio")


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON; a traceback is a field of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _writable(record.getMessage()),
        }
        if record.exc_info:
            fields["exception"] = _writable(self.formatException(record.exc_info))
        return orjson.dumps(fields, option=orjson.OPT_UTC_Z, default=str).decode()


def _writable(text: str) -> str:
    """Return a text without surrogates, which names of files and of uploads can have, but UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


class QueuedHandler(logging.Handler):
    """Writes records by a thread, so that the server never waits for whoever reads them.

    Args:
        descriptor: File descriptor that lines are written to.
        formatter: Formats the line of a record.
        most: Maximum waiting records.

    Attributes:
        dropped: Called for each line that is left out.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter, most: int = 65_536) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.dropped: Callable[[], None] = lambda: None
        self._lines: LineQueue[logging.LogRecord] = LineQueue(descriptor, self._line, most=most, dropped=self._dropped)

    def emit(self, record: logging.LogRecord) -> None:
        """Format the message now, as its arguments may change later, and leave the rest to the thread."""
        record.msg, record.args = record.getMessage(), None
        # uvicorn's formatter would show this template, whose arguments are gone, instead of the message.
        record.__dict__.pop("color_message", None)
        self._lines.put(record)

    def _dropped(self) -> None:
        self.dropped()

    def _line(self, record: logging.LogRecord) -> bytes:
        return _writable(self.format(record) + "\n").encode()

    def close(self) -> None:
        """Write the waiting records, for at most a second if nobody reads."""
        self._lines.close()
        super().close()


@contextmanager
def logging_to_stderr(settings: ServeSettings) -> Iterator[QueuedHandler]:
    """Write the log of the server and of the libraries that it runs on to stderr while the context is open.

    Warnings of Python are part of it, as they would else be written by the thread that causes them, which then waits
    for whoever reads. Those of Pillow are left out: they describe a client's image, of which one can cause thousands.
    So are the messages of libtiff, which it writes itself; that the image is damaged is in the answer.

    Args:
        settings: Settings with its format and minimum severity.
    """
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    formatter = (
        JsonFormatter() if as_json else DefaultFormatter("%(levelprefix)s %(message)s", use_colors=sys.stderr.isatty())
    )
    handler = QueuedHandler(_STDERR, formatter)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.setLevel(settings.log_level.upper())
        logger.addHandler(handler)
        logger.propagate = False
    _silence_libtiff()
    others = logging.getLogger()
    others.addHandler(handler)
    try:
        with warnings.catch_warnings():
            logging.captureWarnings(True)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield handler
    finally:
        logging.captureWarnings(False)
        others.removeHandler(handler)
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
        handler.close()


def _silence_libtiff() -> None:
    # Pillow has no function for this. The symbol is looked up in the libraries that Pillow is linked with; if it was
    # built without libtiff, or in another way, there is none.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
