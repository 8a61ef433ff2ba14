"""The server below a path of another app, behind a prefix, and on Ray Serve: the same answers, and the same keys."""

import socket
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from cpt_serving import create_app, load_settings
from cpt_serving.access.api_keys import add_key

CHANGES = [f"/v2/repository/models/colours/{verb}" for verb in ("load", "unload")]
PRIVATE = [
    "/v2",
    "/v2/models/colours",
    "/metrics",
    "/models",
    "/evidence",
    "/samples/0.png",
    "/stats",
    "/nowhere",
    "/health",
]
OPEN = ["/health/live", "/health/ready", "/v2/health/live", "/", "/docs", "/openapi.json", "/page/app.js"]
INFER = "/v2/models/colours/infer"


def mounted(app):
    """Another app with ours below /cpt."""

    @asynccontextmanager
    async def lifespan(_app):
        async with app.lifespan_context(app):
            yield

    return Starlette(routes=[Mount("/cpt", app)], lifespan=lifespan)


def with_prefix(app):
    """Our app with a prefix that stands in its paths, as Ray's proxy passes them on."""

    async def prefixed(scope, receive, send):
        await app(scope if scope["type"] == "lifespan" else {**scope, "root_path": "/cpt"}, receive, send)

    return prefixed


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    return file, {scope: add_key(file, scope, [scope]) for scope in ("infer", "metrics", "admin")}


@pytest.fixture(scope="module", params=["alone", "mounted", "twice mounted", "prefix kept", "prefix removed"])
def place(request, shared_bundle, keys, listen_here):
    """Where the server is, in each of the ways in which it can stand below a path."""
    app = create_app(load_settings(bundle=shared_bundle.path, api_keys=keys[0], concurrency=1, access_log=False))
    below = {"alone": "", "twice mounted": "/outer/cpt", "prefix removed": ""}.get(request.param, "/cpt")
    if request.param == "mounted":
        app = mounted(app)
    elif request.param == "twice mounted":
        inner = mounted(app)

        @asynccontextmanager
        async def lifespan(_app):
            async with inner.router.lifespan_context(inner):
                yield

        app = Starlette(routes=[Mount("/outer", inner)], lifespan=lifespan)
    elif request.param == "prefix kept":
        app = with_prefix(app)
    # uvicorn puts back what a proxy has taken away.
    with listen_here(app, root_path="/cpt" if request.param == "prefix removed" else "") as url:
        yield f"{url}{below}"


def ask(url, method="GET", key=None, **options):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx2.request(method, url, headers=headers, trust_env=False, timeout=60, **options)


def test_nothing_private_is_open(place, keys):
    admin, infer = keys[1]["admin"], keys[1]["infer"]
    for path in CHANGES:
        assert ask(f"{place}{path}", "POST").status_code == 401
        assert ask(f"{place}{path}", "POST", infer).status_code == 403
    for path in PRIVATE:
        assert ask(f"{place}{path}").status_code == 401, path
        assert ask(f"{place}{path}", key=admin).status_code == 403, path
    for path in (INFER, "/predict", "/v2/repository/index"):
        assert ask(f"{place}{path}", "POST", content=b"{}").status_code == 401, path
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "QUERY"):
            assert ask(f"{place}{path}", method).status_code == 401, (method, path)
    assert ask(f"{place}/v2", key=infer).status_code == 200
    assert ask(f"{place}/metrics", key=keys[1]["metrics"]).status_code == 200
    row = {"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.0] * 192}
    assert ask(f"{place}{INFER}", "POST", infer, json={"inputs": [row]}).status_code == 200
    # The last: a model that is unloaded answers nothing.
    assert ask(f"{place}{CHANGES[0]}", "POST", admin).status_code == 200


def test_what_is_open_is_open_there_too(place):
    for path in OPEN:
        assert ask(f"{place}{path}").status_code == 200, path
        assert ask(f"{place}{path}", "HEAD").status_code == 200, path
    description = ask(f"{place}/openapi.json").json()
    (server,) = description.get("servers", [{"url": ""}])
    assert server["url"] in {"", "/cpt", "/outer/cpt"}


@pytest.mark.parametrize(
    "odd",
    [
        "//v2/repository/models/colours/unload",
        "/v2//repository/models/colours/unload",
        "/v2/repository/models/colours/unload/",
        "/v2/repository/models/colours//unload",
        "/v2/repository/models/colours/%75nload",
        "/%76%32/repository/models/colours/unload",
        "/v2/repository/models/colours%2Funload",
        "/v2%2Frepository%2Fmodels%2Fcolours%2Funload",
        "/health/live/../../v2/repository/models/colours/unload",
        "/health/live/%2e%2e/%2e%2e/v2/repository/models/colours/unload",
        "/page/../v2/repository/models/colours/unload",
        "/V2/repository/models/colours/unload",
        "/v2/repository/models/colours/unload?",
        "/v2/repository/models/colours/unload?x=/health/live",
        "/v2/repository/models/colours/unload;/health/live",
        "/cpt/v2/repository/models/colours/unload",
        "/cpt/cpt/v2/repository/models/colours/unload",
    ],
)
def test_no_spelling_of_a_path_goes_past_the_keys(place, keys, odd):
    address = urlsplit(place)
    for key in (None, keys[1]["infer"]):
        header = "" if key is None else f"X-Api-Key: {key}\r\n"
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            # By hand: clients tidy paths up.
            head = f"POST {address.path}{odd} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 0\r\n"
            connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
            status = int(connection.makefile("rb").readline().split()[1])
        # Outside of the mount the other app answers that there is nothing.
        assert status in ({401, 404} if key is None else {403, 404}), status
    assert ask(f"{place}/health/ready").status_code == 200


@pytest.fixture(scope="module")
def ray_place(shared_bundle, keys):
    """The address of the server on Ray Serve below /cpt, on a cluster of this machine."""
    serve = pytest.importorskip("ray.serve", reason="needs Ray: pip install '.[ray]'")
    import ray

    settings = load_settings(bundle=shared_bundle.path, api_keys=keys[0], concurrency=1, access_log=False)

    def app():
        return create_app(settings)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ray.init(num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deployment = serve.deployment(serve.ingress(app)(), name="cpt", ray_actor_options={"num_cpus": 0.1})
        serve.run(deployment.bind(), name="cpt", route_prefix="/cpt")
        yield f"http://127.0.0.1:{port}/cpt"
        serve.shutdown()
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_serves_it_with_the_same_keys(ray_place, keys):
    test_nothing_private_is_open(ray_place, keys)
    test_what_is_open_is_open_there_too(ray_place)
