"""The way past the framework answers as its routes do, and what surrounds requests surrounds it too."""

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from cpt_deploy.bundle import Bundle
from cpt_serving import create_app, load_settings
from cpt_serving.routes.shortcut import InferShortcut
from cpt_serving.web.bodies import BodyReceiver, read_body
from cpt_serving.web.errors import RequestError
from cpt_serving.web.raw_headers import raw_header
from cpt_serving.web.serving_app import ServingApp

ROW = np.zeros((1, 3, 8, 8), np.float32)
GOOD = {"inputs": [{"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": ROW.ravel().tolist()}]}


@pytest.fixture(scope="module")
def routes_only(shared_bundle: Bundle) -> Iterator[TestClient]:
    """A client of a server without the shortcut."""
    app = create_app(load_settings(bundle=shared_bundle.path))
    app.user_middleware = [entry for entry in app.user_middleware if entry.cls is not InferShortcut]
    with TestClient(app, raise_server_exceptions=False) as client:
        deadline = time.monotonic() + 20
        while client.get("/health/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        yield client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("colours/infer", GOOD),
        ("colours/versions/1/infer", GOOD),
        (
            "colours/infer",
            {**GOOD, "id": "an id", "outputs": [{"name": "logits", "parameters": {"classification": 2}}]},
        ),
        ("colours/infer", {"inputs": []}),
        ("colours/infer", {"inputs": [{**GOOD["inputs"][0], "shape": [1, 3, 9, 8]}]}),
        ("other/infer", GOOD),
        ("colours/versions/9/infer", GOOD),
        ("col%6Furs/infer", GOOD),
    ],
)
def test_it_answers_as_the_routes_do(client: TestClient, routes_only: TestClient, path: str, body: object) -> None:
    found, expected = (each.post(f"/v2/models/{path}", json=body) for each in (client, routes_only))
    assert found.status_code == expected.status_code
    assert found.headers["content-type"] == expected.headers["content-type"]
    contents = [answer.json() for answer in (found, expected)]
    for content in contents:
        content.pop("request_id", None)
    assert contents[0] == contents[1]


def test_other_methods_are_the_routes_business(client: TestClient) -> None:
    answer = client.get("/v2/models/colours/infer")
    assert answer.status_code == 405
    assert "error" in answer.json()


def test_it_is_counted_under_the_template_of_its_route(client: TestClient) -> None:
    client.post("/v2/models/colours/versions/1/infer", json=GOOD)
    assert 'route="/v2/models/{model}/versions/{version}/infer"' in client.get("/metrics").text


def test_requests_get_different_ids(client: TestClient) -> None:
    ids = {client.post("/v2/models/colours/infer", json=GOOD).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20
    assert all(len(each) == 32 for each in ids)


def test_middleware_that_is_added_stands_around_the_frameworks_own_the_first_innermost() -> None:
    seen: list[str] = []

    class Note:
        def __init__(self, app: ASGIApp, name: str) -> None:
            self.app, self.name = app, name

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(self.name)
            await self.app(scope, receive, send)

    app = ServingApp()
    app.add_middleware(Note, name="inner")
    app.add_middleware(Note, name="outer")
    app.add_api_route("/", lambda: {"answer": 1})
    assert isinstance(app, FastAPI)
    with TestClient(app) as client:
        assert client.get("/").json() == {"answer": 1}
    assert seen == ["outer", "inner"]


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"x-request-id"]), st.binary(max_size=4)), max_size=4))
def test_a_single_header_is_the_first_of_its_name(headers: list[tuple[bytes, bytes]]) -> None:
    expected = next((value.decode("latin-1") for name, value in headers if name == b"b"), None)
    assert raw_header({"headers": headers}, b"b") == expected


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=6))
def test_a_body_is_its_parts_in_order(parts: list[bytes]) -> None:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    assert asyncio.run(read_body(receive)) == b"".join(parts)


def test_a_client_that_leaves_in_the_middle_is_said_to_have_left() -> None:
    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    with pytest.raises(ClientDisconnect):
        asyncio.run(read_body(receive))


def test_a_body_that_does_not_come_is_408_even_if_other_work_was_done_meanwhile() -> None:
    async def scenario() -> int:
        parts = [{"type": "http.request", "body": b"a", "more_body": True}]

        async def receive() -> dict[str, object]:
            if parts:
                return parts.pop()
            await asyncio.sleep(3600)
            raise AssertionError

        body = BodyReceiver({"headers": []}, receive, max_bytes=100, timeout_s=0.02)
        await body()
        # The time is over, but nobody waits for the body now: this must not be cancelled.
        await asyncio.sleep(0.1)
        try:
            await body()
        except RequestError as error:
            body.answered()
            await asyncio.sleep(0)
            return error.status
        return 0

    assert asyncio.run(scenario()) == 408
