"""Deadlines of requests, from the timeouts that clients state."""

import math
from collections.abc import Sequence

from cpt_serving.settings import ServeSettings
from cpt_serving.web.bodies import running_body
from cpt_serving.web.errors import bad_request
from cpt_serving.web.shown import shown

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_RAW_TIMEOUT_HEADER = TIMEOUT_HEADER.lower().encode()


def request_deadline(settings: ServeSettings, *, timeout_us: float | None = None) -> float | None:
    """Return the deadline of the current request in seconds of `time.monotonic`, or `None`.

    Timeouts count from the arrival of the request's head.

    Args:
        settings: Settings with the default deadline.
        timeout_us: Microseconds stated in the body, as Triton's parameter `timeout`; 0 means none.

    Raises:
        RequestError: 400 if the header `X-Request-Timeout-Ms` is no positive number.
    """
    body = running_body()
    given = body.headers.get(_RAW_TIMEOUT_HEADER)
    seconds = [timeout_us / 1e6] if timeout_us else []
    if given is not None:
        seconds.append(_milliseconds(given.decode("latin-1")) / 1e3)
    return deadline_after(body.arrived, seconds, settings)


def deadline_after(arrived: float, seconds: Sequence[float], settings: ServeSettings) -> float | None:
    """Return the deadline of a request in seconds of `time.monotonic`, or `None`.

    Args:
        arrived: Time of arrival.
        seconds: Timeouts that the request states; the shortest counts.
        settings: Settings with the default deadline.
    """
    stated = list(seconds) or ([] if settings.timeout_s is None else [settings.timeout_s])
    return arrived + min(stated) if stated else None


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise bad_request(f"Expected {TIMEOUT_HEADER} to be a positive number of milliseconds, but got {shown(text)}")
    return value
