"""How long a client waits: from what a request says to a time of the clock."""

import math
from collections.abc import Sequence

from cpt_serving.settings import ServeSettings
from cpt_serving.web.bodies import running_body
from cpt_serving.web.errors import bad_request
from cpt_serving.web.shown import shown

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_RAW_TIMEOUT_HEADER = TIMEOUT_HEADER.lower().encode()


def request_deadline(settings: ServeSettings, *, timeout_us: float | None = None) -> float | None:
    """Return when the answer to the running request is of no use any more, in seconds of `time.monotonic`.

    Its time counts from when its head arrived.

    Args:
        settings: The deadline of requests that state none.
        timeout_us: Microseconds that its body states, as Triton's parameter `timeout`; 0 states none.

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
    """Return when the answer to a request is of no use any more, in seconds of `time.monotonic`.

    Args:
        arrived: When the request did.
        seconds: What it states, in its several ways; the shortest counts.
        settings: The deadline of requests that state none.
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
