"""Which reports pass which gates, and the sentences they get."""

from dataclasses import replace

import numpy as np
import pytest

from cpt_deploy.bundle.golden import GoldenCheck
from cpt_deploy.metric import ACCURACY
from cpt_deploy.validation import (
    Accumulator,
    Accuracy,
    CpuInfo,
    PairResult,
    Portability,
    RuntimeResult,
    Scores,
    TensorResult,
    ValidationReport,
    layer_saturation,
    wilson_interval,
)
from cpt_deploy.validation.facts import DatasetFacts, FloatFacts, Gate, GraphFacts, RecordedFacts
from cpt_deploy.validation.gate import judge
from cpt_deploy.validation.integers.comparison import ServedOutputs

SERVED_INTERVAL = (wilson_interval(980, 1000).low, wilson_interval(980, 1000).high)


def report(**fields) -> ValidationReport:
    """1000 samples, 990 right when trained, 980 in onnxruntime, all integers equal."""
    whole = ValidationReport(
        bundle="network",
        task="image-classification",
        metric=ACCURACY,
        drop_unit="points",
        model_sha256="0" * 64,
        content_sha256="2" * 64,
        dataset=DatasetFacts("digits", "test", "1" * 64, 1000, 1000, "images"),
        gate=Gate(None, require_exact=False),
        reasons=(),
        runtimes=(
            RuntimeResult("trained", 0.99, None, finite=True),
            RuntimeResult("onnxruntime", 0.98, SERVED_INTERVAL, finite=True),
        ),
        comparisons=(PairResult("trained", "onnxruntime", 0.5, 30, 20),),
        tensors=(TensorResult("a", "Conv", 100, 0, 0), TensorResult("b", "Add", 100, 0, 0)),
        golden=GoldenCheck(40, 0, 0, True),
        graph=None,
        saturation=(),
        cpu=CpuInfo("some", "x86_64", 2, ("avx2",)),
        versions={},
        validated_at="2026-11-24T00:00:00+00:00",
        notes=(),
    )
    return replace(whole, **fields)


def judged_drop(allowed, only_trained=15, only_served=5) -> ValidationReport:
    """Judge scores of 1000 answers, of which some only the trained model, or only the served one, gets right."""
    right, rest = 980 - only_trained, 1000 - 980 - only_served
    parts = [(1, 1, right), (1, 0, only_trained), (0, 1, only_served), (0, 0, rest)]
    trained, served = (
        np.repeat([float(part[place]) for part in parts], [part[2] for part in parts]) for place in range(2)
    )
    targets = np.zeros(1000)
    scores = [Scores([values], [targets]) for values in (trained, served)]
    verdict = Accuracy().judge(*scores, 0.5 if allowed is None else allowed)
    return judge(report(gate=Gate(allowed, require_exact=False), non_inferiority=verdict))


DIFFERING = (
    TensorResult("a", "Conv", 100, 0, 0),
    TensorResult("b", "Add", 100, 3, 2),
    TensorResult("c", "Gemm", 9, 1, 1),
)


def test_a_report_without_demands_passes():
    assert judge(report(tensors=DIFFERING)).passed


@pytest.mark.parametrize(
    ("allowed", "verdict"), [(0.0, "failed"), (0.1, "failed"), (0.5, "undecided"), (1.0, "undecided"), (2.1, "passed")]
)
def test_a_drop_is_judged_by_its_interval(allowed, verdict):
    # of 15 against 5 answers in 1,000 Tango's interval is 0.14 to 2.02 points
    judged = judged_drop(allowed)
    assert judged.drop == pytest.approx(1.0)
    assert (judged.verdict, judged.passed) == (verdict, verdict == "passed")


def test_the_reason_names_both_accuracies_and_the_interval():
    (reason,) = judged_drop(0.1).reasons
    assert reason == (
        "accuracy dropped by 1.00 points (0.14 to 2.02), from 99.00 % of the trained model to 98.00 % in onnxruntime; "
        "at most 0.1 points are allowed"
    )


def test_where_nothing_is_asked_a_drop_is_told_and_not_judged():
    judged = judged_drop(None)
    assert judged.passed
    assert judged.non_inferiority.allowed == 0.5


def test_a_gain_is_no_drop():
    judged = judged_drop(0, only_trained=0, only_served=20)
    assert judged.non_inferiority.loss == pytest.approx(-2)
    assert judged.passed


@pytest.mark.parametrize(("accuracy", "passed"), [(0.99, True), (0.9945, True), (0.984, False), (0.9961, False)])
def test_the_trained_model_has_to_do_as_its_report_says(accuracy, passed):
    assert Accuracy().remeasured_differs(accuracy, 0.99, 1000) is not passed
    judged = judge(report(recorded=RecordedFacts(accuracy, 1000, 0.99, differs=not passed)))
    assert judged.passed is passed
    assert passed or "the trained model has accuracy 99.00 % here" in judged.reasons[0]


@pytest.mark.parametrize(("accuracy", "passed"), [(0.98, True), (0.99, True), (0.999, False), (0.97, True)])
def test_without_the_run_a_loss_that_is_certain_since_its_report_fails(accuracy, passed):
    served = Scores([np.repeat([1.0, 0.0], [980, 20])], [np.zeros(1000)])
    lost = Accuracy().certain_loss(accuracy, 1000, served)
    assert (lost is None) is passed
    recorded = RecordedFacts(accuracy, 1000, None, differs=lost is not None, lost=lost)
    judged = judge(report(runtimes=report().runtimes[1:], comparisons=(), recorded=recorded))
    assert judged.passed is passed
    assert passed or "98.00 %, but the trained model had 99.90 %" in judged.reasons[0]


