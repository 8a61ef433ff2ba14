"""Decompression of request bodies: gzip, and deflate, which in HTTP is zlib's format."""

import gzip
import io
import zlib

from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.shown import shown

CODINGS = ("gzip", "deflate")

_MOST_CODINGS = 3
_SAME = {"x-gzip": "gzip"}
_MEMBER = b"\x1f\x8b\x08"
_MOST_MEMBERS = 4096  # Even an empty member costs as much time as some kilobytes.


def content_codings(header: str) -> list[str]:
    """Return the codings of a `Content-Encoding` in the order of decoding, the last applied one first.

    Raises:
        RequestError: 415 for an unknown coding, or for too many.
    """
    names = [_SAME.get(name, name) for entry in header.lower().split(",") if (name := entry.strip())]
    codings = [name for name in reversed(names) if name != "identity"]
    if len(codings) > _MOST_CODINGS or not set(codings) <= set(CODINGS):
        raise RequestError(
            415,
            f"Expected a Content-Encoding of {' or '.join(CODINGS)}, but got {shown(header)}",
            {"Accept-Encoding": ", ".join(CODINGS)},
        )
    return codings


def decompress(body: bytes, codings: list[str], *, limit: int) -> bytes:
    """Return the content of a compressed body. Slow for large bodies: call it in a thread.

    Args:
        body: The body as received.
        codings: The result of `content_codings`.
        limit: Maximum size of the content in bytes.

    Raises:
        RequestError: 400 for a damaged body, 413 for content larger than `limit`, of which no more than `limit` is
            decompressed.
    """
    for coding in codings:
        try:
            body = _gunzip(body, limit) if coding == "gzip" else _inflate(body, limit)
        except (zlib.error, OSError, EOFError) as error:
            raise bad_request(f"Expected a body compressed with {coding}, but got: {error}") from error
        if len(body) > limit:
            raise RequestError(413, f"Expected a body of at most {limit} bytes decompressed, but got more")
    return body


def _gunzip(body: bytes, limit: int) -> bytes:
    """Return the content of all members, truncated to one byte more than the limit."""
    if body.count(_MEMBER) > _MOST_MEMBERS:
        raise EOFError(f"it has more than {_MOST_MEMBERS} members")
    with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
        return file.read(limit + 1)


def _inflate(body: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(body, limit + 1)
    if len(content) <= limit and (not stream.eof or stream.unused_data):
        raise EOFError("it ends too early, or bytes follow its end")
    return content
