"""The servers of benchmarks/serving.py: installation, start, requests, and reading of answers.

Each runs the same ONNX file in onnxruntime on one thread, batches up to the same number of rows, writes no access log,
and receives input in the most compact form of its HTTP API.
"""

import base64
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from load_generation import PreparedRequest
from server_processes import ServerCommand

from cpt_deploy.bundle import Bundle

Rows = npt.NDArray[np.float32]

HERE = Path(__file__).parent / "serving_peers"
PEERS = ("litserve", "bentoml", "mlserver")
HTTP_ALONE = "HTTP alone"
EARLIER = "earlier"
"""Our server of another checkout."""
ROWS_PER_BATCH = 32
_MEMORY = str(2**30)
"""Bytes for waiting requests, so that none is refused: the other servers have no such limit."""
_FIRST_PORT = 18200
_EARLIER = """
import base64, json, sys
from pathlib import Path
import numpy as np
import serving, serving_systems
network, folder, rows = sys.argv[1:]
[case] = [case for case in serving.CASES if case.network == network]
rows = np.zeros((int(rows), *case.shape), np.float32)
system = serving_systems.cpt_deploy_system(serving.make_bundle(case, Path(folder)), rows)
server, request = system.server, system.request
header = base64.b64encode(request.body[: -rows.nbytes]).decode()
print(json.dumps({
    "command": server.command, "port": server.port, "environment": dict(server.environment),
    "ready_path": server.ready_path, "path": request.path, "headers": dict(request.headers), "header": header,
}))
"""
"""Exports a bundle in another checkout and prints how its server is started and asked."""


@dataclass(frozen=True)
class System:
    """A server of a model, ready to be started.

    Args:
        server: Command that starts it.
        request: A request with some rows.
        read: Function from headers and body of an answer to logits, float32 (N, K); None if there are none.
        tensors: Encoding of tensors, as text.
    """

    server: ServerCommand
    request: PreparedRequest
    read: Callable[[Mapping[str, str], bytes], Rows] | None
    tensors: str


def install_peer(name: str, folder: Path) -> str | None:
    """Install a peer in a virtual environment of its own, unless it is there; return the reason if that fails.

    Args:
        name: One of `PEERS`.
        folder: Folder of the environments.
    """
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", name, f"onnxruntime=={onnxruntime.__version__}"]
    check = [python, "-c", f"import {name}, onnxruntime"]
    if subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return None
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        finished = subprocess.run(check, capture_output=True, text=True, check=False)
    return None if finished.returncode == 0 else (finished.stderr.strip().splitlines() or ["no reason given"])[-1]


