"""What every answer tells browsers, and that the description's page works under its policy."""

import base64
import hashlib
import re

import pytest

from cpt_serving.web.security_headers import SECURITY_HEADERS, missing_security_headers


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
    for source in re.findall(r'<script src="([^"]+)"', response.text):
        assert source.startswith(tuple(each for each in scripts.split() if each.startswith("https://")))
    assert "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert len(response.headers.get_list("content-security-policy")) == 1
    assert client.get("/openapi.json").json()["info"]["title"] == "colours"


def test_a_page_keeps_its_own_policy_and_gets_what_it_lacks():
    own = [(b"content-security-policy", b"default-src 'self'"), (b"referrer-policy", b"origin")]
    assert missing_security_headers(own) == ((b"x-content-type-options", b"nosniff"),)
    assert missing_security_headers([(b"content-type", b"text/plain")]) == SECURITY_HEADERS
