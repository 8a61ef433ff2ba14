"""The output of `cpt inspect`, and of `cpt validate` for an ONNX file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_deploy.validation.accuracy.agreement import OutputAgreementFacts
    from cpt_deploy.validation.onnx_files.inspection import Inspection, TensorFacts
    from cpt_deploy.validation.onnx_files.replay import Replayed
    from cpt_deploy.validation.onnx_files.validation import FileReport

_MOST_NAMES, _MOST_LAYERS = 4, 20


def show_inspection(inspection: "Inspection") -> None:
    """Print the facts of a file, its layers, and its findings."""
    share = inspection.integer_share
    floats = [layer for layer in inspection.layers if not layer.integers]
    worst = max((layer.worst_sum for layer in inspection.layers if layer.worst_sum is not None), default=None)
    out.fields(
        f"{inspection.file}, {readable.size(inspection.size_bytes)}",
        {
            "inputs": "\n".join(map(_tensor, inspection.inputs)) or "none",
            "outputs": "\n".join(map(_tensor, inspection.outputs)),
            "opset": ", ".join(
                [str(inspection.opset), *(f"{readable.name(name)} {v}" for name, v in inspection.domains.items())]
            ),
            "operators": _counts(inspection.operators),
            "onnxruntime runs": _counts(inspection.executed),
            "on integers": f"{'unknown' if share is None else readable.share(share)} of the multiply-accumulates, "
            f"{len(inspection.layers) - len(floats)} of {len(inspection.layers)} layers",
            **({} if inspection.integers is None else {"integer tensors": str(len(inspection.integers))}),
            "in float": _counts(inspection.in_float) or "none",
            "portable": _portable(inspection),
            **({} if worst is None else {"largest possible sum": f"{readable.share(worst / 2**31)} of int32"}),
        },
    )
    if floats and not out.quiet:
        rows = [
            (readable.name(layer.name), layer.operator, "" if layer.macs is None else f"{layer.macs:,}")
            for layer in floats
        ]
        out.table(("layer in float", "operator", "multiply-accumulates"), rows[:_MOST_LAYERS])
        if len(rows) > _MOST_LAYERS:
            out.line(f"… and {len(rows) - _MOST_LAYERS} more; --json lists all")
    show_findings(inspection)


def show_findings(inspection: "Inspection") -> None:
    """Print the findings of a file."""
    if inspection.note:
        out.note(f"note: {inspection.note}")
    if not inspection.findings:
        out.line("nothing to change")
        return
    rows = [(each.rule, each.what, each.change, _where(each.where)) for each in inspection.findings]
    out.table(("finding", "what", "change", "where"), rows)


def show_file_report(report: "FileReport") -> None:
    """Print the measurements of a file and the verdict."""
    for note in report.notes:
        out.note(f"note: {note}")
    verdict = "passed" if report.passed else "FAILED"
    if out.quiet:
        out.line(verdict.lower())
        return
    facts = {
        "inputs": f"{report.rows:,} rows of {report.data}" if report.data else f"{report.rows:,} random rows",
        "integers": _agreement(report.served),
        "other runtimes": _changed(report),
    }
    if report.default_kernels is not None:
        facts["in other programs here"] = f"{_agreement(report.default_kernels)}, with kernels that saturate"
    facts |= {
        f"output {readable.name(each.name)}": f"{_closeness(each)}, against the float model"
        for each in report.agreement or ()
    }
    for name, found in (("accuracy", report.accuracy), ("float accuracy", report.source_accuracy)):
        if found is not None:
            facts[name] = f"{readable.share(found.value)} ({readable.share(found.low)} to {readable.share(found.high)})"
    if report.latency is not None:
        facts["latency"] = (
            f"{report.latency.milliseconds:.3g} ms, {report.latency.speedup:.2f}x as fast as the float model "
            f"({report.latency.rounds} rounds in turn, one thread)"
        )
    share = report.inspection.integer_share
    facts["on integers"] = f"{'unknown' if share is None else readable.share(share)} of the multiply-accumulates"
    facts["portable"] = _portable(report.inspection)
    show_findings(report.inspection)
    out.fields(verdict, facts)


def _agreement(replayed: "Replayed") -> str:
    same = replayed.compared - replayed.mismatches
    return f"{same:,} of {replayed.compared:,} in {replayed.stretches} stretches are exact"


def _changed(report: "FileReport") -> str:
    values, changed = (sum(getattr(tensor, key) for tensor in report.unoptimized) for key in ("values", "mismatches"))
    worst = max((tensor.worst_difference for tensor in report.unoptimized), default=0)
    share = readable.share(changed / values) if values else "none"
    return f"{changed:,} of {values:,} integers change ({share}, by {worst} at most) with optimizations off"


def _closeness(facts: "OutputAgreementFacts") -> str:
    top = "" if facts.top1 is None else f", {readable.share(facts.top1)} of rows with the same largest value"
    return f"{facts.sqnr_db:.1f} dB, cosine {facts.cosine:.6f}{top}"


def _portable(inspection: "Inspection") -> str:
    risky = sum(layer.saturates is True for layer in inspection.layers)
    if inspection.portable is None:
        return "unknown: weights are computed, or layers on integers are inside of subgraphs"
    if risky:
        return f"no: {risky} of {len(inspection.layers)} layers can saturate on x86 processors without VNNI"
    return "yes: nothing can saturate on any processor"


def _tensor(facts: "TensorFacts") -> str:
    shape = "of unknown shape" if facts.shape is None else f"[{', '.join(map(str, facts.shape))}]"
    return readable.name(f"{facts.name}: {facts.dtype} {shape}")


def _counts(counts: Mapping[str, int]) -> str:
    return readable.name(", ".join(f"{count} {name}" for name, count in counts.items()))


def _where(names: tuple[str, ...]) -> str:
    more = f", … ({len(names)})" if len(names) > _MOST_NAMES else ""
    return readable.name(", ".join(names[:_MOST_NAMES])) + more
