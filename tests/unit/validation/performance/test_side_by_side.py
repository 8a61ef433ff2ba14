"""Timing in turn; times themselves are not asserted."""

import pytest

from cpt_deploy.errors import BundleError
from cpt_deploy.validation import compare_latency


def test_each_model_gets_a_time_and_the_first_is_the_reference(shared_bundle):
    path = shared_bundle.onnx_path
    latencies = compare_latency({"bytes": path.read_bytes(), "path": path}, batch_size=3, rounds=4)
    assert list(latencies) == ["bytes", "path"]
    assert latencies["bytes"].speedup == 1
    assert all(latency.milliseconds > 0 and latency.speedup > 0 for latency in latencies.values())


def test_what_is_no_model_is_an_error():
    with pytest.raises(BundleError, match="onnxruntime"):
        compare_latency({"nothing": b"nothing"})
