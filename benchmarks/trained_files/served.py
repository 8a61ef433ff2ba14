"""Serve a bundle, and compare what one request over HTTP returns with what its session returns."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpt_deploy.bundle.runtime.sessions import open_session

READY_WITHIN_S = 180.0
Arrays = dict[str, NDArray[Any]]


def is_served_equally(bundle: Path, sample: Arrays) -> bool:
    """Return whether the outputs of a server over the Open Inference Protocol are the session's, bit for bit."""
    session = open_session(bundle / "model.onnx")
    expected = dict(zip([output.name for output in session.get_outputs()], session.run(None, sample), strict=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cpt_cli", "serve", str(bundle), "--port", str(port), "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _wait(port, process)
            got = _inferred(port, sample)
        finally:
            process.terminate()
    return got.keys() == expected.keys() and all(np.array_equal(got[key], expected[key]) for key in expected)


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            if _ask(port, "GET", "/v2/health/ready", b"", {})[0] == http.client.OK:
                return
        time.sleep(0.2)
    raise RuntimeError(f"Expected the server to be ready within {READY_WITHIN_S:.0f} s, but it is not")


def _ask(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def _inferred(port: int, sample: Arrays) -> Arrays:
    """Send a request with binary tensors, and return the outputs."""
    names = json.loads(_ask(port, "POST", "/v2/repository/index", b"{}", {})[2])
    inputs = [
        {"name": key, "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        for key, x in sample.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(x.tobytes() for x in sample.values())
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    status, answered, content = _ask(port, "POST", f"/v2/models/{names[0]['name']}/infer", body, headers)
    if status != http.client.OK:
        raise RuntimeError(f"Expected an answer, but got {status}: {content[:300]!r}")
    length = int(answered["Inference-Header-Content-Length"])
    outputs, place, found = json.loads(content[:length])["outputs"], length, {}
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        values = np.frombuffer(content[place : place + size], np.float32)
        found[output["name"]], place = values.reshape(output["shape"]), place + size
    return found
