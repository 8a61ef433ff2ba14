"""`cpt predict --url` against a server that wants API keys."""

import json

import pytest

from cpt_cli.main import main
from cpt_serving.access.api_keys import add_key


@pytest.fixture(scope="module")
def guarded(running_server, shared_bundle, wait_until, get, tmp_path_factory):
    """The address of a server, and a key."""
    directory = tmp_path_factory.mktemp("guarded")
    key = add_key(directory / "keys.txt", "shop", ["infer"])
    with running_server(directory, shared_bundle, api_keys=directory / "keys.txt") as (_, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        yield url, key


@pytest.fixture(params=["option", "variable"])
def given(request, guarded, monkeypatch):
    """Options that bring the key, or none where the environment has it."""
    if request.param == "option":
        return ["--api-key", guarded[1]]
    monkeypatch.setenv("CPT_API_KEY", guarded[1])
    return []


def test_predict_brings_the_key(guarded, given, tmp_path, png, capsys):
    (tmp_path / "lime.png").write_bytes(png("lime"))
    assert main(["predict", "--url", guarded[0], str(tmp_path / "lime.png"), "--json", *given]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["predictions"][0]["label"] == "green"


def test_without_one_the_server_says_what_is_missing(guarded, tmp_path, png, capsys):
    (tmp_path / "lime.png").write_bytes(png("lime"))
    assert main(["predict", "--url", guarded[0], str(tmp_path / "lime.png")]) != 0
    assert "Expected an API key" in " ".join(capsys.readouterr().err.split())
    assert main(["predict", "--url", guarded[0], str(tmp_path / "lime.png"), "--api-key", "a b"]) == 2
