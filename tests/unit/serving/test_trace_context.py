"""traceparent, against the text of the W3C recommendation and OpenTelemetry's reader of it."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cpt_serving.telemetry.trace_context import TraceContext, continued, parse_traceparent

# The examples of section 3.2.2 of the recommendation.
SAMPLED = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOT_SAMPLED = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


def test_the_examples_of_the_recommendation():
    expected = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
    assert parse_traceparent(SAMPLED) == expected
    assert expected.render() == SAMPLED
    assert parse_traceparent(NOT_SAMPLED).sampled is False
    assert parse_traceparent(NOT_SAMPLED).render() == NOT_SAMPLED


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"ff" + SAMPLED[2:],
        SAMPLED.upper(),
        SAMPLED + b"-more",
        SAMPLED[:-1],
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        SAMPLED.replace(b"-", b"_"),
        SAMPLED + b"\n",
        b"\xff" * 55,
    ],
)
def test_what_the_recommendation_calls_invalid_counts_as_missing(value):
    assert parse_traceparent(value) is None
    assert continued([value]) is None


def test_a_later_version_is_read_as_far_as_it_is_known():
    assert parse_traceparent(b"cc" + SAMPLED[2:] + b"-what-comes") == parse_traceparent(SAMPLED)
    assert parse_traceparent(b"cc" + SAMPLED[2:] + b".what-comes") is None


def test_a_continued_trace_has_the_callers_id_and_a_span_of_its_own():
    spans = [continued([SAMPLED]) for _ in range(100)]
    assert {(span.trace_id, span.sampled) for span in spans} == {("4bf92f3577b34da6a3ce929d0e0e4736", True)}
    assert len({span.span_id for span in spans} | {"00f067aa0ba902b7"}) == 101
    assert all(parse_traceparent(span.render()) == span for span in spans)
    assert continued([SAMPLED, SAMPLED]) is None


@given(
    st.one_of(
        st.from_regex(
            re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[a-z]*)?", re.ASCII), fullmatch=True
        ),
        st.text("0af-", max_size=60),
        st.builds(lambda trace, span: f"00-{trace}-{span}-01", st.text("01", max_size=33), st.text("01", max_size=17)),
    )
)
@example("00-" + "0" * 31 + "1-" + "0" * 15 + "1-03")
def test_it_is_read_as_opentelemetry_reads_it(header):
    ours = parse_traceparent(header.encode())
    context = TraceContextTextMapPropagator().extract({"traceparent": header})
    theirs = get_current_span(context).get_span_context()
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert (int(ours.trace_id, 16), int(ours.span_id, 16)) == (theirs.trace_id, theirs.span_id)
        assert ours.sampled == theirs.trace_flags.sampled
