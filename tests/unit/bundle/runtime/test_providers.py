"""Execution providers: names, what is said where one is missing, and that a session computes on the one asked for.

A stand-in takes the place of an onnxruntime with GPU providers: it computes on the CPU and reports what it was asked
for.
"""

import ctypes.util
import json
import platform
import re

import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_cli.main import main
from cpt_deploy.bundle import OnnxRuntimeModel, require_evidence, update_validation
from cpt_deploy.bundle.runtime import providers
from cpt_deploy.bundle.runtime.providers import choose_provider, provider_name, provider_names
from cpt_deploy.errors import MissingExtraError, UsageError, ValidationFailedError

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class GpuSession(onnxruntime.InferenceSession):
    """A session that says it runs on what it was asked for."""

    asked: list[list[str]] = []  # noqa: RUF012  the tests look at it

    def __init__(self, model, options, providers):
        self.asked.append(providers)
        super().__init__(model, options, providers=[CPU])

    def get_providers(self):
        return self.asked[-1]


@pytest.fixture
def gpu(monkeypatch):
    """An onnxruntime with GPU providers; the value lists what its sessions were asked for."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", GpuSession)
    monkeypatch.setattr(providers, "_load_libraries", lambda module: None)
    monkeypatch.setattr(GpuSession, "asked", [])
    return GpuSession.asked


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("cpu", [CPU]),
        (CPU, [CPU]),
        ("cuda", [CUDA, CPU]),
        (CUDA, [CUDA, CPU]),
        ("tensorrt", [TENSORRT, CUDA, CPU]),
    ],
)
def test_what_a_provider_does_not_have_the_next_one_takes(gpu, provider, expected):
    assert provider_names(provider) == expected


def test_fallbacks_that_are_not_there_are_left_out(gpu, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CPU])
    assert provider_names("tensorrt") == [TENSORRT, CPU]


@settings(max_examples=20)
@given(st.text(max_size=20).filter(lambda name: provider_name(name) not in onnxruntime.get_all_providers()))
def test_a_provider_that_onnxruntime_does_not_know_is_a_usage_error(name):
    with pytest.raises(UsageError, match="execution provider") as caught:
        choose_provider(onnxruntime.SessionOptions(), name)
    assert CPU in str(caught.value.hint)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", CUDA, "ROCMExecutionProvider", "OpenVINOExecutionProvider"])
def test_a_known_provider_that_is_not_installed_says_what_to_install(shared_bundle, monkeypatch, provider):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(
        onnxruntime, "get_all_providers", lambda: [TENSORRT, CUDA, "ROCMExecutionProvider", "OpenVINOExecutionProvider"]
    )
    with pytest.raises(MissingExtraError, match=f"has {CPU}") as caught:
        OnnxRuntimeModel(shared_bundle.onnx_path, provider=provider)
    assert caught.value.exit_code == 3
    assert "install" in str(caught.value.hint)
    assert ("onnxruntime-gpu" in str(caught.value.hint)) == (provider_name(provider) in (CUDA, TENSORRT))


def test_a_provider_that_does_not_start_is_not_replaced_in_silence(shared_bundle, gpu, monkeypatch):
    monkeypatch.setattr(GpuSession, "get_providers", lambda self: [CPU])
    with pytest.raises(MissingExtraError, match=f"went on with {CPU}"):
        OnnxRuntimeModel(shared_bundle.onnx_path, provider="cuda")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "No such file"), (b"no library", "too short|invalid ELF|wrong ELF"), (b"", "too short|invalid ELF")],
    ids=["missing", "text", "empty"],
)
def test_a_library_that_cannot_be_loaded_is_one_line(capsys, shared_bundle, tmp_path, content, expected):
    library = tmp_path / "libplugin.so"
    if content is not None:
        library.write_bytes(content)
    for command in ("validate", "serve"):
        words = [command, str(shared_bundle.path), "--provider", f"MyProvider={library}"]
        assert main([*words, "--port", "0"] if command == "serve" else words) == 2
        error = capsys.readouterr().err.splitlines()
        assert re.search(rf"Expected a library with the execution provider 'MyProvider' at .*({expected})", error[0])
        assert len(error) == 2
        assert "NAME=PATH" in error[1]


def test_a_library_of_something_else_says_what_it_lacks():
    library = ctypes.util.find_library("m")
    if library is None:
        pytest.skip("no library to be found")
    options = onnxruntime.SessionOptions()
    with pytest.raises(UsageError, match=r"CreateEpFactories|cannot open"):
        choose_provider(options, f"MyProvider=/lib/{platform.machine()}-linux-gnu/{library}")


@pytest.fixture
def plugin(monkeypatch):
    """An onnxruntime into which libraries are loaded that bring nothing new; the value lists them."""
    loaded = []
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *library: loaded.append(library))
    monkeypatch.setattr(onnxruntime, "unregister_execution_provider_library", lambda name: loaded.pop())
    providers._plugin_devices.cache_clear()
    yield loaded
    providers._plugin_devices.cache_clear()


def test_a_provider_from_a_library_is_chosen_by_its_devices(plugin, shared_bundle, reference_codes, tmp_path):
    # onnxruntime's own provider for the processor, which has a device as those of libraries have.
    provider = f"{CPU}={tmp_path / 'libplugin.so'}"
    golden = shared_bundle.golden
    for _ in range(2):
        model = OnnxRuntimeModel(shared_bundle.onnx_path, provider=provider)
        assert model.reproduce_golden(golden).reproduced
    assert plugin == [(CPU, str(tmp_path / "libplugin.so"))]
    assert provider_name(provider) == CPU


def test_a_library_without_the_provider_says_what_there_is(plugin, tmp_path):
    for _ in range(2):
        with pytest.raises(UsageError, match=f"'MyProvider' and a device for it, but with it there are {CPU}"):
            choose_provider(onnxruntime.SessionOptions(), f"MyProvider={tmp_path / 'libplugin.so'}")
    assert plugin == []


@pytest.mark.parametrize(
    "command", [("validate",), ("benchmark",), ("serve", "--port", "0")], ids=lambda command: command[0]
)
def test_commands_without_the_provider_end_with_one_line(capsys, monkeypatch, shared_bundle, command):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    name, *options = command
    assert main([name, str(shared_bundle.path), "--provider", "cuda", *options]) == 3
    error = capsys.readouterr().err.splitlines()
    assert f"Expected an onnxruntime with the {CUDA}" in error[0]
    assert "onnxruntime-gpu" in error[-1]


def test_validate_without_data_runs_on_the_provider(capsys, gpu, shared_bundle):
    assert main(["validate", str(shared_bundle.path), "--provider", "cuda"]) == 0
    assert "12 of 12 output integers" in capsys.readouterr().out
    assert gpu == [[CUDA, CPU]]


def test_benchmark_names_the_provider(capsys, gpu, monkeypatch, shared_bundle):
    # The process that measures memory has no stand-in.
    monkeypatch.setattr(
        "cpt_deploy.validation.performance.benchmarking.measure_peak_memory", lambda path, **options: None
    )
    words = ["benchmark", str(shared_bundle.path), "--provider", "tensorrt", "--batch", "1", "--seconds", "0.01"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provider"] == TENSORRT
    assert gpu == [[TENSORRT, CUDA, CPU]]


def evidence_on(bundle, **provider):
    report = {
        "content_sha256": bundle.content_sha256,
        "verdict": "passed",
        "passed": True,
        "reasons": [],
        "dataset": {"name": "digits", "samples": 3},
        "metric": {"name": "accuracy", "higher_is_better": True, "percent": True},
        "runtimes": [],
        "integers": None,
        "validated_at": "2026-01-01T00:00:00+00:00",
    }
    return update_validation(bundle, {**report, **provider})


def test_evidence_vouches_for_the_provider_that_was_measured(bundle):
    old = evidence_on(bundle)  # evidence that names none is of a CPU
    assert require_evidence(old).provider == CPU
    with pytest.raises(ValidationFailedError, match=CUDA) as caught:
        require_evidence(old, "cuda")
    assert "--provider cuda" in str(caught.value.hint)
    new = evidence_on(bundle, provider=CUDA)
    assert require_evidence(new, "cuda").provider == CUDA
    with pytest.raises(ValidationFailedError, match=CPU):
        require_evidence(new)
