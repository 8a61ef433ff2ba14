"""The output of `cpt validate`: the evidence, and the error of a bundle that did not pass."""

from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_deploy.errors import ValidationFailedError

if TYPE_CHECKING:
    from cpt_deploy.tasks import Evidence


def show_evidence(evidence: "Evidence") -> None:
    """Print the measurements, the verdict, and what was not measured."""
    summary = evidence.summary
    verdict = evidence.verdict if evidence.verdict == "passed" else evidence.verdict.upper()
    for note in summary.notes:
        out.note(f"note: {note}")
    if out.quiet:
        out.line(evidence.verdict)
        return
    out.table(
        summary.table.columns,
        summary.table.rows,
        title=summary.table.title,
        optional=("worst output difference",),
    )
    out.fields(verdict, summary.facts)


def require_passed(evidence: "Evidence") -> None:
    """Raise a `ValidationFailedError` with the failures, or else the undecided tests, unless a bundle passed."""
    if evidence.passed:
        return
    if evidence.reasons:
        raise ValidationFailedError("; ".join(evidence.reasons))
    raise ValidationFailedError(
        f"Undecided: {'; '.join(evidence.undecided)}",
        hint="measure on more samples, allow a larger loss (--max-drop), or accept it (--allow-undecided)",
    )
