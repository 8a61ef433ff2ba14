"""Text from a server, token by token."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2

from cpt_deploy.errors import CptError, DataError, UsageError
from cpt_serving.client.addresses import is_loopback, normalize_address
from cpt_serving.client.answers import refusal

GENERATE_ERRORS: Mapping[int, type[CptError]] = {400: UsageError, 404: UsageError, 413: UsageError}


def stream_text(
    url: str,
    body: Mapping[str, Any],
    *,
    model: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    transport: httpx2.BaseTransport | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the events of `/generate`: each has what of the text is new, and the last one why it ended.

    Who stops listening ends the generation.

    Args:
        url: Address of the server; `http://` may be left out.
        body: What `/generate` takes, without `stream`.
        model: Name of the model, where several are served.
        headers: Headers of the request, such as an API key.
        timeout_s: Seconds to wait for each token.
        transport: Replaces the network, for tests.

    Raises:
        UsageError: If the address is none, or the server does not take the request.
        DataError: If the server cannot be reached, or breaks off.
        CptError: If it refuses or fails otherwise.
    """
    address = normalize_address(url)
    query = {} if model is None else {"model": model}
    with httpx2.Client(
        base_url=address, headers=headers, trust_env=not is_loopback(address.host), transport=transport,
        timeout=timeout_s,
    ) as client:  # fmt: skip
        try:
            with client.stream("POST", "generate", json={**body, "stream": True}, params=query) as response:
                if response.status_code != 200:
                    response.read()
                    raise refusal(address, response, GENERATE_ERRORS)
                yield from _events(response)
        except httpx2.HTTPError as error:
            raise DataError(f"Expected an answer from {address}, but got: {error or type(error).__name__}") from error


def _events(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    finished = False
    for line in response.iter_lines():
        if not line.startswith("data: "):
            continue
        try:
            event = json.loads(line.removeprefix("data: "))
        except ValueError as error:
            raise DataError(f"Expected events of JSON, but got {line!r:.100}") from error
        if "error" in event:
            raise DataError(f"The server stopped: {event['error']}")
        finished = "finish_reason" in event
        yield event
    if not finished:
        raise DataError("Expected the end of the text, but the server broke off")
