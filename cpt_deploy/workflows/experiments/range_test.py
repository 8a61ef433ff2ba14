"""Run the precision range test, which finds min_bits before a run, and write its figures and the resulting recipe."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy import readable
from cpt_deploy.errors import UsageError
from cpt_deploy.tasks import SILENT, Reporter

if TYPE_CHECKING:
    from cpt_deploy.recipe import Recipe
    from cpt_deploy.training import RangeTest

REPORT, PLOT = "range_test.json", "range_test.png"


def find_lower_bound(
    recipe: "Recipe",
    *,
    steps: int = 100,
    threshold: float = 0.01,
    to_max_bits: bool = False,
    folder: Path | None = None,
    reporter: Reporter = SILENT,
) -> "RangeTest":
    """Train for a few steps at each precision until training accuracy rises.

    Args:
        recipe: The settings of the run.
        steps: Number of steps at each precision.
        threshold: Required increase of the training accuracy, 0 to 1.
        to_max_bits: Whether to continue to max_bits, to record the whole curve.
        folder: Directory for figures and plot; None writes nothing.
        reporter: Receives messages and progress.

    Raises:
        UsageError: If a setting does not fit, or the folder cannot be written.
        DataError: If the data are missing or damaged.
    """
    from cpt_deploy.training import range_test

    with reporter.bar("range test", steps * (recipe.precision.max_bits - 1)) as bar:
        outcome = range_test(
            recipe,
            steps=steps,
            threshold=threshold,
            to_max_bits=to_max_bits,
            on_step=lambda done, total, accuracy: bar.advance(done, total, detail=f"train {readable.share(accuracy)}"),
        )
    if folder is not None:
        _write(outcome, folder, recipe.name)
    return outcome


def with_lower_bound(recipe: "Recipe", outcome: "RangeTest") -> "Recipe":
    """Return a recipe with the min_bits that a range test found.

    Raises:
        UsageError: If the test found none.
    """
    if outcome.min_bits is None:
        raise UsageError(
            f"Expected training accuracy to rise at some precision up to {recipe.precision.max_bits} bits, "
            "but it did not",
            hint="cpt range-test --steps 300 takes more steps; check optimizer.lr",
        )
    return recipe.model_copy(update={"precision": recipe.precision.model_copy(update={"min_bits": outcome.min_bits})})


def _write(outcome: "RangeTest", folder: Path, name: str) -> None:
    from cpt_deploy.report import plot_range_test

    fields = outcome.to_dict()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(json.dumps(fields, indent=1) + "\n")
        plot_range_test(fields, folder / PLOT, title=f"Precision range test of {name}")
    except OSError as error:
        raise UsageError(f"Expected to write to {readable.path(folder)}, but got: {error.strerror or error}") from error
