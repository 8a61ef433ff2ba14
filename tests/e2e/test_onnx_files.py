"""An ONNX file of any inputs and outputs: exported on a file of inputs, opened, checked and served."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cpt_cli.main import main
from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.integer import graph_from_bundle
from cpt_deploy.validation.integers.compare_integers import compare_integers
from tests.unit.onnx_graph.reading.networks import Network, run, sqnr
from tests.unit.serving.conftest import connect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of two heads, one behind operators that stay in float, and inputs of it."""
    path = tmp_path_factory.mktemp("foreign")
    network = Network(["N", 2, "length"])
    x = network.op("Relu", network.op("Conv", "x", network.weight(8, 2, 3), network.weight(8), pads=[1, 1]))
    marks = network.op("Sigmoid", network.op("Conv", x, network.weight(1, 8, 1), network.weight(1)))
    summed = network.op("Exp", network.op("ReduceMean", network.op("Tanh", x), axes=[2], keepdims=0))
    kind = network.op("Softmax", network.op("Gemm", summed, network.weight(3, 8), network.weight(3), transB=1))
    (path / "heads.onnx").write_bytes(network.file(marks, kind))
    rng = np.random.default_rng(0)
    np.savez(path / "inputs.npz", x=rng.normal(size=(24, 2, 40)).astype(np.float32))
    np.savez(path / "others.npz", y=np.zeros((3, 2, 40), np.float32))
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    words = ["export", "--from", folder / "heads.onnx", "--data", folder / "inputs.npz", "--out", folder / "bundle"]
    assert main([str(word) for word in words]) == 0
    return Bundle.open(folder / "bundle")


def test_the_bundle_holds_what_was_proven(bundle: Bundle, folder: Path) -> None:
    model = OnnxRuntimeModel(bundle.onnx_path, bundle.signature)
    assert model.reproduce_golden(bundle.golden).reproduced
    x = np.random.default_rng(1).normal(size=(3, 2, 25)).astype(np.float32)
    comparison = compare_integers(graph_from_bundle(bundle), bundle.onnx_path, {"x": x})
    assert comparison.mismatches == 0
    for wanted, got in zip(
        run((folder / "heads.onnx").read_bytes(), {"x": x}), model.run({"x": x}).values(), strict=True
    ):
        assert sqnr(wanted, got) > 25
    assert bundle.facts["portable"]
    assert bundle.facts["calibration_rows"] == 24
    assert "Tanh" in bundle.facts["computed_in_float"]


