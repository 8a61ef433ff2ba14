"""The verdict on a report: the reasons why a bundle must not be served, as sentences."""

from dataclasses import replace
from math import isfinite

from cpt_deploy.bundle import FORMATS
from cpt_deploy.bundle.runtime.providers import CPU
from cpt_deploy.validation.accuracy.noninferiority import NonInferiority
from cpt_deploy.validation.integers.inside import A_FEW_CODES
from cpt_deploy.validation.integers.saturation import overflow_reasons, portability_reasons
from cpt_deploy.validation.onnx.constants import ConstantsResult
from cpt_deploy.validation.report import ValidationReport

MAX_FAR = 1e-3
"""Max share of the integers behind a float part that may differ by more than `A_FEW_CODES`: sorts and comparisons in
float decide ties by last digits."""


def judge(report: ValidationReport) -> ValidationReport:
    """Return the report with the reasons why it fails its gate, and the undecided questions.

    These always fail: outputs that are not finite, files that contradict each other or the run, constants that differ
    from the integer graph, sums that can overflow int32, unannounced operators in float, float parts that compute
    something else than PyTorch, and a portable bundle that can saturate. The metric and integers fail only if
    `report.gate` requires them.
    """
    checks = (
        _finite_reasons,
        _contradiction_reasons,
        _constant_reasons,
        _overflow_reasons,
        _operator_reasons,
        _float_reasons,
        _portability_reasons,
        _recorded_reasons,
        _drop_reasons,
        _exactness_reasons,
    )
    reasons = tuple(reason for check in checks for reason in check(report))
    return replace(report, reasons=reasons, undecided=tuple(_undecided(report)))


def _contradiction_reasons(report: ValidationReport) -> list[str]:
    return list(report.contradictions)


def _operator_reasons(report: ValidationReport) -> list[str]:
    # other providers keep operators in float that the CPU has integer kernels for
    if report.graph is None or report.provider != CPU:
        return []
    return operator_reasons(report.graph.unannounced)


def operator_reasons(unannounced: dict[str, int]) -> list[str]:
    """Return a reason if onnxruntime computes operators in float that export did not announce."""
    if not unannounced:
        return []
    named = ", ".join(f"{count} {name}" for name, count in unannounced.items())
    return [f"onnxruntime computes {named} in float, which was not announced at export"]


def _float_reasons(report: ValidationReport) -> list[str]:
    """Return a reason if a float part has another meaning in ONNX, naming the integers directly behind it."""
    boundaries = (report.float_parts and report.float_parts.boundaries) or ()
    for tensor in boundaries:
        if tensor.mismatches > MAX_FAR * tensor.values:
            return [
                f"onnxruntime computes the operations in float before {tensor.name!r} otherwise than PyTorch: "
                f"{tensor.mismatches} of {tensor.values} quantized values differ by more than {A_FEW_CODES} "
                f"(by up to {tensor.worst_difference})"
            ]
    return []


def _recorded_reasons(report: ValidationReport) -> list[str]:
    """Compare the metric recorded in training with that of the trained model here, or without it of the served model.

    Without the trained model only a certain loss counts: the scores of single samples are unknown.
    """
    recorded, text = report.recorded, report.metric.text
    if recorded is None or not recorded.differs:
        return []
    same = f"the same {recorded.samples:,} {report.dataset.unit}"
    if recorded.again is not None:
        return [
            f"the {report.reference} has {report.metric.title} {text(recorded.again)} here, but {text(recorded.value)} "
            f"on {same} by its own report"
        ]
    assert recorded.lost is not None
    low, high = recorded.lost
    return [
        f"onnxruntime has {report.metric.title} {text(report.runtime('onnxruntime').value)}, but the trained model had "
        f"{text(recorded.value)} on {same}: {low:.2f} to {high:.2f} {report.drop_unit} were lost"
    ]


def _constant_reasons(report: ValidationReport) -> list[str]:
    return constant_reasons(report.constants)


def constant_reasons(constants: ConstantsResult | None) -> list[str]:
    """Return a reason if constants of model.onnx differ from the integer graph, naming the first tensor."""
    if constants is None or not constants.differences:
        return []
    first, others = constants.differences[0], len(constants.differences) - 1
    more = f"; {others} more constant{'s' if others > 1 else ''} differ{'' if others > 1 else 's'}" if others else ""
    return [
        f"model.onnx is not what was exported: in tensor {first.tensor!r}, {first.differing} of {first.values} "
        f"{first.part} differ ({first.detail}){more}"
    ]


