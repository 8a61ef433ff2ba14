"""Compressed bodies of requests: gzip, and deflate in zlib's format as HTTP means it."""

import gzip
import io
import zlib

from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.shown import shown

CODINGS = ("gzip", "deflate")

_MOST_CODINGS = 3
_SAME = {"x-gzip": "gzip"}
_MEMBER = b"\x1f\x8b\x08"
_MOST_MEMBERS = 4096  # Each costs as much time as some kilobytes, however few it has.


def content_codings(header: str) -> list[str]:
    """Return the codings of a `Content-Encoding`, the one that was applied last first.

    Raises:
        RequestError: 415 for one that is not known, or for very many.
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
    """Return the content of a compressed body. Takes long for large ones: call it in a thread.

    Args:
        body: The body as it came.
        codings: What `content_codings` returned.
        limit: Largest content, in bytes.

    Raises:
        RequestError: 400 for a damaged body, 413 for a content larger than `limit`; no more than that is ever
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
    """Return the content of all members; one byte more than the limit, if there is more."""
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
