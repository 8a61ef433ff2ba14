"""What the server says about itself, on stderr: lines of JSON where a program reads them, text on a terminal."""

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

from cpt_serving.settings import ServeSettings


class JsonFormatter(logging.Formatter):
    """One JSON object a line; a traceback is one of its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, option=orjson.OPT_UTC_Z, default=str).decode()


def log_config(settings: ServeSettings) -> dict[str, Any]:
    """Return the configuration of `logging` that uvicorn applies, in each of its processes."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    level = settings.log_level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "default": {"()": "cpt_serving.telemetry.server_log.JsonFormatter"}
            if as_json
            else {"()": "uvicorn.logging.DefaultFormatter", "fmt": "%(levelprefix)s %(message)s"}
        },
        "handlers": {"default": {"class": "logging.StreamHandler", "formatter": "default"}},
        "loggers": {
            "uvicorn": {"handlers": ["default"], "level": level, "propagate": False},
            "cpt_serving": {"handlers": ["default"], "level": level, "propagate": False},
        },
    }
