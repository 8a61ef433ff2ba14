"""What `cpt range-test` shows of its evidence."""

from pathlib import Path
from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_deploy.training import RangeTest


def show_range_test(outcome: "RangeTest", name: str, folder: Path | None) -> None:
    """Print what happened at each precision, the lower bound, and where the evidence is."""
    if not out.quiet:
        out.table(("bits", "accuracy before", "after", "rise, points", "± s.e.", "trains"), _rows(outcome))
        lower = "none: accuracy rose at no precision" if outcome.lower is None else f"{outcome.lower} bits"
        out.fields(f"Precision range test of {name}", {"lower bound": lower})
    if folder is not None:
        out.note(f"wrote {readable.path(folder / 'range_test.png')}")


def _rows(outcome: "RangeTest") -> list[tuple[object, ...]]:
    return [
        (
            entry.bits,
            readable.share(entry.before),
            readable.share(entry.after),
            f"{100 * entry.rise:+.2f}",
            f"{100 * entry.standard_error:.2f}",
            "diverged" if entry.diverged else "yes" if entry.exceeds(outcome.threshold) else "no",
        )
        for entry in outcome.progress
    ]