def _finite_reasons(report: ValidationReport) -> list[str]:
    outputs = [
        f"{runtime.name} returned outputs that are not finite" for runtime in report.runtimes if not runtime.finite
    ]
    if outputs:
        return outputs
    return [
        f"{report.metric.title} of {runtime.name} is {runtime.value}, not a finite number"
        for runtime in report.runtimes
        if not isfinite(runtime.value)
    ]


def _overflow_reasons(report: ValidationReport) -> list[str]:
    return overflow_reasons(report.accumulators)


def _portability_reasons(report: ValidationReport) -> list[str]:
    return portability_reasons(report.saturation, report.portability)


def _drop_reasons(report: ValidationReport) -> list[str]:
    verdict = report.non_inferiority
    if report.gate.max_drop is None:
        return []
    if verdict is None:
        if not any(runtime.name == "trained" for runtime in report.runtimes):
            return []
        return [
            f"whether {change(report)} cannot be judged: the {report.reference} and onnxruntime have no scores of the "
            "same samples"
        ]
    if verdict.state != "failed" and isfinite(verdict.loss):
        return []
    trained, served = (report.metric.text(report.runtime(name).value) for name in ("trained", "onnxruntime"))
    return [
        f"{change(report)} by {interval_in_units(verdict, report.drop_unit)}, from {trained} of the {report.reference} "
        f"to {served} in onnxruntime; at most {report.gate.max_drop:g} {report.drop_unit} are allowed"
    ]


def _undecided(report: ValidationReport) -> list[str]:
    verdict, unit = report.non_inferiority, report.drop_unit
    if report.gate.max_drop is None or verdict is None or verdict.state != "undecided":
        return []
    return [
        f"whether {change(report)} by more than {report.gate.max_drop:g} {unit} cannot be decided from "
        f"{verdict.samples:,} {report.dataset.unit}: it did so by {interval_in_units(verdict, unit)}; "
        f"{needed_samples(verdict, report.dataset.unit)}"
    ]


def change(report: ValidationReport) -> str:
    """Return the beginning of a sentence on the metric's change for the worse, as "accuracy dropped"."""
    return f"{report.metric.title} {'dropped' if report.metric.higher_is_better else 'rose'}"


def interval_in_units(verdict: NonInferiority, unit: str) -> str:
    """Return a difference with its interval, as "0.14 points (-0.36 to 0.64)"."""
    digits = 3 if max(abs(verdict.loss), abs(verdict.high)) < 0.1 else 2
    return f"{verdict.loss:.{digits}f} {unit} ({verdict.low:.{digits}f} to {verdict.high:.{digits}f})"


def needed_samples(verdict: NonInferiority, unit: str = "samples") -> str:
    """Return a phrase with the number of further samples that would decide."""
    if verdict.more_samples is None:
        return f"no number of {unit} like these would decide"
    return f"about {verdict.more_samples:,} more {unit} are needed"


def _exactness_reasons(report: ValidationReport) -> list[str]:
    if not report.gate.require_exact:
        return []
    reasons = []
    first = report.first_difference
    if not report.compared_integers:
        reasons.append("no integers were compared")
    if first is not None:
        reasons.append(
            f"{report.mismatching_integers} of {report.compared_integers} integers differ, "
            f"first in {first.name!r}, the result of {first.operator} (by up to {first.worst_difference})"
        )
    served, session = report.served_outputs, report.session_outputs
    if served is not None and served.differing:
        reasons.append(
            f"{served.differing} of {served.values} output values that are served are not the integer executor's"
            + ("" if served.worst is None else f" (by up to {served.worst:.3g})")
        )
    if session is not None and session.differing:
        reasons.append(
            f"{session.differing} of {session.values} output values that are served are not those of the session "
            "whose integers were compared"
        )
    for pair in report.comparisons:
        # with float parts, further formats correspond to the free-running executor, whose differences are only reported
        if pair.first in FORMATS and pair.other_values and report.float_parts is None:
            reasons.append(f"{pair.other_values} output values of {FORMATS[pair.first].file} differ from onnxruntime's")
    golden = report.golden
    if golden.mismatches:
        reasons.append(f"{golden.mismatches} of {golden.values} {golden.what} of the golden sample were not reproduced")
    return reasons
