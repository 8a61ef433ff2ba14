"""API keys over gRPC, sent by Triton's client as metadata."""

import socket

import numpy as np
import pytest
import trustme

from cpt_serving.access.api_keys import add_key

triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
from tritonclient.utils import InferenceServerException  # noqa: E402

MODEL = "colours"


@pytest.fixture(scope="module")
def keys_and_client(serve, shared_bundle, tmp_path_factory):
    """A key for each scope, and a client of a server that wants them."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys = {scope: add_key(file, f"only-{scope}", [scope]) for scope in ("infer", "metrics", "admin")}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with (
        serve(shared_bundle, "--grpc-port", str(port), api_keys=file),
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        yield keys, client


def infer(client, headers=None):
    tensor = triton.InferInput("image", [1, 3, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
    return client.infer(MODEL, [tensor], headers=headers).as_numpy("logits")


def refused(call):
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


CALLS = [
    infer,
    lambda client, headers=None: client.get_model_metadata(MODEL, headers=headers),
    lambda client, headers=None: client.get_server_metadata(headers=headers),
    lambda client, headers=None: client.is_model_ready(MODEL, headers=headers),
    lambda client, headers=None: client.get_model_repository_index(headers=headers),
    lambda client, headers=None: client.get_trace_settings(headers=headers),
]
"""The last is a method that the server does not have."""


@pytest.mark.parametrize("call", CALLS)
def test_only_health_is_open(keys_and_client, call):
    keys, client = keys_and_client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert refused(lambda: call(client))[0] == "UNAUTHENTICATED"
    assert refused(lambda: call(client, {"x-api-key": "cpt_wrong"}))[0] == "UNAUTHENTICATED"
    code, message = refused(lambda: call(client, {"x-api-key": keys["metrics"]}))
    assert (code, "of the scope infer" in message) == ("PERMISSION_DENIED", True)


@pytest.mark.parametrize("form", [("authorization", "Bearer {}"), ("authorization", "bearer {}"), ("x-api-key", "{}")])
def test_a_key_comes_in_either_form(keys_and_client, form):
    keys, client = keys_and_client
    name, value = form
    assert infer(client, {name: value.format(keys["infer"])}).shape == (1, 3)


def test_a_stream_needs_a_key_too(keys_and_client):
    _, client = keys_and_client
    answers = []
    client.start_stream(lambda result, error: answers.append(error))
    client.stop_stream()
    assert [error.status() for error in answers] == ["StatusCode.UNAUTHENTICATED"]


def test_only_administrators_load_and_unload(keys_and_client):
    keys, client = keys_and_client
    admin, infers = {"x-api-key": keys["admin"]}, {"x-api-key": keys["infer"]}
    assert refused(lambda: client.unload_model(MODEL, headers=infers))[0] == "PERMISSION_DENIED"
    assert refused(lambda: client.load_model(MODEL))[0] == "UNAUTHENTICATED"
    assert refused(lambda: infer(client, admin))[0] == "PERMISSION_DENIED"
    client.unload_model(MODEL, headers=admin)
    assert not client.is_model_ready(MODEL, headers=infers)
    client.load_model(MODEL, headers=admin)
    assert client.is_model_ready(MODEL, headers=infers)
    assert refused(lambda: client.load_model("other", headers=admin))[0] == "NOT_FOUND"
    code, message = refused(lambda: client.load_model(MODEL, config="{}", headers=admin))
    assert (code, "as it is there" in message) == ("INVALID_ARGUMENT", True)


def listens(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_the_certificate_holds_for_grpc_too(running_server, shared_bundle, tmp_path, wait_until):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "cert.pem")
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with (
        running_server(tmp_path, shared_bundle, grpc_port=port, tls_cert=tmp_path / "cert.pem"),
        triton.InferenceServerClient(
            f"localhost:{port}", ssl=True, root_certificates=str(tmp_path / "ca.pem")
        ) as client,
    ):
        wait_until(lambda: listens(port))
        assert client.is_server_live()
