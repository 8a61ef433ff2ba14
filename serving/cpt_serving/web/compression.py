"""Decompression of request bodies: gzip, and deflate, which in HTTP is zlib's format."""

import zlib

from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.shown import shown

_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_PIECE_BYTES = 16 * 1024
_MOST_MEMBERS = 4096  # Even an empty member costs as much time as some kilobytes.


def content_coding(header: str) -> str | None:
    """Return the coding of a `Content-Encoding`, or `None` if there is none.

    Only one is taken: one shrinks a body to a thousandth at best, a second to a millionth.

    Raises:
        RequestError: 415 for an unknown coding, or for several.
    """
    codings = [name for entry in header.lower().split(",") if (name := entry.strip()) not in ("", "identity")]
    if len(codings) > 1 or not set(codings) <= set(_WINDOWS):
        expected = f"Expected a Content-Encoding of gzip or deflate, but got {shown(header)}"
        raise RequestError(415, expected, {"Accept-Encoding": "gzip, deflate"})
    return codings[0] if codings else None


def decompress(body: bytes, coding: str, *, limit: int) -> bytes:
    """Return the content of a compressed body. Slow for large bodies: call it in a thread.

    Args:
        body: The body as received.
        coding: The result of `content_coding`.
        limit: Maximum size of the content in bytes.

    Raises:
        RequestError: 400 for a damaged body, 413 for content larger than `limit`, of which no more than `limit` is
            decompressed.
    """
    try:
        content = _inflate(body, coding, limit)
    except (zlib.error, EOFError) as error:
        raise bad_request(f"Expected a body compressed with {coding}, but got: {error}") from error
    if len(content) > limit:
        raise RequestError(413, f"Expected a body of at most {limit} bytes decompressed, but got more")
    return content


def _inflate(body: bytes, coding: str, limit: int) -> bytes:
    """Return the content of all members of a stream, truncated to one byte more than the limit."""
    content, rest = bytearray(), memoryview(body)
    members = _MOST_MEMBERS if coding != "deflate" else 1
    for _ in range(members):
        stream = zlib.decompressobj(_WINDOWS[coding])
        while not stream.eof:
            if not rest:
                raise EOFError("it ends too early")
            piece = rest[:_PIECE_BYTES]
            content += stream.decompress(piece, limit + 1 - len(content))
            if len(content) > limit:
                return bytes(content)
            rest = rest[len(piece) - len(stream.unused_data) :]
        padding = coding != "deflate" and bytes(rest[:1]) == b"\0" and not bytes(rest).strip(b"\0")  # as tapes have it
        if not rest or padding:
            return bytes(content)
    raise EOFError(f"more follows the last of at most {members} members")
