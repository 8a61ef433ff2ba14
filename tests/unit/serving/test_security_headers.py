"""What every answer tells browsers, and that the description's page works under its policy."""

import base64
import hashlib
import re

import pytest


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v2"), ("GET", "/metrics"), ("GET", "/health/live"), ("POST", "/predict"), ("GET", "/nowhere")],
)
def test_answers_run_nothing_and_are_framed_nowhere(client, method, path):
    headers = client.request(method, path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "server" not in headers


def test_the_policy_of_the_description_names_its_script_by_hash(client):
    response = client.get("/docs")
    policy = response.headers["content-security-policy"]
    inline = re.findall(r"<script>(.*?)</script>", response.text, flags=re.DOTALL)
    assert inline
    for script in inline:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    scripts = re.search(r"script-src ([^;]*)", policy)[1]
    assert "unsafe" not in scripts
    linked = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert len(linked) == 3
    for source in linked:  # relative, so that they work below a path too
        assert client.get(f"/{source}").status_code == 200
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert len(response.headers.get_list("content-security-policy")) == 1
    assert client.get("/openapi.json").json()["info"]["title"] == "colours"
