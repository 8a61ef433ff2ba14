"""Quantized files of other tools by the commands of a user: inspect, validate, serve; and bundles of tensors."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cpt_cli.main import main
from cpt_deploy.bundle import Bundle, read_evidence, require_evidence
from tests.unit.onnx_graph.reading.networks import Network
from tests.unit.validation.onnx_files.conftest import constant, float_network, images, model_of, quantize, value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float file, what onnxruntime's quantizer makes of it, and inputs."""
    path = tmp_path_factory.mktemp("other-tools")
    onnx.save(float_network(), path / "float.onnx")
    quantize(path / "float.onnx", path / "quantized.onnx")
    np.savez(path / "inputs.npz", image=images(12), labels=np.zeros(12, np.int64))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    ended = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert ended == code, printed
    return printed.out, printed.err


def test_findings_are_no_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "inspect", folder / "quantized.onnx")
    assert "saturation" in out
    assert "100.00 % of the multiply-accumulates, 3 of 3 layers" in out
    assert f"cpt validate {folder / 'quantized.onnx'}" in err
    found = json.loads(run(capsys, "inspect", folder / "quantized.onnx", "--json")[0])
    assert [finding["rule"] for finding in found["findings"]] == ["saturation"]
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["N", 3, 8, 8]}]
    assert not found["portable"]


def test_a_float_file_is_inspected_and_not_validated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unquantized" in run(capsys, "inspect", folder / "float.onnx")[0]
    assert "nothing in float.onnx" in run(capsys, "validate", folder / "float.onnx", code=2)[1]


def test_a_quantized_file_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["validate", folder / "quantized.onnx", "--data", folder / "inputs.npz", "--float", folder / "float.onnx"]
    found = json.loads(run(capsys, *words, "--json")[0])
    assert found["verdict"] == "passed"
    assert found["served"]["compared"] > 12 * 3 * 64
    assert found["served"]["mismatching"] == 0
    assert found["rows"] == 12
    assert found["latency"]["speedup"] > 0
    written = json.loads((folder / "quantized.onnx.validation.json").read_text(encoding="utf-8"))
    assert written["served"] == found["served"]
    page = (folder / "quantized.onnx.validation.html").read_text(encoding="utf-8")
    assert "Validation of quantized.onnx" in page
    assert "Passed" in page
    out, err = run(capsys, "validate", folder / "quantized.onnx", "--html", folder / "page.html")
    assert "passed" in out
    assert "inputs were random" in err
    assert (folder / "page.html").is_file()


def test_an_input_without_dimensions_is_given_to_each_call(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(folder / "quantized.onnx")
    model.graph.input.append(value("temperature", []))
    model.graph.node.append(helper.make_node("Div", ["y", "temperature"], ["scaled"], "scale"))
    model.graph.output[0].name = "scaled"
    onnx.save(model, tmp_path / "scaled.onnx")
    np.savez(tmp_path / "inputs.npz", image=images(12), temperature=np.float32(2), labels=np.zeros(12, np.int64))
    for words in ([], ["--data", tmp_path / "inputs.npz"]):
        found = json.loads(run(capsys, "validate", tmp_path / "scaled.onnx", *words, "--json")[0])
        assert found["verdict"] == "passed"
        assert found["served"]["mismatching"] == 0
    assert found["rows"] == 12
    assert found["accuracy"]["trials"] == 12


def test_a_file_whose_sums_overflow_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], "quantize"),
        helper.make_node("MatMulInteger", ["q", "b"], ["y"], "product"),
    ]
    constants = [constant("b", np.full((70_000, 1), 127), np.int8), constant("s", 0.1), constant("z", 0, np.uint8)]
    outputs = [value("y", [1, 1], TensorProto.INT32)]
    onnx.save(model_of(nodes, [value("a", [1, 70_000])], outputs, constants), tmp_path / "long.onnx")
    assert "which int32 does not hold" in run(capsys, "validate", tmp_path / "long.onnx", code=4)[1]


@pytest.mark.parametrize("option", [("--max-drop", 1), ("--provider", "cuda"), ("--allow-undecided",)])
def test_options_of_bundles_are_refused(folder: Path, option: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"Expected no {option[0]}" in run(capsys, "validate", folder / "quantized.onnx", *option, code=2)[1]


def test_missing_and_damaged_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is nothing" in run(capsys, "inspect", folder / "none.onnx", code=5)[1]
    (folder / "text.onnx").write_text("text")
    assert "damaged or of another kind" in run(capsys, "inspect", folder / "text.onnx", code=5)[1]
    words = ["validate", folder / "quantized.onnx", "--data", folder / "none.npz"]
    assert "Expected a file .npz" in run(capsys, *words, code=5)[1]


def test_bundles_of_tensors_are_validated_on_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = Network(["N", 2, 16])
    x = network.op("Relu", network.op("Conv", "x", network.weight(8, 2, 3), network.weight(8), pads=[1, 1]))
    heads = network.op("Sigmoid", network.op("Conv", x, network.weight(3, 8, 1)))
    (tmp_path / "file.onnx").write_bytes(network.file(heads))
    rows = np.random.default_rng(0).normal(size=(20, 2, 16)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", x=rows)
    bundle = tmp_path / "bundle"
    run(capsys, "export", "--from", tmp_path / "file.onnx", "--data", tmp_path / "inputs.npz", "--out", bundle)
    out, _ = run(capsys, "validate", bundle, "--data", tmp_path / "inputs.npz")
    assert "passed" in out
    assert "SQNR in dB" in out
    evidence = read_evidence(require_evidence_of(bundle))
    assert evidence is not None
    assert evidence.samples == 20
    assert evidence.mismatching_integers == 0
    assert 20 < evidence.value < 100
    assert "nothing can saturate" in run(capsys, "inspect", bundle)[0]
    wrong = run(capsys, "validate", bundle, "--data", tmp_path / "none.npz", code=5)[1]
    assert "none.npz, but got: No such file or directory" in wrong


def require_evidence_of(path: Path) -> Bundle:
    bundle = Bundle.open(path)
    require_evidence(bundle)
    return bundle
