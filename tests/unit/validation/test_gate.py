"""Which reports pass which gates, and the sentences they get."""

from dataclasses import replace

import numpy as np
import pytest

from cpt_deploy.validation import (
    Accumulator,
    CpuInfo,
    PairResult,
    Portability,
    RecordedAccuracy,
    RuntimeResult,
    TensorResult,
    ValidationReport,
    layer_saturation,
    wilson_interval,
)
from cpt_deploy.validation.comparison import ServedLogits
from cpt_deploy.validation.gate import judge
from cpt_deploy.validation.report import DatasetFacts, Gate, GoldenFacts, GraphFacts


def report(**fields) -> ValidationReport:
    """1000 samples, 990 right when trained, 980 in onnxruntime, all integers equal."""
    whole = ValidationReport(
        bundle="network",
        model_sha256="0" * 64,
        content_sha256="2" * 64,
        dataset=DatasetFacts("digits", "test", "1" * 64, 1000, 1000),
        gate=Gate(None, require_exact=False),
        reasons=(),
        runtimes=(
            RuntimeResult("trained", wilson_interval(990, 1000), finite=True),
            RuntimeResult("onnxruntime", wilson_interval(980, 1000), finite=True),
        ),
        comparisons=(PairResult("trained", "onnxruntime", 0.5, 20, 15, 5, 0.04),),
        tensors=(TensorResult("a", "Conv", 100, 0, 0), TensorResult("b", "Add", 100, 0, 0)),
        golden=GoldenFacts(40, 0, 0),
        graph=None,
        saturation=(),
        cpu=CpuInfo("some", "x86_64", 2, ("avx2",)),
        versions={},
        validated_at="2026-11-24T00:00:00+00:00",
        notes=(),
    )
    return replace(whole, **fields)


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
    judged = judge(report(gate=Gate(allowed, require_exact=False)))
    assert judged.drop == pytest.approx(1.0)
    assert (judged.verdict, judged.passed) == (verdict, verdict == "passed")


def test_the_reason_names_both_accuracies_and_the_interval():
    (reason,) = judge(report(gate=Gate(0.1, require_exact=False))).reasons
    assert reason == (
        "accuracy dropped by 1.00 points (0.14 to 2.02), from 99.00% of the trained model to 98.00% in onnxruntime; "
        "at most 0.1 are allowed"
    )


def test_where_nothing_is_asked_a_drop_is_told_and_not_judged():
    judged = judge(report())
    assert judged.passed
    assert judged.non_inferiority.allowed == 0.005


def test_a_gain_is_no_drop():
    pair = PairResult("trained", "onnxruntime", 0.5, 20, 0, 20, 1e-6)
    judged = judge(report(comparisons=(pair,), gate=Gate(0, require_exact=False)))
    assert judged.non_inferiority.loss == pytest.approx(-0.02)
    assert judged.passed


def recorded(accuracy):
    return RecordedAccuracy(accuracy, 1000, "digits")


@pytest.mark.parametrize(("accuracy", "passed"), [(0.99, True), (0.9945, True), (0.984, False), (0.9961, False)])
def test_the_trained_model_has_to_do_as_its_report_says(accuracy, passed):
    judged = judge(report(recorded=recorded(accuracy)))
    assert judged.passed is passed
    assert passed or "99.00% right here" in judged.reasons[0]


@pytest.mark.parametrize(("accuracy", "passed"), [(0.98, True), (0.99, True), (0.999, False), (0.97, True)])
def test_without_the_run_a_loss_that_is_certain_since_its_report_fails(accuracy, passed):
    alone = report().runtimes[1:]
    judged = judge(report(runtimes=alone, comparisons=(), recorded=recorded(accuracy)))
    assert judged.passed is passed
    assert passed or "98.00% right, but the trained model got 99.90%" in judged.reasons[0]


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


def test_logits_that_are_served_have_to_be_the_executors():
    judged = judge(report(served_logits=ServedLogits(1000, 3, 0.25), gate=Gate(None, require_exact=True)))
    assert judged.reasons == ("3 of 1000 logits that are served are not the integer executor's (by up to 0.25)",)


def test_a_differing_integer_fails_exactness_and_the_first_tensor_is_named():
    judged = judge(report(tensors=DIFFERING, gate=Gate(None, require_exact=True)))
    assert judged.first_difference == DIFFERING[1]
    assert judged.reasons == ("4 of 209 integers differ, first in 'b', the result of Add (by up to 2)",)


@pytest.mark.parametrize("tensors", [None, ()])
def test_exactness_cannot_be_had_without_comparing(tensors):
    assert judge(report(tensors=tensors, gate=Gate(None, require_exact=True))).reasons == ("no integers were compared",)


def test_a_golden_sample_that_is_not_reproduced_fails_exactness():
    judged = judge(report(golden=GoldenFacts(40, 2, 1), gate=Gate(None, require_exact=True)))
    assert judged.reasons == ("2 of 40 output integers of the golden sample were not reproduced",)


def test_logits_that_are_not_finite_always_fail():
    runtimes = (RuntimeResult("onnxruntime", wilson_interval(980, 1000), finite=False),)
    assert judge(report(runtimes=runtimes)).reasons == ("onnxruntime returned logits that are not finite",)


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
    assert served.interval == (wilson_interval(980, 1000).low, wilson_interval(980, 1000).high)


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
