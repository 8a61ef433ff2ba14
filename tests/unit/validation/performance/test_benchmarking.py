"""Turns, percentiles and ratios against the standard library's, memory against the size of the weights."""

import statistics
from itertools import count

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.errors import BundleError, UsageError
from cpt_deploy.validation import benchmark, float_operators, optimized_operators, static_quantization
from cpt_deploy.validation.performance import benchmarking
from cpt_deploy.validation.performance.peak_memory import STATUS, measure_peak_memory
from cpt_deploy.validation.performance.timing import interleaved, median_ratio

needs_proc = pytest.mark.skipif(not STATUS.is_file(), reason="needs /proc")


def linear_model(width: int) -> bytes:
    """A float network of two layers, (N, 1, 8, 8) to (N, 3), by way of `width` values."""
    rng = np.random.default_rng(0)
    weights = {"first": rng.normal(size=(64, width)), "second": rng.normal(size=(width, 3))}
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("Gemm", ["positive", "second"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_turns_are_taken_in_alternating_order():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(runs, rounds=3, warmup=1)
    assert "".join(order) == "abc" + "abccbaabc"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_time_ends_the_rounds_but_not_too_soon():
    assert len(interleaved({"a": lambda: None}, rounds=50, seconds=0.0, min_rounds=7)["a"]) == 7
    assert len(interleaved({"a": lambda: None}, rounds=5, seconds=0.0, min_rounds=7)["a"]) == 5
    assert len(interleaved({"a": lambda: None}, rounds=5, seconds=1e9)["a"]) == 5


def test_the_ratio_is_taken_round_by_round():
    assert median_ratio([2, 9, 4], [1, 3, 1]) == 3


def test_figures_are_those_of_the_times(bundle, network, monkeypatch):
    times = {"bundle": [0.004, 0.001, 0.002, 0.003], "other": [0.002, 0.002, 0.002, 0.009]}
    monkeypatch.setattr(benchmarking, "interleaved", lambda runs, **_: times)
    report = benchmark(bundle, {"other": network.model}, batches=[4], threads=[1])
    own, other = report.latencies
    for entry in (own, other):
        measured = [1e3 * value for value in times[entry.model]]
        assert entry.p50_ms == pytest.approx(statistics.median(measured))
        assert entry.p90_ms == pytest.approx(statistics.quantiles(measured, n=10, method="inclusive")[8])
        assert entry.p99_ms == pytest.approx(statistics.quantiles(measured, n=100, method="inclusive")[98])
        assert entry.rows_per_s == pytest.approx(4 / statistics.median(times[entry.model]))
        assert (entry.batch, entry.threads, entry.rounds) == (4, 1, 4)
    assert own.bundle_speedup == 1
    assert other.bundle_speedup == pytest.approx(statistics.median([0.5, 2, 1, 3]))


def test_every_combination_is_measured_and_heard_of(bundle, network):
    heard, numbers = [], count()
    report = benchmark(
        bundle,
        {"other": network.model},
        batches=[1, 5],
        threads=[1, 2],
        seconds=0.01,
        progress=lambda done, total: heard.append((next(numbers), done, total)),
    )
    assert heard == [(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 4, 4)]
    combinations = [(threads, batch, model) for threads in (1, 2) for batch in (1, 5) for model in ("bundle", "other")]
    assert [(entry.threads, entry.batch, entry.model) for entry in report.latencies] == combinations
    assert all(0 < entry.p50_ms <= entry.p90_ms <= entry.p99_ms and entry.rounds >= 10 for entry in report.latencies)
    sizes = {entry.model: entry.file_bytes for entry in report.footprints}
    assert sizes == {"bundle": bundle.onnx_path.stat().st_size, "other": len(network.model)}
    assert report.to_dict()["model_sha256"] == bundle.sha256


@pytest.mark.parametrize(
    "settings",
    [{"batches": []}, {"batches": [0]}, {"threads": [-1]}, {"seconds": 0}, {"seconds": float("nan")}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(bundle, settings):
    with pytest.raises(UsageError):
        benchmark(bundle, {}, **settings)


@needs_proc
def test_memory_is_that_of_the_model_alone(tmp_path):
    ballast = np.ones(30_000_000)  # of this process, which must not be counted
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    small.write_bytes(linear_model(16))
    large.write_bytes(linear_model(400_000))
    little, much = (measure_peak_memory(path, batch=1, threads=1) for path in (small, large))
    assert little.peak < ballast.nbytes
    assert much.of_model - little.of_model > 0.9 * large.stat().st_size


@needs_proc
def test_a_file_that_cannot_run_is_an_error(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(BundleError, match="to load"):
        measure_peak_memory(path, batch=1, threads=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_static_quantization_runs_on_integers_and_computes_about_the_same():
    floats = linear_model(32)
    inputs = np.random.default_rng(1).normal(size=(64, 1, 8, 8)).astype(np.float32)
    quantized = static_quantization(floats, [{"image": inputs}])
    assert optimized_operators(quantized)["QGemm"] == 2
    assert float_operators(quantized) == {}
    expected, got = (OnnxRuntimeModel(model).run({"image": inputs})["logits"] for model in (floats, quantized))
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert not np.array_equal(got, expected)
