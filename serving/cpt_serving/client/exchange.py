"""When to send, when to wait and when to give up: the part that the two clients share, without any input or output."""

import datetime
import email.utils
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import httpx2

from cpt_deploy.errors import CptError, DataError
from cpt_serving.client.answers import refusal
from cpt_serving.client.calls import Call

T = TypeVar("T")

BUSY = frozenset({429, 503})
"""Statuses that say: not now."""

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""Tells the server when the answer is of no use any more, so that it drops the work."""

_SPREAD = 0.25


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a client is with a busy server.

    Args:
        attempts: How often a request is sent at most.
        first_s: Seconds before the second attempt where the server names none; doubled with each further one.
        longest_s: Most seconds before an attempt. A server that asks for more is not asked again.

    Raises:
        ValueError: If a number is out of range.
    """

    attempts: int = 5
    first_s: float = 0.1
    longest_s: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.first_s <= self.longest_s:
            raise ValueError(f"Expected 1 attempt or more and 0 <= first_s <= longest_s, but got {self}")

    def pause_s(self, attempt: int, asked_s: float | None, generator: random.Random) -> float | None:
        """Return how long to wait before trying again, or `None` to give up.

        Pauses are spread at random, so that clients that were refused together do not come back together.

        Args:
            attempt: How many attempts were made.
            asked_s: Seconds that the server asked for, if it did.
            generator: Where chance comes from.
        """
        if attempt >= self.attempts or (asked_s is not None and asked_s > self.longest_s):
            return None
        if asked_s is not None:
            return asked_s * (1 + _SPREAD * generator.random())
        longest = min(self.longest_s, self.first_s * 2.0 ** (attempt - 1))
        return longest * generator.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Send:
    """Ask for one attempt within a time; its response, or its `httpx2.HTTPError`, is wanted."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask for a pause."""

    seconds: float


Exchange = Generator[Send | Wait, httpx2.Response | httpx2.HTTPError | None, T]


def exchange(
    call: Call[T],
    url: httpx2.URL,
    *,
    timeout_s: float,
    retries: Retries,
    clock: Callable[[], float],
    generator: random.Random,
) -> Exchange[T]:
    """Bring a call to its answer; what it yields has to be done, and the response to be sent in.

    Args:
        call: The request.
        url: The server's address, for messages.
        timeout_s: Seconds for all attempts and pauses together.
        retries: How patient to be.
        clock: A monotonic time in seconds.
        generator: Spreads the pauses.

    Raises:
        DataError: If the server cannot be reached or does not answer in time.
        CptError: If it refuses or fails, by `call.kinds`, or its answer is of another form.
    """
    deadline = clock() + timeout_s
    attempt = 0
    while True:
        attempt += 1
        outcome = yield Send(max(deadline - clock(), 0.001))
        assert outcome is not None
        if isinstance(outcome, httpx2.Response):
            if outcome.status_code in call.accepted:
                return _parsed(call, url, outcome)
            failure: CptError = refusal(url, outcome, call.kinds)
            busy = call.patient and outcome.status_code in BUSY
            asked_s = retry_after_s(outcome.headers.get("Retry-After"))
        else:
            failure = _unreachable(url, outcome)
            # A connection that the server closed just when it was used again; asking twice does no harm.
            busy, asked_s = call.patient and isinstance(outcome, httpx2.RemoteProtocolError), None
        pause_s = retries.pause_s(attempt, asked_s, generator) if busy else None
        if pause_s is None or clock() + pause_s >= deadline:
            raise failure
        yield Wait(pause_s)


def retry_after_s(text: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, which holds those or a date; `None` if it holds neither."""
    text = (text or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _parsed(call: Call[T], url: httpx2.URL, response: httpx2.Response) -> T:
    try:
        return call.parse(response)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CptError(f"Expected a prediction from {url}, but got another answer: {error}") from error


def _unreachable(url: httpx2.URL, error: httpx2.HTTPError) -> DataError:
    if isinstance(error, httpx2.TimeoutException):
        return DataError(f"Expected an answer from {url}, but it did not come in time")
    return DataError(
        f"Expected a server at {url}, but got: {str(error) or type(error).__name__}",
        hint="`cpt serve BUNDLE` starts one",
    )
