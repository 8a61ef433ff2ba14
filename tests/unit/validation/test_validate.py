"""The whole gate on a small bundle: agreement, every kind of disagreement, and requests that make no sense."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel, update_validation
from cpt_deploy.errors import DataError, MissingExtraError, UsageError
from cpt_deploy.tasks.image_classification.samples import image_samples
from cpt_deploy.validation import Reference
from cpt_deploy.validation.integers.comparison import ServedOutputs

NOBODY = lambda inputs: inputs  # noqa: E731


@pytest.fixture
def trained(bundle: Bundle):
    return OnnxRuntimeModel(bundle.onnx_path).run


def test_a_model_that_agrees_everywhere_passes_every_gate(validated, bundle, images, echo, trained):
    report = validated(bundle, images, trained=trained, integer_model=echo, max_drop=5, require_exact=True)
    assert report.passed
    assert report.reasons == report.notes == ()
    assert [runtime.name for runtime in report.runtimes] == [
        "trained",
        "executor",
        "onnxruntime",
        "onnxruntime-unoptimized",
    ]
    assert report.runtime("onnxruntime").value == (150 - 38) / 150
    assert report.mismatching_integers == 0
    assert report.golden.mismatches == 0
    assert report.served_outputs == ServedOutputs(450, 0, 0.0)
    # With no answer that differs Tango's interval is that of a share of 0 by Wilson: +- z^2 / (n + z^2).
    verdict = report.non_inferiority
    assert (verdict.state, verdict.loss) == ("passed", 0.0)
    assert verdict.high == -verdict.low == pytest.approx(100 * 3.8415 / 153.8415, abs=1e-3)


def test_too_few_samples_are_undecided_and_say_how_many_more_it_takes(validated, bundle, images, echo, trained):
    report = validated(bundle, images, trained=trained, integer_model=echo, max_drop=0.5)
    assert (report.verdict, report.passed, report.reasons) == ("undecided", False, ())
    assert "about 620 more images are needed" in report.undecided[0]  # z^2 / (n + z^2) < 0.005 from 765 on
    allowed = validated(bundle, images, trained=trained, integer_model=echo, max_drop=0.5, allow_undecided=True)
    assert (allowed.verdict, allowed.passed) == ("undecided", True)
    assert allowed.to_dict()["verdict"] == "undecided"


def test_every_integer_of_every_edge_is_compared_on_every_sample(validated, bundle, images, echo, network):
    report = validated(bundle, images, integer_model=echo)
    assert echo.samples == 150
    assert [tensor.name for tensor in report.tensors] == list(network.tensors)
    sizes = {"x": 64, "a": 256, "b": 256, "sum": 256, "mean": 4, "flat": 4, "y": 3}
    assert {tensor.name: tensor.values for tensor in report.tensors} == {name: 150 * n for name, n in sizes.items()}


def test_the_first_differing_tensor_is_named(validated, bundle, images, echo):
    def change(codes):
        codes["b"][0, 0, 0, 0] ^= 2
        codes["sum"][:, 1] ^= 1

    echo.change = change
    report = validated(bundle, images, integer_model=echo, require_exact=True)
    assert (report.first_difference.name, report.first_difference.operator) == ("b", "Conv")
    by_name = {tensor.name: tensor for tensor in report.tensors}
    # Three batches: 64 + 64 + 22 samples.
    assert (by_name["b"].mismatches, by_name["b"].worst_difference) == (3, 2)
    assert (by_name["sum"].mismatches, by_name["sum"].worst_difference) == (150 * 64, 1)
    assert by_name["a"].mismatches == 0
    assert len(report.reasons) == 1


def test_a_drop_in_accuracy_fails_and_is_tested_for_significance(validated, bundle, images, echo):
    # A trained model that is right on all samples, where the served one is wrong on 38.
    served = OnnxRuntimeModel(bundle.onnx_path).run
    seen = iter(range(0, 150, 64))

    def perfect(inputs):
        start = next(seen)
        logits = np.zeros_like(served(inputs)["logits"])
        logits[np.arange(len(logits)), images.labels[start : start + len(logits)]] = 1
        return {"logits": logits}

    report = validated(bundle, images, trained=perfect, integer_model=echo, max_drop=15)
    pair = next(pair for pair in report.comparisons if (pair.first, pair.second) == ("trained", "onnxruntime"))
    assert report.drop == pytest.approx(100 * 38 / 150)
    assert pair.other_answers == 38
    assert pair.figures == {"only_first_right": 38, "only_second_right": 0, "p_value": pytest.approx(2 * 0.5**38)}
    assert len(report.reasons) == 1
    assert "25.33 points" in report.reasons[0]


def test_optimized_and_unoptimized_onnxruntime_are_compared(validated, bundle, images, echo):
    report = validated(bundle, images, integer_model=echo)
    pair = next(pair for pair in report.comparisons if pair.first == "onnxruntime-unoptimized")
    inputs = bundle.processor.inputs([images.image(i) for i in range(150)])
    one, other = (OnnxRuntimeModel(bundle.onnx_path, optimize=each).run(inputs)["logits"] for each in (True, False))
    assert pair.worst_difference == pytest.approx(np.abs(one - other).max(), abs=1e-6)


def test_a_limit_takes_samples_spread_over_the_whole_set(validated, bundle, images, echo):
    asked = []

    class Watched(type(images)):
        def image(self, index: int, /) -> np.ndarray:
            asked.append(index)
            return super().image(index)

    report = validated(bundle, Watched(images.labels), integer_model=echo, limit=4)
    assert asked == [0, 37, 75, 112]
    assert (report.dataset.samples, report.dataset.size) == (4, 150)


def test_a_limit_beyond_the_set_takes_all(validated, bundle, images):
    assert validated(bundle, images, integer_model=None, limit=1000).dataset.samples == 150


def test_the_report_names_the_execution_provider(validated, bundle, images, echo):
    report = validated(bundle, images, integer_model=echo, provider="CPUExecutionProvider", require_exact=True, limit=3)
    assert report.passed
    assert report.to_dict()["provider"] == "CPUExecutionProvider"
    assert report.graph is not None


def test_where_the_graph_is_compiled_its_operators_are_not_listed(validated, bundle, images, echo, monkeypatch):
    for name in (
        "validate",
        "integers.intermediate_outputs",
    ):  # as modules: the package has a function of the first one's name
        module = importlib.import_module(f"cpt_deploy.validation.{name}")
        monkeypatch.setattr(module, "keeps_operators", lambda provider: False)
    report = validated(bundle, images, integer_model=echo, limit=3)
    assert report.graph is None
    assert any("compiles the graph" in note for note in report.notes)
    assert {tensor.name for tensor in report.tensors} >= {"x", "a", "b", "sum", "y"}


def test_without_an_integer_model_no_integers_are_compared(validated, bundle, images):
    report = validated(bundle, images, integer_model=None)
    assert report.tensors is None
    assert report.passed
    assert report.to_dict()["integers"] is None
    assert [runtime.name for runtime in report.runtimes] == ["onnxruntime", "onnxruntime-unoptimized"]


def test_tensors_that_only_one_side_has_are_noted(validated, bundle, images, echo):
    def change(codes):
        codes["extra"] = codes.pop("sum")

    echo.change = change
    report = validated(bundle, images, integer_model=echo)
    assert "sum" not in [tensor.name for tensor in report.tensors]
    assert report.notes == ("2 quantized tensors (sum, extra) exist only in one of integer model and ONNX graph",)


def test_the_reporter_hears_of_every_batch(validated, bundle, images):
    heard = []

    class Reporter:
        def advance(self, done: int, total: int) -> None:
            heard.append((done, total))

    validated(bundle, images, integer_model=None, reporter=Reporter())
    assert heard == [(64, 150), (128, 150), (150, 150)]


def test_the_report_is_json_and_goes_into_the_bundle(
    validated, bundle_contents, tmp_path, bundle, images, echo, trained
):
    from cpt_deploy.bundle import write_bundle

    report = validated(bundle, images, trained=trained, integer_model=echo)
    fields = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert fields["passed"] is True
    assert fields["drop"] == 0
    assert fields["integers"] == {"compared": 150 * 843, "mismatching": 0, "first_difference": None}
    assert fields["graph"]["float_operators"] == {}
    assert fields["dataset"]["sha256"] == "0" * 64
    assert fields["versions"]["onnxruntime"]
    other = write_bundle(tmp_path / "other", contents=bundle_contents())
    updated = update_validation(other, report.to_dict(), report.evaluation_results())
    assert updated.validation == fields
    assert "onnxruntime" in (other.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 0.1}, "trained model"),
        ({"max_drop": -1, "trained": NOBODY}, "max_drop"),
        ({"max_drop": float("nan"), "trained": NOBODY}, "max_drop"),
        ({"require_exact": True, "integer_model": None}, "integer model"),
    ],
    ids=["no reference", "negative", "nan", "nothing to compare"],
)
def test_requests_that_cannot_be_judged_are_refused(validated, bundle, images, settings, message):
    with pytest.raises(UsageError, match=message):
        validated(bundle, images, **settings)


def test_a_trained_model_with_other_labels_is_a_contradiction(validated, bundle, images):
    other = ImageProcessor(replace(bundle.processor.preprocessing, std=(0.5,)), ("zero", "one", "three"))
    samples = image_samples(images.with_classes(*other.labels), other)
    reference = Reference(OnnxRuntimeModel(bundle.onnx_path).run, other, samples)
    report = validated(bundle, images, trained=reference, integer_model=None)
    assert "labels.txt is not as in the run: 'two' instead of 'three'" in report.reasons
    assert any("std is [0.25] instead of [0.5]" in reason for reason in report.reasons)


def test_a_trained_model_with_more_outputs_is_scored_and_not_compared(validated, bundle, images):
    def ten(inputs):
        return {"logits": np.eye(10, dtype=np.float32)[np.full(len(inputs["image"]), 9)]}

    report = validated(bundle, images, trained=ten, integer_model=None, max_drop=5)
    assert report.runtime("trained").value == 0
    assert report.output_pairs.first_values == ()


@pytest.mark.parametrize("classes", [("zero", "one"), ("two", "one", "zero")], ids=["fewer", "reordered"])
def test_a_data_set_of_other_classes_is_refused(validated, bundle, images, classes):
    with pytest.raises(DataError, match="classes"):
        validated(bundle, images.with_classes(*classes), integer_model=None)


def test_renamed_classes_are_noted(validated, bundle, images):
    report = validated(bundle, images.with_classes("null", "eins", "zwei"), integer_model=None)
    assert len(report.notes) == 1
    assert "'null' for 'zero'" in report.notes[0]


def test_without_onnx_and_torch_the_rest_is_measured_and_the_gap_noted(validated, bundle, images, monkeypatch):
    for package in ("onnx", "torch"):
        monkeypatch.setitem(sys.modules, package, None)
    report = validated(bundle, images)
    assert report.graph is None
    assert report.tensors is None
    assert len(report.notes) == 2
    assert report.saturation


@pytest.mark.parametrize("package", ["onnx", "torch"])
def test_exactness_without_a_package_that_it_needs_asks_for_it(validated, bundle, images, echo, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        validated(bundle, images, integer_model=echo if package == "onnx" else "bundled", require_exact=True)
    assert "'.[train]'" in caught.value.hint


def test_a_report_can_be_varied_but_not_changed(validated, bundle, images):
    report = validated(bundle, images, integer_model=None, limit=3)
    assert replace(report, reasons=("no",)).passed is False
    with pytest.raises(AttributeError):
        report.reasons = ("no",)


def test_validating_without_the_executor_loads_no_torch(bundle):
    code = (
        "import sys, numpy as np\n"
        "from cpt_deploy.bundle import Bundle\n"
        "from cpt_deploy.validation import Accuracy, Batch, Samples, validate\n"
        "batch = Batch({'image': np.zeros((3, 1, 8, 8), np.float32)}, np.zeros(3, np.int64))\n"
        "samples = Samples('noise', 'test', '', 3, 3, lambda: iter([batch]))\n"
        "validate(Bundle.open(sys.argv[1]), samples, Accuracy(), integer_model=None)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle.path)], check=True)
