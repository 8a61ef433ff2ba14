"""The verdict on a report: why a bundle may not be served, as sentences."""

from dataclasses import replace

from cpt_deploy.bundle import FORMATS
from cpt_deploy.validation.accumulators import overflow_reasons
from cpt_deploy.validation.constants import ConstantsResult
from cpt_deploy.validation.report import ValidationReport
from cpt_deploy.validation.saturation import portability_reasons


def judge(report: ValidationReport) -> ValidationReport:
    """Return the report with the reasons for which it does not pass its gate.

    Logits that are not finite, constants that are not those of the integer graph, sums that int32 may not hold, and a
    portable bundle that can saturate always fail; accuracy and integers fail as far as `report.gate` asks for them.
    """
    checks = (
        _finite_reasons, _constant_reasons, _overflow_reasons, _portability_reasons, _drop_reasons, _exactness_reasons
    )  # fmt: skip
    return replace(report, reasons=tuple(reason for check in checks for reason in check(report)))


def _constant_reasons(report: ValidationReport) -> list[str]:
    return constant_reasons(report.constants)


def constant_reasons(constants: ConstantsResult | None) -> list[str]:
    """Say what of model.onnx is not what the integer graph holds, the first tensor by name."""
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
    allowed = report.gate.max_drop
    # A drop of exactly the limit passes, whatever the last digit of the subtraction says.
    if allowed is None or report.drop is None or report.drop <= allowed + 1e-9:
        return []
    trained, served = (report.runtime(name).accuracy for name in ("trained", "onnxruntime"))
    return [
        f"accuracy dropped by {report.drop:.2f} points, from {trained.value:.2%} of the {report.reference} to "
        f"{served.value:.2%} in onnxruntime; at most {allowed:g} are allowed"
    ]


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
    for pair in report.comparisons:
        # where floats lie between integers, formats are the executor's own way, which is told
        if pair.first in FORMATS and pair.other_logits and report.float_parts is None:
            reasons.append(f"{pair.other_logits} logits of {FORMATS[pair.first].file} differ from onnxruntime's")
    golden = report.golden
    if golden.mismatches:
        reasons.append(f"{golden.mismatches} of {golden.values} {golden.what} of the golden sample were not reproduced")
    return reasons
