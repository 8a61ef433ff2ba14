"""Keys and scopes over HTTP, the routes of administrators, names of models that look like paths, and other origins."""

import asyncio
import itertools
import shutil
from urllib.parse import unquote

import pytest
from fastapi.routing import iter_route_contexts
from starlette.responses import PlainTextResponse

from cpt_serving import create_app, load_settings
from cpt_serving.access.api_keys import Scope, add_key
from cpt_serving.access.control import guard_of, require_guards
from cpt_serving.inference.errors import ModelNotFoundError
from cpt_serving.repository.model_repository import ModelRepository

HEALTH = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
LOAD = "/v2/repository/models/colours/load"
ODD_NAMES = (
    "..",
    "../outside",
    "../../../../../../etc/passwd",
    "..%2Foutside",
    "%2e%2e%2foutside",
    "..%5Coutside",
    "%2Fetc%2Fpasswd",
    "colours%00",
    "colours%2F1",
    "./colours",
    "colours/../colours",
    "~",
    "C:%5Ccolours",
    "%252e%252e%252foutside",
)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys.txt"


@pytest.fixture(scope="module")
def keys(key_file):
    """A key for each scope, by the scope's name."""
    return {scope: add_key(key_file, f"only-{scope}", [scope]) for scope in ("infer", "metrics", "admin")}


@pytest.fixture(scope="module")
def guarded(shared_bundle, key_file, keys, connect_to):
    with connect_to(shared_bundle, api_keys=key_file) as client:
        yield client


def refused(response, status):
    assert response.status_code == status
    assert set(response.json()) == {"error", "request_id"}
    assert response.json()["request_id"] == response.headers["x-request-id"]
    return response.json()["error"]


@pytest.fixture(scope="module")
def ask_raw():
    """Asks an app for a path as it stands: clients of HTTP resolve dots and slashes before they send it."""

    def ask(app, method, raw_path):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path),
            "raw_path": raw_path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"x")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"not even an image", "more_body": False}

        async def send(message):
            sent.append(message)

        asyncio.run(app(scope, receive, send))
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)

    return ask


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", HEALTH)
def test_health_needs_no_key(guarded, path):
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("GET", "/predict"),
        ("POST", "/v2/models/colours/infer"),
        ("GET", "/v2"),
        ("GET", "/v2/models/colours"),
        ("POST", "/v2/repository/index"),
        ("GET", "/metrics"),
        ("POST", LOAD),
        ("GET", "/no/such/path"),
        ("GET", "/health/live/"),
        ("GET", "/health"),
    ],
)
def test_everything_else_does_and_says_so_before_it_reads_anything(guarded, method, path):
    missing = guarded.request(method, path)
    assert "got none" in refused(missing, 401)
    assert missing.headers["www-authenticate"] == 'Bearer realm="cpt-serve"'
    wrong = guarded.request(method, path, headers=bearer("cpt_wrong"))
    assert "got another one" in refused(wrong, 401)
    assert wrong.headers["www-authenticate"] == 'Bearer realm="cpt-serve", error="invalid_token"'


@pytest.mark.parametrize("form", ["Authorization: Bearer", "authorization: bearer", "X-API-Key:"])
def test_a_key_comes_in_either_header(guarded, keys, png, form):
    name, _, scheme = form.partition(":")
    headers = {name: f"{scheme.strip()} {keys['infer']}".strip()}
    assert guarded.post("/predict", content=png("lime"), headers=headers).status_code == 200


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {} {}", "Bearer\t{}"])
def test_a_key_in_another_form_is_none(guarded, keys, value):
    headers = {"Authorization": value.replace("{}", keys["infer"])}
    assert guarded.get("/v2", headers=headers).status_code == 401


@pytest.mark.parametrize(("held", "asked"), list(itertools.permutations(["infer", "metrics", "admin"], 2)))
def test_a_key_is_good_for_its_scopes_only(guarded, keys, held, asked):
    path = {"infer": "/v2", "metrics": "/metrics", "admin": LOAD}[asked]
    method = "POST" if asked == "admin" else "GET"
    response = guarded.request(method, path, headers=bearer(keys[held]))
    assert f"of the scope {asked}, but only-{held} has {held}" in refused(response, 403)
    assert f'error="insufficient_scope", scope="{asked}"' in response.headers["www-authenticate"]


def test_metrics_and_models_answer_those_who_may(guarded, keys):
    assert "cpt_serve_requests_total" in guarded.get("/metrics", headers=bearer(keys["metrics"])).text
    assert guarded.get("/v2/models/colours", headers=bearer(keys["infer"])).status_code == 200
    assert guarded.post(LOAD, headers=bearer(keys["admin"])).status_code not in {401, 403}


def test_the_description_says_that_a_key_is_needed(guarded, client):
    described = guarded.get("/openapi.json").json()
    schemes = described["components"]["securitySchemes"]
    assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
    assert {name for choice in described["security"] for name in choice} == set(schemes)
    assert "security" not in client.get("/openapi.json").json()


def test_metrics_can_be_open_where_the_rest_is_not(shared_bundle, key_file, keys, connect_to):
    with connect_to(shared_bundle, api_keys=key_file, open_metrics=True) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v2").status_code == 401


def test_without_keys_all_is_open_but_the_routes_of_administrators(client, png):
    assert client.post("/predict", content=png()).status_code == 200
    assert client.get("/metrics").status_code == 200
    for path in (LOAD, "/v2/repository/models/colours/unload"):
        message = refused(client.post(path), 403)
        assert "none of its API keys has the scope admin" in message
        assert "cpt serve --api-keys FILE" in message


