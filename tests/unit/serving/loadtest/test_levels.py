import asyncio

import h11
import httpx2
import numpy as np
import pytest

from cpt_serving.client import ModelMetadata, TensorMetadata
from cpt_serving.client.tensors import HEADER_LENGTH
from cpt_serving.loadtest import fast_loop, prepare, prepare_infer, prepare_predict, run_levels

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
METADATA = ModelMetadata("a/b", ("1",), "onnx_onnxv1", (TensorMetadata("x", "FP32", (-1, 3)),), ())


def measured(request, levels, **options):
    with fast_loop() as runner:
        return runner.run(run_levels(request, levels, **{"duration_s": None, "warm_up_s": 0, **options}))


def request_to(url):
    return prepare_infer(url, METADATA, np.ones((4, 3), np.float32))


def test_requests_are_counted_and_connections_are_kept(scripted):
    with scripted(lambda _: GOOD) as (url, script):
        one, four = measured(request_to(url), [1, 4], requests=40)
        assert (one.clients, one.requests, one.errors) == (1, 40, {})
        assert (four.clients, four.requests, four.errors) == (4, 40, {})
        assert script.connections == 5
        assert 80 <= script.requests <= 85
        assert one.complete
        assert one.rows_per_s == pytest.approx(4 * one.requests_per_s)


def test_the_warm_up_is_not_counted(scripted):
    with scripted(lambda _: GOOD) as (url, script):
        (result,) = measured(request_to(url), [2], requests=10, warm_up_s=0.2)
        assert result.requests == 10
        assert script.requests > 12


def test_what_goes_over_the_wire_is_the_request(scripted):
    with scripted(lambda _: GOOD) as (url, script):
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        request = prepare_infer(f"{url}/base/", METADATA, rows, headers={"Authorization": "Bearer x"})
        measured(request, [1], requests=2)
    server = h11.Connection(h11.SERVER)
    server.receive_data(script.heads[0] + script.bodies[0])
    event = server.next_event()
    headers = {name.decode(): value.decode() for name, value in event.headers}
    assert (event.method, event.target) == (b"POST", b"/base/v2/models/a%2Fb/infer")
    assert headers["authorization"] == "Bearer x"
    assert script.bodies[0] == script.bodies[1]
    assert script.bodies[0][int(headers[HEADER_LENGTH.lower()]) :] == rows.tobytes()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (b'HTTP/1.1 429 No\r\nContent-Length: 16\r\n\r\n{"error":"full"}', "status 429", "full"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nsorry", "status 500", "sorry"),
        (b"nonsense\r\n\r\n", "no HTTP", ""),
        (None, "connection closed", None),
        (b"", "no answer in time", None),
    ],
    ids=str,
)
def test_failures_are_counted_by_kind_between_good_answers(scripted, answer, kind, message):
    with scripted(lambda number: answer if number % 5 == 4 else GOOD) as (url, _):
        (result,) = measured(request_to(url), [1], requests=20, timeout_s=0.05)
    assert result.errors == {kind: 4}
    assert result.requests == 16
    if message is not None:
        assert message in result.messages[kind]


def test_chunked_answers_and_servers_that_hang_up_in_order(scripted):
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    closing = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    with scripted(lambda number: closing if number % 2 else chunked) as (url, script):
        (result,) = measured(request_to(url), [1], requests=10)
    assert (result.requests, result.errors) == (10, {})
    assert script.connections in {5, 6}


def test_no_server_is_an_error_of_each_attempt(scripted):
    with scripted(lambda _: GOOD) as (url, _):
        pass
    (result,) = measured(request_to(url), [2], requests=4)
    assert result.errors == {"no connection": 4}
    assert result.latency_ms(0.5) is None


def test_a_stop_returns_what_was_measured(scripted):
    async def run(request):
        stop, seen = asyncio.Event(), []

        def progress(clients, recorder, share):
            seen.append((clients, share))
            if len(recorder.latencies_s) > 5:
                stop.set()

        results = await run_levels(request, [1, 2], duration_s=60, warm_up_s=0, stop=stop, on_progress=progress)
        return results, seen

    with scripted(lambda _: GOOD) as (url, _), fast_loop() as runner:
        results, seen = runner.run(run(request_to(url)))
    assert [result.clients for result in results] == [1]
    assert results[0].requests > 5
    assert not results[0].complete
    assert all(0 <= share <= 1 for _, share in seen)


def test_a_real_server_answers_all_forms(server, png):
    url, app = server

    def rows_done():
        return sum(
            sample.value
            for family in app.state.service.metrics.collect()
            for sample in family.samples
            if sample.name == "cpt_serve_rows_total"
        )

    for request in (
        prepare(url, "binary", rows=3),
        prepare(url, "json", rows=3),
        prepare(url, "predict", rows=3, model="colours"),
        prepare_predict(url, [png("red")] * 3),
    ):
        before = rows_done()
        (result,) = measured(request, [2], requests=10)
        assert (result.requests, result.errors) == (10, {}), request.description
        # The second client may have one more under way when the tenth answer comes.
        assert 30 <= rows_done() - before <= 33


def test_samples_are_sent_where_the_server_offers_them(server, shared_bundle):
    url, _ = server
    request = prepare(url, "predict", rows=6)
    samples = [httpx2.get(f"{url}/samples/{index}.png", trust_env=False).content for index in range(4)]
    for index, sample in enumerate(samples):
        assert request.content.count(sample) == (2 if index < 2 else 1)
    assert request.rows == 6