def peer_versions(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the installed peers."""
    read = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    return {
        name: subprocess.check_output([folder / name / "bin" / "python", "-c", read, name], text=True).strip()
        for name in names
    }


def cpt_deploy_system(bundle: Bundle, rows: Rows) -> System:
    """Our server, by the Open Inference Protocol's binary tensors."""
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": rows.shape,
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": rows.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    port = _FIRST_PORT
    command = [sys.executable, "-m", "cpt_cli", "serve", str(bundle.path), "--port", str(port)]
    environment = {
        "CPT_SERVE_THREADS": "1", "CPT_SERVE_MAX_BATCH": str(ROWS_PER_BATCH), "CPT_SERVE_QUEUE_ROWS": "4096",
        "CPT_SERVE_QUEUE_BYTES": _MEMORY, "CPT_SERVE_MAX_MEMORY_BYTES": _MEMORY, "CPT_SERVE_ACCESS_LOG": "false",
    }  # fmt: skip
    request = PreparedRequest(
        f"/v2/models/{bundle.name}/infer",
        header + rows.tobytes(),
        {"Inference-Header-Content-Length": str(len(header))},
    )
    return System(
        ServerCommand("cpt-deploy", command, port, "/v2/health/ready", environment),
        request,
        _read_binary_tensor,
        "binary tensors of the Open Inference Protocol",
    )


def earlier_system(checkout: Path, network: str, rows: Rows, folder: Path) -> System:
    """Our server of another checkout, on a bundle that it exports itself, since formats differ between versions.

    Args:
        checkout: Folder with `benchmarks/` and an environment `.venv` in which that version is installed.
        network: Name of a network of `serving.CASES` there.
        rows: Rows of a request.
        folder: An existing folder for the bundle.
    """
    output = subprocess.check_output(
        [str(checkout.absolute() / ".venv" / "bin" / "python"), "-c", _EARLIER, network, str(folder), str(len(rows))],
        cwd=checkout / "benchmarks",
        env={**os.environ, "PYTHONPATH": ""},
        text=True,
    )
    found = json.loads(output.splitlines()[-1])
    port = _FIRST_PORT + 20
    command = [str(port) if part == str(found["port"]) else part for part in found["command"]]
    request = PreparedRequest(found["path"], base64.b64decode(found["header"]) + rows.tobytes(), found["headers"])
    environment = {**found["environment"], "PYTHONPATH": ""}
    server = ServerCommand(EARLIER, command, port, found["ready_path"], environment, checkout)
    return System(server, request, _read_binary_tensor, "binary tensors of the Open Inference Protocol")


def http_alone_system(rows: Rows) -> System:
    """An empty ASGI app under our HTTP server: the minimum cost of any server in Python."""
    port = _FIRST_PORT + 10
    command = [
        sys.executable, "-m", "uvicorn", "empty_app:app", "--port", str(port), "--http", "httptools",
        "--log-level", "warning", "--no-access-log", "--app-dir", str(HERE),
    ]  # fmt: skip
    request = PreparedRequest("/", rows.tobytes(), {"Content-Type": "application/octet-stream"})
    return System(ServerCommand(HTTP_ALONE, command, port, "/"), request, None, "raw bytes")


def litserve_system(bundle: Bundle, rows: Rows, folder: Path) -> System:
    """LitServe, raw bytes both ways."""
    port = _FIRST_PORT + 1
    server = ServerCommand(
        "LitServe",
        [str(folder / "litserve" / "bin" / "python"), str(HERE / "litserve_server.py")],
        port,
        "/health",
        _peer_environment(bundle, rows, port),
    )
    request = PreparedRequest("/predict", rows.tobytes(), {"Content-Type": "application/octet-stream"})
    return System(server, request, lambda _, body: _logits(np.frombuffer(body, np.float32), rows), "raw bytes")


def bentoml_system(bundle: Bundle, rows: Rows, folder: Path) -> System:
    """BentoML, base64 text in JSON."""
    port = _FIRST_PORT + 2
    command = [
        str(folder / "bentoml" / "bin" / "python"), "-m", "bentoml", "serve", "bentoml_service:Classifier",
        "--host", "127.0.0.1", "--port", str(port), "--working-dir", str(HERE),
    ]  # fmt: skip
    environment = {**_peer_environment(bundle, rows, port), "BENTOML_DO_NOT_TRACK": "True"}
    request = PreparedRequest("/predict", json.dumps(_base64_rows(rows)).encode(), {"Content-Type": "application/json"})
    return System(
        ServerCommand("BentoML", command, port, "/readyz", environment),
        request,
        lambda _, body: _logits(json.loads(body), rows),
        "base64 in JSON",
    )


def mlserver_system(bundle: Bundle, rows: Rows, folder: Path, work: Path) -> System:
    """MLServer, base64 text in the Open Inference Protocol's JSON; its settings go to the folder `work`."""
    port = _FIRST_PORT + 3
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2,
        "parallel_workers": 0, "metrics_dir": str(work),
    }  # fmt: skip
    model = {
        "name": bundle.name, "implementation": "mlserver_runtime.Classifier", "max_batch_size": ROWS_PER_BATCH,
        "max_batch_time": 0.001,
    }  # fmt: skip
    (work / "settings.json").write_text(json.dumps(settings))
    (work / "model-settings.json").write_text(json.dumps(model))
    environment = {**_peer_environment(bundle, rows, port), "PYTHONPATH": str(HERE)}
    command = [str(folder / "mlserver" / "bin" / "mlserver"), "start", "."]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(rows), 1], "data": _base64_rows(rows)}
    body = json.dumps({"inputs": [tensor]}).encode()
    return System(
        ServerCommand("MLServer", command, port, f"/v2/models/{bundle.name}/ready", environment, work),
        PreparedRequest(f"/v2/models/{bundle.name}/infer", body, {"Content-Type": "application/json"}),
        lambda _, answer: _logits(json.loads(answer)["outputs"][0]["data"], rows),
        "base64 in JSON",
    )


def peer_systems(installed: Sequence[str], folder: Path, bundle: Bundle, rows: Rows, work: Path) -> list[System]:
    """Return the installed peers.

    Args:
        installed: Names out of `PEERS`.
        folder: Folder of their virtual environments.
        bundle: Bundle of the model to serve.
        rows: Rows of a request.
        work: An empty folder for their settings.
    """
    makers: dict[str, Callable[[], System]] = {
        "litserve": lambda: litserve_system(bundle, rows, folder),
        "bentoml": lambda: bentoml_system(bundle, rows, folder),
        "mlserver": lambda: mlserver_system(bundle, rows, folder, work),
    }
    return [makers[name]() for name in installed]


def _peer_environment(bundle: Bundle, rows: Rows, port: int) -> dict[str, str]:
    return {
        "BENCH_MODEL": str(bundle.onnx_path.resolve()),
        "BENCH_SHAPE": ",".join(map(str, rows.shape[1:])),
        "BENCH_PORT": str(port),
        "BENCH_ROWS_PER_BATCH": str(ROWS_PER_BATCH),
        "BENCH_REQUESTS_PER_BATCH": str(max(2, ROWS_PER_BATCH // len(rows))),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }


def _base64_rows(rows: Rows) -> list[str]:
    return [base64.b64encode(row.tobytes()).decode() for row in rows]


def _logits(values: object, rows: Rows) -> Rows:
    return np.asarray(values, np.float32).reshape(len(rows), -1)


def _read_binary_tensor(headers: Mapping[str, str], body: bytes) -> Rows:
    length = int(headers["inference-header-content-length"])
    shape = json.loads(body[:length])["outputs"][0]["shape"]
    return np.frombuffer(body[length:], np.float32).reshape(shape)
