"""Summarise the evidence of a validation in words."""

from typing import TYPE_CHECKING

from cpt_deploy import readable
from cpt_deploy.bundle import FORMATS
from cpt_deploy.bundle.runtime.providers import rounds_as_the_executor
from cpt_deploy.tasks.evidence import WITHOUT_VNNI, Table, ValidationSummary, saturation_in_words

if TYPE_CHECKING:
    from cpt_deploy.validation import NonInferiority, ValidationReport
    from cpt_deploy.validation.accuracy.agreement import OutputAgreementFacts
    from cpt_deploy.validation.facts import FloatFacts


def summarize(report: "ValidationReport") -> ValidationSummary:
    """Return measurements, differences of outputs to onnxruntime, and skipped measurements."""
    answers = any(pair.other_answers is not None for pair in report.comparisons)
    intervals = any(entry.interval is not None for entry in report.runtimes)
    data = report.dataset
    table = Table(
        (
            "runtime", report.metric.title, *(["95 % interval"] if intervals else []),
            *(["other answers"] if answers else []), "worst output difference",
        ),
        tuple(
            (report.title(entry.name), *_cells(entry.name, report, answers=answers, intervals=intervals))
            for entry in report.runtimes
        ),
        f"{report.bundle} on {data.samples:,} {data.unit} of {data.name} ({data.split})",
    )  # fmt: skip
    return ValidationSummary(table, _facts(report), notes=tuple(report.notes))


def _facts(report: "ValidationReport") -> dict[str, str]:
    golden, differing = report.golden, report.first_difference
    integers = "not compared"
    if report.tensors is not None:
        integers = (
            f"{report.compared_integers - report.mismatching_integers:,} of {report.compared_integers:,} in "
            f"{len(report.tensors)} tensors are the same"
        )
    if report.tensors is not None and report.float_parts is not None:
        integers += ", replayed from onnxruntime's integers at each entry"
    facts = {
        "integers": integers + (f", first difference in {differing.name}" if differing else ""),
        "golden sample": f"{golden.values - golden.mismatches} of {golden.values} {golden.what} reproduced",
    }
    if report.float_parts is not None:
        facts |= _float_lines(report.float_parts)
    facts |= _output_lines(report)
    facts |= {
        f"outputs of {FORMATS[pair.first].file}": f"{pair.other_values or 'none'} differ from onnxruntime's"
        for pair in report.comparisons
        if pair.first in FORMATS
    }
    facts |= {f"output {each.name}": _agreed(each) for each in report.agreement}
    if report.detection is not None:
        found = report.detection
        facts["boxes"] = (
            f"mean average precision {readable.share(found.mean_average_precision)}, {found.objects:,} boxes of the "
            f"float model as the truth (score of at least {found.least_score:g})"
        )
    if not rounds_as_the_executor(report.provider):
        facts["onnxruntime on"] = report.provider
    if report.constants is not None:
        changed = report.constants.differences
        compared = f"{report.constants.compared:,} quantized weights, scales, zero points and biases"
        facts["model.onnx"] = f"differs, first in {changed[0].tensor}" if changed else f"{compared} are as exported"
    if report.graph is not None:
        floats = ", ".join(f"{count} {name}" for name, count in report.graph.float_operators.items())
        facts["operators left in float"] = floats or "none"
    title = report.metric.title
    name = f"{title} lost" if report.metric.higher_is_better else f"rise of {title}"
    if report.non_inferiority is not None:
        facts[name] = _lost(report, report.non_inferiority)
    elif report.runtimes and not report.agreement:
        facts[name] = "not judged, since there is no trained model to compare with (--run)"
    largest = max(report.accumulators, key=lambda entry: entry.worst_sum, default=None)
    if largest is not None:
        facts["largest possible sum"] = f"{readable.share(largest.share)} of int32, in {largest.name}"
    facts[WITHOUT_VNNI] = saturation_in_words(
        report.saturation, report.portability, saturates_here=report.cpu.saturates
    )
    return facts


def _agreed(output: "OutputAgreementFacts") -> str:
    """Describe the agreement of an output with the float model's."""
    parts = [f"SQNR {output.sqnr_db:.1f} dB, cosine {output.cosine:.5f}"]
    parts += [f"the same largest value in {readable.share(output.top1)}"] if output.top1 is not None else []
    parts += [f"overlap of maps {readable.share(output.overlap)}"] if output.overlap is not None else []
    parts += [f"another shape in {output.other_shapes} calls"] if output.other_shapes else []
    return ", ".join(parts) + ", against the float model"


def _output_lines(report: "ValidationReport") -> dict[str, str]:
    """Compare the executor's outputs with the served ones and with the trained model's."""
    lines, served, trained = {}, report.served_outputs, report.trained_codes
    if served is not None:
        within = "" if served.tolerance is None else f", within {served.tolerance:g} of a sample's largest"
        lines["outputs served"] = (
            f"{served.values - served.differing:,} of {served.values:,} are the integer executor's{within}"
        )
    if trained is not None:
        lines[f"{report.reference}, executor"] = (
            f"{trained.differing:,} of {trained.values:,} output values differ, "
            f"by {readable.counted(trained.worst, 'step')} at most"
        )
    return lines


def _lost(report: "ValidationReport", verdict: "NonInferiority") -> str:
    from cpt_deploy.validation.gate import interval_in_units, needed_samples

    unit = report.drop_unit
    lost = f"{interval_in_units(verdict, unit)} from {report.reference} to onnxruntime, 95 % interval"
    if report.gate.max_drop is None:
        return lost
    allowed = f"at most {report.gate.max_drop:g} are allowed"
    more = needed_samples(verdict, report.dataset.unit)
    return f"{lost}; {allowed}" + (f": {more}" if verdict.state == "undecided" else "")


def _float_lines(floats: "FloatFacts") -> dict[str, str]:
    """Describe the float parts of a network."""
    lines = {
        "on integers": f"{readable.share(floats.integer_share)} of the multiply-accumulates",
        "in float": ", ".join(f"{count} {name}" for name, count in floats.operators.items()) or "movements only",
        "since": floats.reason,
    }
    if floats.other_codes is not None:
        differing, codes = floats.other_codes
        lines["free-running executor"] = f"{differing:,} of {codes:,} integers differ, which is not judged"
    return lines


def _cells(name: str, report: "ValidationReport", *, answers: bool, intervals: bool) -> tuple[str, ...]:
    runtime, text = report.runtime(name), report.metric.text
    interval = "" if runtime.interval is None else " to ".join(text(bound) for bound in runtime.interval)
    pair = next((pair for pair in report.comparisons if (pair.first, pair.second) == (name, "onnxruntime")), None)
    worst = pair.worst_difference if pair else None
    others = [] if not answers else ["" if pair is None or pair.other_answers is None else str(pair.other_answers)]
    return (text(runtime.value), *([interval] if intervals else []), *others, "" if worst is None else f"{worst:.3g}")
