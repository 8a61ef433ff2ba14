"""onnxruntime reports no models to its maker: it makes neither an identifier of this machine nor a store of reports."""

import os
import subprocess
import sys

import pytest

LOAD = "import cpt_deploy, onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"


@pytest.fixture
def left_at_home(shared_bundle, tmp_path):
    """Loads a model in a fresh process and returns the names of the files that it leaves in its home."""

    def load(program, **environment):
        line = [sys.executable, "-c", program, str(shared_bundle.onnx_path)]
        clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # without CI, where onnxruntime reports nothing
        subprocess.run(line, check=True, env=clean | environment)
        return {path.name for path in tmp_path.rglob("*") if path.is_file()}

    return load


def test_models_are_not_reported(left_at_home):
    assert left_at_home(LOAD) == set()


def test_whoever_wants_to_report_them_can(left_at_home):
    left = left_at_home(LOAD, ORT_DISABLE_TELEMETRY="0")
    if left != left_at_home(LOAD.replace("cpt_deploy, ", "")):
        pytest.fail(f"the setting of the environment does not count: {left}")
    if not left:
        pytest.skip("this build of onnxruntime reports nothing")
    assert "deviceid" in left