def test_contradictions_always_fail():
    assert judge(report(contradictions=("labels.txt is not as in the run",))).reasons == (
        "labels.txt is not as in the run",
    )


@pytest.mark.parametrize(("provider", "passed"), [("CPUExecutionProvider", False), ("CUDAExecutionProvider", True)])
def test_operators_in_float_that_were_not_announced_fail_on_the_cpu(provider, passed):
    graph = GraphFacts({"Conv": 2}, {"Conv": 2}, {"Conv": 1})
    judged = judge(report(graph=graph, provider=provider))
    assert judged.passed is passed
    assert passed or judged.reasons == ("onnxruntime computes 1 Conv in float, which was not announced at export",)


@pytest.mark.parametrize(("far", "passed"), [(1, True), (2, False)])
def test_operators_in_float_with_another_meaning_fail(far, passed):
    boundaries = (TensorResult("a", "QuantizeLinear", 500, 0, 1), TensorResult("b", "QuantizeLinear", 1000, far, 90))
    judged = judge(report(float_parts=FloatFacts({"gelu": 1}, 100, 10, "gelu", (), boundaries)))
    assert judged.passed is passed
    assert passed or judged.reasons == (
        "onnxruntime computes the operations in float before 'b' otherwise than PyTorch: 2 of 1000 quantized values "
        "differ by more than 2 (by up to 90)",
    )


def test_logits_that_are_served_have_to_be_the_executors():
    judged = judge(report(served_outputs=ServedOutputs(1000, 3, 0.25), gate=Gate(None, require_exact=True)))
    assert judged.reasons == ("3 of 1000 output values that are served are not the integer executor's (by up to 0.25)",)


def test_a_differing_integer_fails_exactness_and_the_first_tensor_is_named():
    judged = judge(report(tensors=DIFFERING, gate=Gate(None, require_exact=True)))
    assert judged.first_difference == DIFFERING[1]
    assert judged.reasons == ("4 of 209 integers differ, first in 'b', the result of Add (by up to 2)",)


@pytest.mark.parametrize("tensors", [None, ()])
def test_exactness_cannot_be_had_without_comparing(tensors):
    assert judge(report(tensors=tensors, gate=Gate(None, require_exact=True))).reasons == ("no integers were compared",)


def test_a_golden_sample_that_is_not_reproduced_fails_exactness():
    judged = judge(report(golden=GoldenCheck(40, 2, 1, True), gate=Gate(None, require_exact=True)))
    assert judged.reasons == ("2 of 40 output integers of the golden sample were not reproduced",)


def test_logits_that_are_not_finite_always_fail():
    runtimes = (RuntimeResult("onnxruntime", 0.98, SERVED_INTERVAL, finite=False),)
    assert judge(report(runtimes=runtimes)).reasons == ("onnxruntime returned outputs that are not finite",)


@pytest.mark.parametrize(("flags", "applies"), [(("avx2",), True), (("avx512_vnni",), False), (None, None)])
def test_the_report_says_whether_saturation_concerns_this_processor(flags, applies):
    import numpy as np

    layers = (layer_saturation("a", np.array([[100, 100]], np.int8), 8),)
    entry = report(saturation=layers, cpu=CpuInfo("some", "x86_64", 2, flags)).to_dict()["saturation"]
    assert entry["possible_without_vnni"] is True
    assert entry["applies_to_this_cpu"] is applies
    assert entry["layers"][0]["possible"] is True


def test_the_model_card_lists_the_served_accuracy_first():
    served, trained = report().evaluation_results()
    assert (served.runtime, served.value, served.samples) == ("onnxruntime", 0.98, 1000)
    assert (trained.runtime, trained.dataset, trained.split) == ("trained model", "digits", "test")
    assert served.interval == SERVED_INTERVAL


@pytest.mark.parametrize(("largest", "passed"), [(64, True), (65, False)])
def test_a_portable_bundle_must_not_be_able_to_saturate(largest, passed):
    layers = (
        layer_saturation("fine", np.zeros((2, 3), np.int8), 8),
        layer_saturation("conv", np.array([[64, largest]], np.int8), 8),
    )
    judged = judge(report(saturation=layers, portability=Portability(())))
    assert judged.passed is passed
    assert passed or "first 'conv'" in judged.reasons[0]
    assert judge(report(saturation=layers)).passed


def test_sums_that_int32_may_not_hold_fail():
    fits, large = Accumulator("conv", 2**31 - 1), Accumulator("fc", 2**31)
    assert judge(report(accumulators=(fits,))).passed
    judged = judge(report(accumulators=(fits, large)))
    assert not judged.passed
    assert "'fc' can reach 2,147,483,648" in judged.reasons[0]


def test_a_drop_that_cannot_be_judged_does_not_pass():
    demanded = report(gate=Gate(0.5, require_exact=False))
    (reason,) = judge(demanded).reasons
    assert "cannot be judged" in reason
    alone = replace(demanded, runtimes=demanded.runtimes[1:])
    assert judge(alone).reasons == ()  # nothing to compare with


def test_a_metric_that_is_no_number_does_not_pass():
    nothing = RuntimeResult("onnxruntime", float("nan"), None, finite=True)
    (reason,) = judge(report(runtimes=(report().runtimes[0], nothing))).reasons
    assert "not a finite number" in reason