def test_without_an_administrators_key_their_routes_are_off_for_everyone(shared_bundle, connect_to, tmp_path):
    key = add_key(tmp_path / "keys.txt", "shop", ["infer", "metrics"])
    with connect_to(shared_bundle, api_keys=tmp_path / "keys.txt") as client:
        assert "scope admin" in refused(client.post(LOAD, headers=bearer(key)), 403)


OPEN = {
    "/", "/docs", "/docs/{name}", "/openapi.json", "/page/{name}",
    "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready",
}  # fmt: skip


def test_every_route_but_health_and_pages_needs_a_scope(client):
    routes = iter_route_contexts([*client.app.routes, *client.app.default.routes])
    needed = {route.path: guard_of(route).needed for route in routes}
    assert {path for path, scope in needed.items() if scope is None} == OPEN
    assert {path for path, scope in needed.items() if scope is Scope.METRICS} == {"/metrics"}
    changes = {f"/v2/repository/models/{{model}}/{verb}" for verb in ("load", "unload")}
    assert {path for path, scope in needed.items() if scope is Scope.ADMIN} == changes


@pytest.mark.parametrize("kind", ["of the framework", "plain", "mount"])
def test_a_route_that_says_nothing_is_refused_at_the_start(shared_bundle, kind):
    app = create_app(load_settings(bundle=shared_bundle.path)).default
    if kind == "of the framework":
        app.add_api_route("/forgotten", lambda: "secret")
    elif kind == "plain":
        app.add_route("/forgotten", lambda _: PlainTextResponse("secret"))
    else:
        app.mount("/forgotten", PlainTextResponse("secret"))
    with pytest.raises(TypeError, match="/forgotten"):
        require_guards(app.routes)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/v2/models/{}", "/v2/models/colours/versions/{}/infer", "/models/{}/predict"])
def test_names_that_look_like_paths_lead_nowhere(client, ask_raw, method, path):
    for name in ODD_NAMES:
        status, body = ask_raw(client.app, method, path.format(name))
        assert status in {404, 405}, name
        assert b'"error"' in body
        assert b"root:" not in body


@pytest.mark.parametrize("name", ["..", "../outside", "colours/..", "colours/1", "", ".", "colours\0", "*"])
def test_loading_by_name_finds_only_what_stands_in_the_directory(shared_bundle, tmp_path, name):
    shutil.copytree(shared_bundle.path, tmp_path / "models" / "colours" / "1")
    shutil.copytree(shared_bundle.path, tmp_path / "outside" / "1")
    repository = ModelRepository(load_settings(bundle=tmp_path / "models"))

    async def load():
        for given in (name, str(tmp_path / "outside")):
            with pytest.raises(ModelNotFoundError, match="Expected a model in the repository"):
                await repository.load(given)
            with pytest.raises(ModelNotFoundError):
                await repository.load("colours", given)

    asyncio.run(load())
    assert repository.models.names == ("colours",)


def test_pages_of_other_origins_may_ask_only_if_they_are_named(shared_bundle, client, connect_to, png):
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/predict", headers=asked).headers
    with connect_to(shared_bundle, cors_origins="https://shop.example, https://other.example") as named:
        headers = {**asked, "Access-Control-Request-Headers": "authorization,content-type"}
        allowed = named.options("/predict", headers=headers)
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        answer = named.post("/predict", content=png(), headers={"Origin": "https://shop.example"})
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        stranger = named.options("/predict", headers={**asked, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://Server:8000", "Host": "server:8000"}, 200),
        ({"Origin": "http://server:9000", "Host": "server:8000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://public.example", "Host": "behind:8000"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://SHOP.example"}, 200),
    ],
)
def test_nothing_is_computed_for_pages_of_other_origins(shared_bundle, connect_to, png, headers, status):
    with connect_to(shared_bundle, cors_origins="https://shop.example,") as client:
        answer = client.post("/predict", content=png(), headers={"Content-Type": "text/plain"} | headers)
        refused_type = answer.status_code == 415
        answer = client.post("/predict", content=png(), headers={"Content-Type": "image/png"} | headers)
        assert answer.status_code == status
        assert refused_type == (status == 200)
        assert client.get("/health/ready", headers=headers).status_code == 200
        if status == 403:
            assert "page of another origin" in answer.json()["error"]


def test_a_preflight_needs_no_key_and_the_request_after_it_does(shared_bundle, key_file, keys, connect_to):
    with connect_to(shared_bundle, api_keys=key_file, cors_origins="*") as client:
        origin = {"Origin": "https://shop.example"}
        preflight = client.options("/v2", headers={**origin, "Access-Control-Request-Method": "GET"})
        assert preflight.status_code == 200
        refusal = client.get("/v2", headers=origin)
        assert refused(refusal, 401)
        assert refusal.headers["access-control-allow-origin"] == "*"
        assert client.get("/v2", headers={**origin, **bearer(keys["infer"])}).status_code == 200


def test_neither_the_direct_route_nor_the_page_goes_past_the_keys(guarded, keys):
    row = {"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.0] * 192}
    for path in ("/v2/models/colours/infer", "/v2/models/colours/versions/1/infer"):
        refusal = guarded.post(path, json={"inputs": [row]})
        assert "got none" in refused(refusal, 401)
        assert refusal.headers["x-content-type-options"] == "nosniff"
        answer = guarded.post(path, json={"inputs": [row]}, headers=bearer(keys["infer"]))
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]
    assert guarded.get("/").status_code == guarded.get("/page/requests.js").status_code == 200
    for path in ("/models", "/evidence", "/samples", "/samples/0.png", "/stats"):
        assert guarded.get(path).status_code == 401