def test_the_bundle_is_served(bundle: Bundle, folder: Path) -> None:
    x = np.random.default_rng(2).normal(size=(2, 2, 10)).astype(np.float32)
    wanted = OnnxRuntimeModel(bundle.onnx_path, bundle.signature).run({"x": x})
    with connect(bundle) as client:
        answer = client.post("/predict", json={"inputs": {"x": x.tolist()}})
    assert answer.status_code == 200, answer.text
    for row, prediction in enumerate(answer.json()["predictions"]):
        for name, values in wanted.items():
            np.testing.assert_allclose(prediction[name], values[row], rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "others.npz"], "Expected arrays x in others.npz, but got y"),
        (["--data", "missing.npz"], "Expected arrays in"),
        (["--data", "inputs.npz", "--mean", "0.5"], "--mean with a data set of images only"),
        (["--data", "inputs.npz", "--act-bits", "4", "--activations", "symmetric"], "Expected activations of 8 bits"),
        (["--data", "inputs.npz", "--format", "pt2"], "Expected a network whose operators all have a PyTorch form"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [str(folder / word) if word.endswith(".npz") else word for word in words]
    assert main(["export", "--from", str(folder / "heads.onnx"), *typed, "--json"]) == 2 or "missing" in words[1]
    assert said in json.dumps(capsys.readouterr().err).replace("\\n", " ")


@pytest.mark.parametrize("words", [["--bits", "4"], ["--bits", "6", "--act-bits", "5"], ["--activations", "symmetric"]])
def test_fewer_bits_and_symmetric_activations_are_validated(
    folder: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(folder / "inputs.npz")
    out = str(tmp_path / "bundle")
    assert main(["export", "--from", str(folder / "heads.onnx"), "--data", data, *words, "--out", out]) == 0
    facts = Bundle.open(Path(out)).facts
    assert facts["weight_bits"] == (int(words[1]) if words[0] == "--bits" else 8)
    assert facts.get("activations") == ("symmetric" if words[0] == "--activations" else None)
    assert main(["validate", out, "--data", data]) == 0, capsys.readouterr().out


def test_a_model_without_a_batch_is_computed_call_by_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From an image (3, H, W) and a number to boxes, scores and labels of which as many remain as are likely."""
    network = Network([3, 16, 16])
    features = network.op("Relu", network.conv(network.op("Unsqueeze", "x", np.array([0])), 3, 8))
    values = network.conv(features, 8, 6, 1)
    rows = network.op("Transpose", network.op("Reshape", values, np.array([6, -1])), perm=[1, 0])
    scores = network.op(
        "Sigmoid", network.op("Squeeze", network.op("Slice", rows, *map(np.array, ([4], [5], [1]))), np.array([1]))
    )
    kept = network.op("Squeeze", network.op("NonZero", network.op("Greater", scores, np.float32(0.5))), np.array([0]))
    corners = network.op("Abs", network.op("Slice", rows, *map(np.array, ([0], [4], [1]))))
    ends = network.op("Add", network.op("Slice", corners, *map(np.array, ([0], [2], [1]))), np.float32(4))
    boxes = network.op("Concat", network.op("Slice", corners, *map(np.array, ([0], [2], [1]))), ends, axis=1)
    labels = network.op(
        "Cast",
        network.op(
            "Gather",
            network.op("Squeeze", network.op("Slice", rows, *map(np.array, ([5], [6], [1]))), np.array([1])),
            kept,
        ),
        to=7,
    )
    file = network.file(network.op("Gather", boxes, kept), network.op("Gather", scores, kept), labels)
    (tmp_path / "detector.onnx").write_bytes(file)
    images = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    made = tmp_path / "bundle"
    words = ["--from", str(tmp_path / "detector.onnx"), "--data", str(tmp_path / "x.npz")]
    assert main(["export", *words, "--out", str(made)]) == 0
    assert "each request will be computed by itself" in capsys.readouterr().err
    assert main(["validate", str(made), *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["integers"]["mismatching"] == 0
    assert report["dataset"]["samples"] == 5
    assert 0.5 < report["detection"]["mean_average_precision"] <= 1
    bundle = Bundle.open(made)
    with connect(bundle) as client:
        answer = client.post("/predict", json={"inputs": {"x": images[1].tolist()}})
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["predictions"]
    for name, values in OnnxRuntimeModel(bundle.onnx_path, bundle.signature).run({"x": images[1]}).items():
        np.testing.assert_allclose(prediction[name], values, rtol=1e-5)
    assert main(["predict", str(made), "--inputs", str(tmp_path / "x.npz"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 5


def test_rows_that_depend_on_each_other_are_not_joined(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Network(["N", 8])
    x = network.op("Gemm", "x", network.weight(4, 8), network.weight(4), transB=1)
    (tmp_path / "m.onnx").write_bytes(network.file(network.op("Softmax", x, axis=0)))
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32))
    assert main(["export", "--from", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "x.npz")]) == 0
    assert "depend on each other" in capsys.readouterr().err
    assert not Bundle.open(tmp_path / "m-bundle-8bit").signature.joins_rows


def two_of_the_batch(network: Network, x: str) -> str:
    """Return the first two rows, however many there are."""
    return network.op("Slice", x, *map(np.array, ([0], [2], [0])))


def less_the_mean(network: Network, x: str) -> str:
    return network.op("Sub", x, network.op("ReduceMean", x, axes=[0]))


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("operation", [two_of_the_batch, less_the_mean])
def test_rows_that_only_other_rows_give_away_are_not_joined(
    tmp_path: Path, operation: Callable[[Network, str], str], rows: int
) -> None:
    network = Network(["N", 8])
    x = network.op("Gemm", "x", network.weight(4, 8), network.weight(4), transB=1)
    (tmp_path / "m.onnx").write_bytes(network.file(operation(network, x)))
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32))
    assert main(["export", "--from", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "x.npz")]) == 0
    assert not Bundle.open(tmp_path / "m-bundle-8bit").signature.joins_rows


@pytest.mark.parametrize(("batch", "rows", "part"), [("N", 0, "Expected rows"), (4, 3, "the rows of a whole call")])
def test_too_few_rows_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: str | int, rows: int, part: str
) -> None:
    network = Network([batch, 8])
    x = network.op("Gemm", "x", network.weight(4, 8), network.weight(4), transB=1)
    (tmp_path / "m.onnx").write_bytes(network.file(less_the_mean(network, x)))
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32))
    assert main(["export", "--from", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "x.npz")]) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "m-bundle-8bit").exists()
