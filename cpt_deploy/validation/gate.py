"""The verdict on a report: the reasons why a bundle must not be served, as sentences."""

from dataclasses import replace

from cpt_deploy.bundle import FORMATS
from cpt_deploy.bundle.runtime.providers import CPU
from cpt_deploy.validation.accuracy.noninferiority import MAX_DROP, NonInferiority, judge_pairs
from cpt_deploy.validation.accuracy.reference import differs_from_recorded, recorded_loss
from cpt_deploy.validation.integers.accumulators import overflow_reasons
from cpt_deploy.validation.integers.saturation import portability_reasons
from cpt_deploy.validation.onnx.constants import ConstantsResult
from cpt_deploy.validation.report import ValidationReport


def judge(report: ValidationReport) -> ValidationReport:
    """Return the report with the reasons why it fails its gate, and the undecided questions.

    These always fail: logits that are not finite, files that contradict each other or the run, constants that differ
    from the integer graph, sums that can overflow int32, unannounced operators in float, and a portable bundle that can
    saturate. Accuracy and integers fail only if `report.gate` requires them.
    """
    report = replace(report, non_inferiority=_non_inferiority(report))
    checks = (
        _finite_reasons,
        _contradiction_reasons,
        _constant_reasons,
        _overflow_reasons,
        _operator_reasons,
        _portability_reasons,
        _recorded_reasons,
        _drop_reasons,
        _exactness_reasons,
    )
    reasons = tuple(reason for check in checks for reason in check(report))
    return replace(report, reasons=reasons, undecided=tuple(_undecided(report)))


def _non_inferiority(report: ValidationReport) -> NonInferiority | None:
    """Judge the loss from the trained model to onnxruntime against the allowed drop, or else the default."""
    pair = next((pair for pair in report.comparisons if (pair.first, pair.second) == ("trained", "onnxruntime")), None)
    if pair is None:
        return None
    allowed = MAX_DROP if report.gate.max_drop is None else report.gate.max_drop
    return judge_pairs(pair.only_first_right, pair.only_second_right, report.dataset.samples, allowed / 100)


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


def _recorded_reasons(report: ValidationReport) -> list[str]:
    """Compare the accuracy recorded in training with that of the trained model here, or without it of the served model.

    Without the trained model only a certain loss counts: the answers to single samples are unknown, so the interval is
    wide.
    """
    recorded = report.recorded
    if recorded is None:
        return []
    if report.drop is not None:
        measured = report.runtime("trained").accuracy
        if not differs_from_recorded(recorded, measured):
            return []
        return [
            f"the {report.reference} gets {measured.value:.2%} right here, but {recorded.accuracy:.2%} of the same "
            f"{recorded.samples:,} samples by its own report"
        ]
    served = report.runtime("onnxruntime").accuracy
    low, high = recorded_loss(recorded, served)
    if 100 * low <= MAX_DROP:
        return []
    return [
        f"onnxruntime gets {served.value:.2%} right, but the trained model got {recorded.accuracy:.2%} of the same "
        f"{recorded.samples:,} samples: {100 * low:.2f} to {100 * high:.2f} points were lost"
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
    return [f"{runtime.name} returned logits that are not finite" for runtime in report.runtimes if not runtime.finite]


def _overflow_reasons(report: ValidationReport) -> list[str]:
    return overflow_reasons(report.accumulators)


def _portability_reasons(report: ValidationReport) -> list[str]:
    return portability_reasons(report.saturation, report.portability)


def _drop_reasons(report: ValidationReport) -> list[str]:
    verdict = report.non_inferiority
    if report.gate.max_drop is None or verdict is None or verdict.state != "failed":
        return []
    trained, served = (report.runtime(name).accuracy for name in ("trained", "onnxruntime"))
    return [
        f"accuracy dropped by {interval_in_points(verdict)}, from {trained.value:.2%} of the {report.reference} to "
        f"{served.value:.2%} in onnxruntime; at most {report.gate.max_drop:g} are allowed"
    ]


def _undecided(report: ValidationReport) -> list[str]:
    verdict = report.non_inferiority
    if report.gate.max_drop is None or verdict is None or verdict.state != "undecided":
        return []
    return [
        f"whether accuracy dropped by more than {report.gate.max_drop:g} points cannot be decided from "
        f"{verdict.samples:,} samples: it dropped by {interval_in_points(verdict)}; {needed_samples(verdict)}"
    ]


def interval_in_points(verdict: NonInferiority) -> str:
    """Return a difference of accuracies with its interval, as "0.14 points (-0.36 to 0.64)"."""
    return f"{100 * verdict.loss:.2f} points ({100 * verdict.low:.2f} to {100 * verdict.high:.2f})"


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
    served = report.served_logits
    if served is not None and served.differing:
        reasons.append(
            f"{served.differing} of {served.values} logits that are served are not the integer executor's"
            + ("" if served.worst is None else f" (by up to {served.worst:.3g})")
        )
    for pair in report.comparisons:
        # with float parts, further formats correspond to the free-running executor, whose differences are only reported
        if pair.first in FORMATS and pair.other_logits and report.float_parts is None:
            reasons.append(f"{pair.other_logits} logits of {FORMATS[pair.first].file} differ from onnxruntime's")
    golden = report.golden
    if golden.mismatches:
        reasons.append(f"{golden.mismatches} of {golden.values} {golden.what} of the golden sample were not reproduced")
    return reasons
