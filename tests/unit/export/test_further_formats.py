"""Bundles that hold a model in further formats, and what is refused."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from cpt_deploy.bundle import FORMATS, Bundle, ImageProcessor, OnnxRuntimeModel, Preprocessing, chosen_formats
from cpt_deploy.bundle.checksums import checksum_lines, read_checksums, verify_checksums
from cpt_deploy.errors import BundleError, ConversionError, UsageError
from cpt_deploy.export import ModelIdentity, export_bundle, further_formats
from cpt_deploy.export.programs import WRITERS, load_program
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare
from cpt_deploy.validation import Accuracy, Batch, Samples, ValidationReport, validate

PROCESSOR = ImageProcessor(
    Preprocessing(channels=1, size=(8, 8), mean=(0.5,), std=(0.5,)), tuple(f"class {i}" for i in range(10))
)
IDENTITY = ModelIdentity("net", "tiny", "image-classification", PROCESSOR)


def measured(bundle: Bundle, **settings: bool) -> ValidationReport:
    """Validate a bundle on noise with labels that no network can know."""
    inputs = np.random.default_rng(0).standard_normal((70, 1, 8, 8)).astype(np.float32)
    batch = Batch({"image": inputs}, np.arange(70) % 10)
    return validate(bundle, Samples("noise", "test", "0" * 64, 70, 70, lambda: iter([batch])), Accuracy(), **settings)


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    torch.manual_seed(0)
    network = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8))
    prepared = prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())
    calibrate(prepared, [torch.randn(8, 1, 8, 8) for _ in range(2)])
    return prepared.eval()


@pytest.fixture(scope="module")
def bundle(model: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    return export_bundle(model, path, IDENTITY, torch.randn(4, 1, 8, 8), formats=("torchscript", "pt2"))


def test_a_bundle_lists_and_checks_the_files_of_its_formats(bundle: Bundle) -> None:
    assert bundle.formats == tuple(FORMATS)
    assert {known.file for known in FORMATS.values()} <= set(verify_checksums(bundle.path))


def test_without_further_formats_a_bundle_is_what_it_was(model: QuantizedModel, tmp_path: Path) -> None:
    bundle = export_bundle(model, tmp_path / "bundle", IDENTITY, torch.randn(4, 1, 8, 8))
    assert bundle.formats == ("onnx", "safetensors")
    assert not {"model.pt2", "model.torchscript"} & {path.name for path in bundle.path.iterdir()}


def test_a_bundle_with_formats_is_replaced_as_any_other(model: QuantizedModel, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    again = export_bundle(model, tmp_path / "bundle", IDENTITY, torch.randn(4, 1, 8, 8), formats=("pt2",))
    assert again.formats == ("onnx", "safetensors", "pt2")


@pytest.mark.parametrize("kind", WRITERS)
def test_each_file_computes_what_model_onnx_computes(bundle: Bundle, kind: str) -> None:
    x = torch.randn(9, 1, 8, 8)
    logits = load_program(kind, bundle.path / FORMATS[kind].file)(x)
    assert np.array_equal(logits.numpy(), OnnxRuntimeModel(bundle.onnx_path).run({"image": x.numpy()})["logits"])


def test_validation_runs_every_format_on_the_same_samples(bundle: Bundle) -> None:
    report = measured(bundle, require_exact=True)
    assert report.passed
    assert [runtime.name for runtime in report.runtimes][-2:] == ["torchscript", "pt2"]
    assert report.runtime("pt2").value == report.runtime("onnxruntime").value
    compared = {pair.first: pair for pair in report.comparisons if pair.first in WRITERS}
    assert list(compared) == ["torchscript", "pt2"]
    assert {pair.other_values for pair in compared.values()} == {0}
    assert {"TorchScript", "torch.export program"} <= {result.runtime for result in report.evaluation_results()}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_of_another_network_fails_exactness(
    model: QuantizedModel, bundle: Bundle, tmp_path: Path, kind: str
) -> None:
    graph = freeze(model)
    entry, first, *others = graph.operations
    codes = first.codes.copy()
    codes.flat[np.abs(codes).argmax()] = 0
    other = replace(graph, operations=(entry, replace(first, codes=codes), *others))
    damaged = with_file(bundle, tmp_path / "bundle", FORMATS[kind].file, WRITERS[kind](other))
    report = measured(damaged, require_exact=True)
    assert len(report.reasons) == 1
    assert f"output values of {FORMATS[kind].file} differ from onnxruntime's" in report.reasons[0]
    assert report.mismatching_integers == 0
    assert measured(damaged).passed


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_pytorch_cannot_load_is_a_bundle_error(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    damaged = with_file(bundle, tmp_path / "bundle", FORMATS[kind].file, b"no program")
    with pytest.raises(BundleError, match=FORMATS[kind].file):
        measured(damaged)


def test_a_changed_file_is_not_opened(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    (copy / "model.pt2").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.pt2"):
        Bundle.open(copy)


def with_file(bundle: Bundle, path: Path, name: str, content: bytes) -> Bundle:
    """Copy a bundle with another file, and checksums that fit it."""
    copy = Path(shutil.copytree(bundle.path, path))
    (copy / name).write_bytes(content)
    sums = read_checksums(copy) | {name: hashlib.sha256(content).hexdigest()}
    (copy / "SHA256SUMS").write_text(checksum_lines(sums))
    return Bundle.open(copy)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_format_that_the_model_cannot_take_leaves_nothing_behind(model, tmp_path, monkeypatch, kind) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("operator not supported\nand a long explanation")

    monkeypatch.setattr(*{"torchscript": (torch.jit, "trace"), "pt2": (torch.export, "export")}[kind], refuse)
    with pytest.raises(ConversionError, match=r"operator not supported$") as caught:
        export_bundle(model, tmp_path / "bundle", IDENTITY, torch.randn(4, 1, 8, 8), formats=[kind])
    assert kind in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_kept(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(further_formats, "load_program", lambda kind, content: lambda x: torch.zeros(len(x), 10))
    with pytest.raises(ConversionError, match="40 of 40 values differ"):
        export_bundle(model, tmp_path / "bundle", IDENTITY, torch.randn(4, 1, 8, 8), formats=["pt2"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["onnx", "safetensors"]),
        (["onnx"], ["onnx", "safetensors"]),
        (["onnx,torchscript,pt2"], list(FORMATS)),
        (["pt2", "torchscript, pt2"], list(FORMATS)),
        (["pt2"], ["onnx", "safetensors", "pt2"]),
    ],
)
def test_formats_are_chosen_by_commas_or_repetition(words: list[str], names: list[str]) -> None:
    assert list(chosen_formats(words)) == names


class Recurrent(nn.Module):
    """A GRU over (N, T, 4), and scores of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.rnn(x)[0])
        return scores


@pytest.mark.parametrize("free", [False, True])
def test_recurrent_networks_of_a_fixed_length_are_programs_and_others_are_refused_with_the_reason(free: bool) -> None:
    shapes = {1: Dim("steps", min=1, max=99)} if free else None
    model = prepare(Recurrent(), torch.zeros(2, 5, 4), QuantizationConfig(), dynamic_shapes=shapes)
    calibrate(model, [torch.randn(4, 5, 4)])
    graph, inputs = freeze(model.eval()), {"image": torch.randn(3, 5, 4)}
    if not free:
        file = further_formats.write_formats(graph, ["pt2"], inputs)["pt2"]
        x = torch.randn(7, 5, 4)  # another batch size
        assert torch.equal(load_program("pt2", file)(x), IntegerExecutor(graph)(x))
        return
    for kind, reason in (
        ("pt2", "steps of recurrent layers are written one by one, but steps may vary"),
        ("torchscript", "TorchScript"),
    ):
        with pytest.raises(ConversionError, match=reason):
            further_formats.write_formats(graph, [kind], inputs)


@pytest.mark.parametrize("word", ["torch-script", "", "pt2,", "tflite"])
def test_unknown_formats_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="format"):
        chosen_formats([word])
