"""Compressed bodies of requests and answers: gzip, and deflate in zlib's format as HTTP means it."""

import zlib
from collections.abc import Mapping

from cpt_serving.web.errors import RequestError, bad_request

CODINGS: Mapping[str, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Content codings and zlib's `wbits` for each."""

_WORTHWHILE = 2048
"""Compressing shorter answers takes longer than a packet more; clients ask for it without thinking of that."""
_FAST = 1


def decompress(body: bytes, coding: str, *, limit: int) -> bytes:
    """Return the content of a compressed body. Takes long for large ones: call it in a thread.

    Args:
        body: The body as it came.
        coding: Its `Content-Encoding`.
        limit: Largest content, in bytes.

    Raises:
        RequestError: 415 for another coding, 400 for a damaged body, 413 for a content larger than `limit`; no more
            than that is ever decompressed.
    """
    wbits = CODINGS.get(coding.strip().lower())
    if wbits is None:
        raise RequestError(
            415,
            f"Expected a Content-Encoding of {' or '.join(CODINGS)}, but got {coding!r:.100}",
            {"Accept-Encoding": ", ".join(CODINGS)},
        )
    stream = zlib.decompressobj(wbits)
    try:
        # One byte more than allowed tells a content of exactly the limit from a longer one.
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise bad_request(f"Expected a body compressed with {coding}, but got: {error}") from error
    if len(content) > limit:
        raise RequestError(413, f"Expected a body of at most {limit} bytes decompressed, but got more")
    if not stream.eof:
        raise bad_request(f"Expected a body compressed with {coding}, but it ends too early")
    if stream.unused_data:
        raise bad_request(f"Expected a body compressed with {coding}, but bytes follow its end")
    return content


def compress(body: bytes, coding: str) -> bytes:
    """Return a body in one of `CODINGS`."""
    stream = zlib.compressobj(_FAST, zlib.DEFLATED, CODINGS[coding])
    return stream.compress(body) + stream.flush()


def preferred_coding(body: bytes, accepted: str) -> str | None:
    """Return how an answer should be compressed, or `None` if it should not be.

    Args:
        body: The answer.
        accepted: The request's `Accept-Encoding`; of what the client likes equally, gzip comes first.
    """
    if len(body) < _WORTHWHILE or not accepted:
        return None
    weights: dict[str, float] = {}
    for entry in accepted.lower().split(","):
        name, _, parameters = entry.partition(";")
        weights[name.strip()] = _weight(parameters)
    best = max(CODINGS, key=lambda coding: weights.get(coding, 0.0))
    weight = weights.get(best, 0.0)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
