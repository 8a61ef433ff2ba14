"""Against a real server and a real client: streams, clients that leave, and more of them than there are places."""

import asyncio
import time
from contextlib import aclosing

import httpx2
import pytest

from cpt_serving import AsyncPredictClient, PredictClient

LONG = {"prompt": "the", "max_tokens": 1_000_000, "temperature": 5.0, "stream": True}


@pytest.fixture(scope="module")
def server(language_bundle, running_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, language_bundle, generations=2, max_new_tokens=1_000_000) as (_, url):
        yield url


@pytest.fixture
def client(server):
    with httpx2.Client(base_url=server, trust_env=False, timeout=30) as client:
        yield client


def under_way(client):
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("cpt_serve_texts_in_flight{")).split()[-1])


def poll(condition):
    """Look again and again; a generation that goes on for ever ends the test instead of the test run."""
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("the condition was never met")


def test_tokens_come_while_others_are_generated_and_leaving_ends_it(client):
    with client.stream("POST", "/generate", json=LONG) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        assert under_way(client) == 1
        with client.stream("POST", "/generate", json=LONG) as second:
            more = second.iter_lines()  # which closes the stream when it is dropped
            assert next(more).startswith("data: {")
            third = client.post("/generate", json={"prompt": "the"})
            assert third.status_code == 429
            assert third.headers["retry-after"] == "1"
    poll(lambda: under_way(client) == 0)
    assert client.post("/generate", json={"prompt": "the"}).status_code == 200


def test_a_client_that_does_not_stream_and_leaves_ends_it_too(client):
    with pytest.raises(httpx2.ReadTimeout):
        client.post("/generate", json={**LONG, "stream": False}, timeout=0.5)
    poll(lambda: under_way(client) == 0)


def test_a_deadline_ends_a_stream_with_an_event(client):
    with client.stream("POST", "/generate", json=LONG, headers={"X-Request-Timeout-Ms": "300"}) as response:
        assert response.status_code == 200
        last = [line for line in response.iter_lines() if line][-1]
    assert '"error":"Expected an answer before the request\'s deadline' in last


def test_our_own_client_ends_a_text_that_it_does_not_want_any_more(client, server):
    parameters = {name: value for name, value in LONG.items() if name not in {"prompt", "stream"}}
    with PredictClient(server) as ours:
        events = ours.generate("the", **parameters)
        assert "text" in next(events)
        assert under_way(client) == 1
        events.close()
        poll(lambda: under_way(client) == 0)

    async def ask():
        async with AsyncPredictClient(server) as ours, aclosing(ours.generate("the", **parameters)) as events:
            return await anext(events)

    assert "text" in asyncio.run(ask())
    poll(lambda: under_way(client) == 0)
