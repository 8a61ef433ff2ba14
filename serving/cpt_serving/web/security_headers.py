"""What browsers are told about every answer: take it for what it says it is, run nothing in it, frame it nowhere."""

from collections.abc import Iterable

_POLICY = b"content-security-policy"

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (_POLICY, b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of answers without a policy of their own; nothing of them is meant to be shown as a page."""


def missing_security_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Return what an answer lacks; a page that states its own policy keeps it."""
    for name, _ in headers:
        if name == _POLICY:
            present = {name for name, _ in headers}
            return tuple(header for header in SECURITY_HEADERS if header[0] not in present)
    return SECURITY_HEADERS
