"""The W3C trace context of a request: which trace it belongs to, and which span of it is ours.

See https://www.w3.org/TR/trace-context/, section 3.2.
"""

import random
import re
from dataclasses import dataclass

TRACEPARENT = b"traceparent"

_TRACEPARENT = re.compile(
    rb"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of a trace.

    Args:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        sampled: Whether the trace is recorded.
    """

    trace_id: str
    span_id: str
    sampled: bool

    def render(self) -> bytes:
        """Return the value of a `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}".encode()


def parse_traceparent(value: bytes) -> TraceContext | None:
    """Return the caller's span, or `None` if the header is not valid, in which case it counts as missing."""
    found = _TRACEPARENT.fullmatch(value.strip(b" \t"))
    if found is None or found["version"] == b"ff" or (found["version"] == b"00" and found["more"] is not None):
        return None
    if not found["trace"].strip(b"0") or not found["parent"].strip(b"0"):
        return None
    return TraceContext(found["trace"].decode(), found["parent"].decode(), bool(int(found["flags"], 16) & _SAMPLED))


def continued(values: list[bytes]) -> TraceContext | None:
    """Return a new span under the caller's.

    Args:
        values: The `traceparent` headers of a request; more than one is as good as none.
    """
    caller = parse_traceparent(values[0]) if len(values) == 1 else None
    if caller is None:
        return None
    return TraceContext(caller.trace_id, f"{random.getrandbits(64) or 1:016x}", caller.sampled)
