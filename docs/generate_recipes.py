"""Writes the table of docs/reference/recipes.md; `python docs/generate_recipes.py --check` only compares."""

import sys
from pathlib import Path

from generated import write_or_check

from cpt_deploy.recipe import Experiment, experiments

PAGE = Path(__file__).parent / "reference" / "recipes.md"
BEGIN, END = "<!-- recipes -->\n", "<!-- end -->"
HEAD = (
    "| recipe | static run | steps | recipe | saved | paper's count | saved | paper prints | accuracy | static |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


def render(page: str) -> str:
    """Return the page with the table as the recipes have it."""
    rows = "".join(_row(entry) for entry in experiments().values() if entry.baseline is not None)
    before, rest = page.split(BEGIN)
    return before + BEGIN + HEAD + rows + END + rest.split(END, 1)[1]


def _row(experiment: Experiment) -> str:
    assert experiment.baseline is not None
    cost, figures = experiment.cost(), experiment.figures
    saving = f"{figures['saving'].value:g} %" if "saving" in figures else ""
    gain = f" ({figures['gain'].value:+.2f})" if "gain" in figures else ""
    cells = (
        f"`{experiment.name}`",
        f"`{experiment.baseline.rpartition('-')[2]}`",
        f"{cost.steps:,}",
        f"{cost.gbitops:.3g}",
        f"{100 * cost.saving:.2f} %",
        f"{cost.paper_gbitops:.3g}" if "perplexity" not in figures else "",
        f"{100 * cost.paper_saving:.2f} %",
        saving,
        _accuracy(experiment) + gain,
        _accuracy(experiments()[experiment.baseline]),
    )
    return f"| {' | '.join(cells)} |\n"


def _accuracy(experiment: Experiment) -> str:
    figure = experiment.figures.get("perplexity")
    if figure is not None:
        return f"perplexity {figure.value:g}"
    figure = experiment.figures.get("top1")
    if figure is None:
        return ""
    mark = "~" if "scatter" in figure.source else "\\*" if "FracTrain" in figure.source else ""
    return f"{mark}{figure.value:.2f}"


def main() -> int:
    """Write the table, or with --check return 1 if it is out of date."""
    return write_or_check({PAGE: render(PAGE.read_text(encoding="utf-8"))})


if __name__ == "__main__":
    sys.exit(main())
