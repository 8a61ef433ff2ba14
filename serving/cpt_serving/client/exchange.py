"""One request of the client with its retries, pauses and timeout, and the errors for refusals."""

import datetime
import email.utils
import ipaddress
import random
import re
from asyncio import sleep
from collections.abc import Mapping
from time import monotonic
from typing import Any

import httpx2

from cpt_deploy.errors import CptError, DataError, UsageError

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""Header that tells the server the remaining time, after which it drops the work."""

_BUSY = frozenset({429, 503})
_CONNECT_WITHIN_S = 10.0


_FIRST_PAUSE_S = 0.1
"""Seconds before the second attempt if the server states none; doubled before each further attempt."""


async def ask(
    client: httpx2.AsyncClient,
    path: str,
    body: Mapping[str, Any],
    *,
    timeout_s: float,
    attempts: int,
    kinds: Mapping[int, type[CptError]],
    stream: bool = False,
) -> httpx2.Response:
    """Send a POST request and return its successful answer, with retries while the server is busy.

    Args:
        client: HTTP client with the connections.
        path: Path of the request.
        body: Arguments of `httpx2` for body and query.
        timeout_s: Seconds for all attempts and pauses together, sent to the server as its deadline; for a stream, which
            sends none, the time to the head and then to each line.
        attempts: Maximum attempts.
        kinds: Errors by status, for statuses with an error class of their own.
        stream: Whether to return as soon as the head of the answer has arrived.

    Raises:
        DataError: If the server cannot be reached or does not answer in time.
        CptError: If it refuses or fails; its class by `kinds`.
    """
    url, deadline, attempt = client.base_url, monotonic() + timeout_s, 0
    while True:
        attempt, left_s, asked_s = attempt + 1, max(deadline - monotonic(), 0.001), None
        headers = {} if stream else {TIMEOUT_HEADER: f"{left_s * 1e3:.0f}"}
        timeout = httpx2.Timeout(left_s, connect=min(left_s, _CONNECT_WITHIN_S))
        request = client.build_request("POST", path, headers=headers, timeout=timeout, **body)
        try:
            response = await client.send(request, stream=stream)
            if response.status_code == 200:
                return response
            await response.aread()
        except httpx2.HTTPError as error:
            failure: CptError = unreachable(url, error)
            # The server closed the idle connection just as it was used again; sending a request twice is harmless.
            busy = isinstance(error, httpx2.RemoteProtocolError)
        else:
            failure, busy = _refusal(url, response, kinds), response.status_code in _BUSY
            asked_s = retry_after_s(response.headers.get("Retry-After"))
        # Random, so that clients refused at the same time do not retry at the same time.
        spread = random.uniform(1.0, 1.25)
        pause_s = spread * (_FIRST_PAUSE_S * 2 ** (attempt - 1) if asked_s is None else asked_s)
        if not busy or attempt >= attempts or monotonic() + pause_s >= deadline:
            raise failure
        await sleep(pause_s)


def address_of(url: str) -> httpx2.URL:
    """Return the address of a server; `http://` may be left out, and `/predict` may be at its end.

    Raises:
        UsageError: If it is invalid.
    """
    try:
        parsed = httpx2.URL(url if "://" in url else f"http://{url}")
    except httpx2.InvalidURL as error:
        raise UsageError(f"Expected the address of a server, but got {_without_password(url)!r}: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UsageError(f"Expected an address like http://127.0.0.1:8000, but got {_without_password(url)!r}")
    path = parsed.path.rstrip("/").removesuffix("/predict")
    return parsed.copy_with(path=path or "/", query=None, fragment=None)


def shown_address(url: httpx2.URL) -> str:
    """Return an address for messages, without the user and the password that it may have."""
    return str(url.copy_with(userinfo=b""))


def _without_password(url: str) -> str:
    return re.sub(r"(?<=://)[^/]*@", "", url) if "://" in url else url.rpartition("@")[2]


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, which a proxy of the environment could not reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after_s(text: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, which holds seconds or a date; `None` if it holds neither."""
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


def unreachable(url: httpx2.URL, error: httpx2.HTTPError) -> DataError:
    """Return the error for a failure of the network."""
    if isinstance(error, httpx2.TimeoutException):
        return DataError(f"Expected an answer from {shown_address(url)}, but it did not come in time")
    said = str(error) or type(error).__name__
    where = shown_address(url)
    return DataError(f"Expected a server at {where}, but got: {said}", hint="`cpt serve BUNDLE` starts one")


def _refusal(url: httpx2.URL, response: httpx2.Response, kinds: Mapping[int, type[CptError]]) -> CptError:
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        said = f"Expected a prediction from {shown_address(url)}, but got status {response.status_code}"
        return CptError(said, hint="is it a server of `cpt serve`?")
    known: dict[int, type[CptError]] = {404: UsageError, 504: DataError, **kinds}
    return known.get(response.status_code, CptError)(f"{shown_address(url)} answered {response.status_code}: {message}")
