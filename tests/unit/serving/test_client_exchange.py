"""When the client sends, waits and gives up, without a network or a clock."""

import datetime
import email.utils
import random

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.errors import CptError, DataError
from cpt_serving.client import Retries
from cpt_serving.client.calls import predict_call, ready_call
from cpt_serving.client.exchange import Send, Wait, exchange, retry_after_s

URL = httpx2.URL("http://server")
GOOD = {"model": "m", "version": "1", "predictions": [], "timings": {}}


class Clock:
    """A clock that only moves when somebody waits."""

    now = 0.0

    def __call__(self):
        return self.now


def run(outcomes, *, timeout_s=60.0, retries=None, call=None, attempt_s=0.0):
    """Bring a call to its end with given outcomes; the pauses, and the timeouts of the attempts."""
    clock, pauses, timeouts, pending = Clock(), [], [], list(outcomes)
    steps = exchange(
        call or predict_call([b"x"], top_k=1, model=None),
        URL,
        timeout_s=timeout_s,
        retries=retries or Retries(),
        clock=clock,
        generator=random.Random(0),
    )
    outcome = None
    try:
        while True:
            step = steps.send(outcome)
            if isinstance(step, Wait):
                pauses.append(step.seconds)
                clock.now += step.seconds
                outcome = None
            else:
                assert isinstance(step, Send)
                timeouts.append(step.timeout_s)
                clock.now += attempt_s
                outcome = pending.pop(0)
    except StopIteration as end:
        return end.value, pauses, timeouts
    except CptError as error:
        return error, pauses, timeouts


def refused(status, **headers):
    return httpx2.Response(status, json={"error": "busy"}, headers={k.replace("_", "-"): v for k, v in headers.items()})


def good():
    return httpx2.Response(200, json=GOOD)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_as_long_as_it_says(status):
    answer, pauses, _ = run([refused(status, Retry_After="2"), refused(status, Retry_After="1"), good()])
    assert answer.model == "m"
    assert 2 <= pauses[0] <= 2.5
    assert 1 <= pauses[1] <= 1.25


def test_without_an_advice_the_pauses_double_and_are_spread():
    _, pauses, _ = run([refused(429)] * 4 + [good()], retries=Retries(attempts=5, first_s=1, longest_s=3))
    assert len(pauses) == 4
    for pause, longest in zip(pauses, (1, 2, 3, 3), strict=True):
        assert longest / 2 <= pause <= longest


def test_after_the_last_attempt_the_refusal_is_raised():
    error, pauses, timeouts = run([refused(503)] * 9, retries=Retries(attempts=3))
    assert isinstance(error, CptError)
    assert "503: busy" in error.message
    assert (len(pauses), len(timeouts)) == (2, 3)


def test_a_server_that_asks_for_too_much_patience_is_not_asked_again():
    error, pauses, _ = run([refused(503, Retry_After="3600")])
    assert "503: busy" in error.message
    assert pauses == []


def test_the_deadline_spans_all_attempts_and_no_pause_goes_beyond_it():
    error, pauses, timeouts = run([refused(429, Retry_After="3")] * 9, timeout_s=10.0, attempt_s=0.5)
    assert "429" in error.message
    assert len(timeouts) in {2, 3}
    assert sum(pauses) + 0.5 * len(timeouts) <= 10
    assert timeouts == sorted(timeouts, reverse=True)
    assert timeouts[0] == 10


@pytest.mark.parametrize("status", [400, 404, 413, 500, 502, 504])
def test_other_refusals_are_final(status):
    error, pauses, timeouts = run([refused(status)])
    assert isinstance(error, CptError)
    assert (pauses, len(timeouts)) == ([], 1)
    assert isinstance(error, DataError) == (status in {400, 413, 504})


def test_a_connection_that_was_closed_meanwhile_is_opened_again():
    answer, pauses, _ = run([httpx2.RemoteProtocolError("Server disconnected without sending a response."), good()])
    assert answer.model == "m"
    assert len(pauses) == 1


@pytest.mark.parametrize("error", [httpx2.ConnectError("refused"), httpx2.ReadTimeout("late")], ids=str)
def test_no_server_and_no_answer_are_final(error):
    found, pauses, _ = run([error])
    assert isinstance(found, DataError)
    assert pauses == []


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False)])
def test_a_server_that_is_not_ready_is_an_answer(status, ready):
    assert run([refused(status)], call=ready_call(None, None))[0] is ready


def test_retry_after_is_seconds_or_a_date():
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    assert 95 <= retry_after_s(email.utils.format_datetime(later, usegmt=True)) <= 100
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("7") == 7
    for text in (None, "", "soon", "-1", "1e3"):
        assert retry_after_s(text) is None


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} (Jan|Dec) \d{1,5} \d\d:\d\d:\d\d ([+-]\d{4,9}|GMT|X)"))
def test_no_retry_after_breaks_the_client(text):
    assert retry_after_s(text) is None or retry_after_s(text) >= 0


@given(
    attempts=st.integers(1, 10),
    first_s=st.floats(0, 5),
    more=st.floats(0, 5),
    attempt=st.integers(1, 12),
    asked=st.none() | st.floats(0, 20),
)
def test_pauses_stay_within_their_bounds(attempts, first_s, more, attempt, asked):
    retries = Retries(attempts, first_s, first_s + more)
    pause = retries.pause_s(attempt, asked, random.Random(1))
    if attempt >= attempts or (asked is not None and asked > retries.longest_s):
        assert pause is None
    elif asked is not None:
        assert asked <= pause <= asked * 1.25
    else:
        assert 0 <= pause <= retries.longest_s


@pytest.mark.parametrize("values", [{"attempts": 0}, {"first_s": -1}, {"first_s": 2, "longest_s": 1}], ids=str)
def test_impossible_retries_are_refused(values):
    with pytest.raises(ValueError, match="Expected"):
        Retries(**values)
