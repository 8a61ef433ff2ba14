"""The output of `cpt range-test`."""

from pathlib import Path
from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_deploy.training import RangeTest


def show_range_test(outcome: "RangeTest", name: str, folder: Path | None) -> None:
    """Print the rise of accuracy at each precision, the resulting min_bits, and the path of the plot."""
    if not out.quiet:
        out.table(("bits", "accuracy before", "after", "rise, points", "± s.e.", "trains"), _rows(outcome))
        min_bits = "none: accuracy rose at no precision" if outcome.min_bits is None else f"{outcome.min_bits} bits"
        out.fields(f"Precision range test of {name}", {"min_bits": min_bits})
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
