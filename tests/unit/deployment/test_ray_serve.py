"""examples/ray_serve with two replicas on this machine, against onnxruntime."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from cpt_deploy.bundle import OnnxRuntimeModel

pytest.importorskip("ray.serve", reason="needs Ray: pip install '.[ray]'")

EXAMPLE = Path(__file__).parents[3] / "examples" / "ray_serve"

PROGRAM = """
import json, socket, sys

import ray
from ray import serve

import deployment

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(deployment.build({"bundle": sys.argv[1], "replicas": "2"}), name="cpt")
replicas = serve.status().applications["cpt"].deployments["cpt-deploy"].replica_states
print(json.dumps({"url": f"http://127.0.0.1:{port}", "replicas": replicas}), flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def application(shared_bundle, tmp_path_factory):
    """The application with two replicas: its address, and how many of them are in which state."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CPT_SERVE_")} | {
        "HOME": str(tmp_path_factory.mktemp("home")),  # Ray leaves its token there
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLE), *filter(None, sys.path)]),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(shared_bundle.path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = next((line for line in process.stdout if line.startswith("{")), None)
    try:
        assert line is not None, process.communicate()[1]
        yield json.loads(line)
    finally:
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_two_replicas_answer_with_the_bits_of_onnxruntime(application, shared_bundle):
    assert application["replicas"] == {"RUNNING": 2}
    rows = np.random.default_rng(1).uniform(-1, 1, (24, 3, 8, 8)).astype(np.float32)
    expected = OnnxRuntimeModel(shared_bundle.onnx_path).run({"image": rows})["logits"]
    with httpx2.Client(base_url=application["url"], trust_env=False, timeout=30) as client:
        for index, row in enumerate(rows):
            tensor = {"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": row.ravel().tolist()}
            answer = client.post(f"/v2/models/{shared_bundle.name}/infer", json={"inputs": [tensor]})
            assert answer.status_code == 200
            logits = np.array(answer.json()["outputs"][0]["data"], np.float32)
            assert logits.tobytes() == expected[index].tobytes()


def test_images_and_errors_are_as_without_ray(application, shared_bundle):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "green").save(file, "PNG")
    with httpx2.Client(base_url=application["url"], trust_env=False, timeout=30) as client:
        assert client.get("/health/ready").status_code == 200
        predicted = client.post("/predict", files={"file": ("x.png", file.getvalue(), "image/png")})
        assert "green" in predicted.text
        broken = client.post("/predict", content=b"no image", headers={"Content-Type": "image/png"})
        assert broken.status_code == 400
        assert {"error", "request_id"} <= set(broken.json())
        assert client.get("/v2/models/unknown").status_code == 404
