"""The HEALTHCHECK of the image, run as Docker runs it, against real servers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DOCKERFILE = (Path(__file__).parents[3] / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMMAND = json.loads(re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])


def check(**variables):
    given = {f"CPT_SERVE_{name.upper()}": str(value) for name, value in variables.items()}
    return subprocess.run(
        [sys.executable, *COMMAND[1:]],
        # A proxy that is not there must not be asked for this machine.
        env={**os.environ, "http_proxy": "http://203.0.113.1:1", "https_proxy": "http://203.0.113.1:1", **given},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("place", ["nowhere", "variables", "file"])
def test_it_asks_over_tls_where_the_server_speaks_tls(place, running_server, shared_bundle, tls, tmp_path, wait_until):
    _, certificate, key = tls
    given = {} if place == "nowhere" else {"tls_cert": str(certificate), "tls_key": str(key)}
    if place == "file":
        (tmp_path / "serve.yaml").write_text(yaml.safe_dump(given))
        given = {"config": tmp_path / "serve.yaml"}
    with running_server(tmp_path, shared_bundle, **given) as (process, url):
        variables = {"port": url.rpartition(":")[2], "host": "0.0.0.0", **given}
        wait_until(lambda: check(**variables).returncode == 0)
        other = {**variables, "tls_cert": "" if place == "variables" else certificate}
        if place != "file":
            assert check(**other).returncode == 1
        process.terminate()
        process.communicate(timeout=30)
        gone = check(**variables)
    assert gone.returncode == 1
    assert "refused" in gone.stderr


def test_a_server_that_is_not_ready_is_not_healthy(running_server, shared_bundle, tmp_path, wait_until):
    with running_server(tmp_path, shared_bundle, drain_s=20) as (process, url):
        variables = {"port": url.rpartition(":")[2]}
        wait_until(lambda: check(**variables).returncode == 0)
        process.terminate()
        wait_until(lambda: check(**variables).returncode == 1)
        assert "503" in check(**variables).stderr
        process.terminate()


def test_it_loads_little():
    code = (
        "import cpt_serving.health_check, sys;"
        "sys.exit(any(name.split('.')[0] in {'numpy', 'pydantic', 'onnxruntime', 'fastapi'} for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
