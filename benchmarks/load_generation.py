"""Load on an HTTP server by wrk: a fixed number of connections, each with one prepared request at a time.

wrk (`apt-get install wrk`) was chosen by measurement: on one core it sends more requests than any of the servers
answers, and it adds the smallest delay with a single client.
"""

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpt_deploy.errors import MissingExtraError

_SCRIPT = """
local file = assert(io.open(os.getenv("LOAD_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, "errors": %d}\\n',
    summary.requests - errors.status, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class PreparedRequest:
    """A prepared POST request that is sent repeatedly.

    Args:
        path: Path with the leading slash.
        body: Body of the request.
        headers: Headers besides Host and Content-Length.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Load:
    """Results of a server under load.

    Args:
        requests_per_s: Successful answers per second.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latency.
        errors: Failed connections, timeouts and answers with a status of 400 or more.
        generator_cpu: Share of a core that wrk used.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    generator_cpu: float


def require_wrk() -> None:
    """Raise an error if wrk is not installed.

    Raises:
        MissingExtraError: With the command that installs it.
    """
    if shutil.which("wrk") is None:
        raise MissingExtraError("Expected wrk in PATH, but found none", hint="apt-get install wrk")


def generate_load(port: int, request: PreparedRequest, *, clients: int, seconds: float, core: int) -> Load:
    """Send a request repeatedly to a server on this machine.

    Args:
        port: Port of the server.
        request: Request to send.
        clients: Connections, each of which waits for an answer before it sends again.
        seconds: Duration of the load.
        core: Core that wrk runs on.
    """
    with tempfile.TemporaryDirectory() as folder:
        script, body = Path(folder) / "load.lua", Path(folder) / "body"
        script.write_text(_SCRIPT)
        body.write_bytes(request.body)
        command = ["taskset", "--cpu-list", str(core), "wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s"]
        command += ["--timeout", "60s", "-s", str(script)]
        for name, value in request.headers.items():
            command += ["-H", f"{name}: {value}"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{request.path}"],
            env={**os.environ, "LOAD_BODY": str(body)},
            capture_output=True,
            text=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = next(line for line in finished.stdout.splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    taken = result["microseconds"] / 1e6
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(
        result["requests"] / taken, result["p50_us"] / 1e3, result["p99_us"] / 1e3, result["errors"], used / taken
    )
