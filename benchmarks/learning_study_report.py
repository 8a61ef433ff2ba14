"""Table and picture of the learning study, from its recorded runs alone; `learning_study.py --table` writes both."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning_study import LENGTHS, REFERENCE, SEEDS, SETS, TITLES, Runs, cells, compared, key
from measuring import markdown_table
from paired_differences import Difference
from training_grid import Metric

#: By metric: unit of the differences, and the level of static 8 bits.
UNITS: dict[Metric, tuple[str, str]] = {
    "accuracy": ("accuracy gained, points", "accuracy, %"),
    "perplexity": ("perplexity saved, %", "perplexity per byte"),
}


def table(runs: Runs) -> str:
    """Return one table per data set, with a row per kind and a column per length."""
    found = compared(runs)
    parts = [_introduction(runs)]
    for name, data in SETS.items():
        lengths = [steps for steps in LENGTHS if any(cell[:2] == (name, steps) for cell in found)]
        if not lengths:
            continue
        unit, level = UNITS[data.metric]
        rows = [[f"{TITLES[REFERENCE]}: {level}", *(_level(runs, name, steps) for steps in lengths), "1"]]
        for kind in data.kinds:
            of_kind = [found.get((name, steps, kind)) for steps in lengths]
            if any(of_kind):
                entries = ["" if entry is None else _entry(*entry) for entry in of_kind]
                rows.append([TITLES[kind], *entries, _time(runs, name, kind)])
        header = [unit, *(f"{steps:,} steps" for steps in lengths), "processor time"]
        parts.append(f"**{data.title}** ({_count(runs, name)})\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def _introduction(runs: Runs) -> str:
    planned = [key(*cell) for cell in cells()]
    done = sum(cell in runs for cell in planned)
    return (
        f"{done:,} of {len(planned):,} runs: the study has {'' if done == len(planned) else 'not '}ended. Differences "
        f"to {TITLES[REFERENCE]} bits on the test set, paired by seed: mean ± standard error (number of seeds). "
        "Positive is better everywhere: points of top-1 accuracy gained, or percent of perplexity saved (100 times the "
        f"difference of the losses in nats). `*` where all {len(SEEDS)} seeds are there and Holm's correction over all "
        "comparisons of the study leaves p below 0.05. Processor time: of the longest runs, against static 8 on a "
        "processor of the same kind, median (`python benchmarks/learning_study.py --table`)."
    )


def _count(runs: Runs, name: str) -> str:
    planned = [key(*cell) for cell in cells() if cell[0] == name]
    return f"{sum(cell in runs for cell in planned):,} of {len(planned):,} runs"


def _level(runs: Runs, name: str, steps: int) -> str:
    metric = SETS[name].metric
    found = [run[metric] for seed in SEEDS if (run := runs.get(key(name, steps, REFERENCE, seed)))]
    if not found:
        return ""
    return f"{100 * statistics.mean(found):.2f}" if metric == "accuracy" else f"{statistics.geometric_mean(found):.3f}"


def _time(runs: Runs, name: str, kind: str) -> str:
    """Return the processor time of a kind's longest runs as a share of static 8, the median of pairs."""
    for steps in reversed(LENGTHS):
        pairs = [(runs.get(key(name, steps, kind, s)), runs.get(key(name, steps, REFERENCE, s))) for s in SEEDS]
        ratios = [
            mine["cpu_seconds"] / other["cpu_seconds"]
            for mine, other in pairs
            if mine and other and mine["processor"] == other["processor"]
        ]
        if len(ratios) >= len(SEEDS) / 2:
            return f"{statistics.median(ratios):.2f}"
    return ""


def _entry(value: Difference, p: float) -> str:
    star = "*" if value.seeds == len(SEEDS) and p < 0.05 else ""
    return f"{value.mean:+.2f} ± {value.error:.2f} ({value.seeds}){star}"


@dataclass(frozen=True)
class Style:
    """How the line of a kind is drawn.

    Args:
        color: Of the colour-blind-safe palette of Okabe and Ito.
        marker: Shape of its points.
        dashed: Whether the line is dashed.
        thin: Whether it is in the background.
    """

    color: str
    marker: str
    dashed: bool = False
    thin: bool = False

    def drawn(self) -> dict[str, Any]:
        """Return matplotlib's settings of the line."""
        return {
            "color": self.color,
            "marker": self.marker,
            "markersize": 4 if self.thin else 5.5,
            "markerfacecolor": "white" if self.dashed else self.color,
            "linestyle": "--" if self.dashed else "-",
            "linewidth": 0.8 if self.thin else 1.3,
            "alpha": 0.6 if self.thin else 1,
        }


#: A colour per schedule; 5-8 bits are dashed. In the background: kinds between two others.
STYLES = {
    "float32": Style("#000000", "s"),
    "cpt": Style("#0072B2", "o"),
    "cpt-5-8": Style("#0072B2", "o", dashed=True),
    "exponential": Style("#D55E00", "^"),
    "exponential-5-8": Style("#D55E00", "^", dashed=True),
    "rex": Style("#CC79A7", "v"),
    "static6": Style("#009E73", "D", dashed=True, thin=True),
    "static5": Style("#009E73", "D"),
    "cyclic-lr": Style("#E69F00", "X"),
    "sbm-static8": Style("#56B4E9", "s", dashed=True, thin=True),
    "sbm-cpt": Style("#56B4E9", "o", thin=True),
    "delayed": Style("#999999", "P", dashed=True, thin=True),
    "cooldown": Style("#999999", "P", thin=True),
}
APART = 1.045  # factor between the points of neighbouring kinds


def draw(runs: Runs, path: Path) -> None:
    """Draw the differences against the number of steps, a panel per data set."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "learning_study"}):
        picture(runs).savefig(path, metadata={"Date": None})


def picture(runs: Runs) -> Any:
    """Return the figure; cells in which seeds are missing are pale."""
    from matplotlib.figure import Figure

    found = compared(runs)
    figure = Figure(figsize=(9.5, 7.5), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, (name, data) in zip(panels.flat, SETS.items(), strict=True):
        _axes(axes, name)
        _limits(axes, [value for (of, _, _), (value, _) in found.items() if of == name])
        kinds = [kind for kind in data.kinds if kind != REFERENCE]
        for place, kind in enumerate(kinds):
            points = [(steps, found[name, steps, kind][0]) for steps in LENGTHS if (name, steps, kind) in found]
            _line(axes, kind, points, APART ** (place - (len(kinds) - 1) / 2))
    drawn = {kind for _, _, kind in found}
    handles = [_handle(style, TITLES[kind]) for kind, style in STYLES.items() if kind in drawn]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _limits(axes: Any, values: Sequence[Difference]) -> None:
    """Limit an axis by all means, and by the intervals of complete cells: those of two or three seeds are too wide."""
    ends = [0.0]
    for value in values:
        half = value.half if value.seeds == len(SEEDS) else value.error
        ends += [value.mean - half, value.mean + half]
    margin = 0.05 * (max(ends) - min(ends))
    if margin:
        axes.set_ylim(min(ends) - margin, max(ends) + margin)


def _line(axes: Any, kind: str, points: Sequence[tuple[int, Difference]], shift: float) -> None:
    style = STYLES[kind]
    drawn = style.drawn()
    at = [steps * shift for steps, _ in points]
    axes.plot(at, [value.mean for _, value in points], **{**drawn, "marker": None})
    for x, (_, value) in zip(at, points, strict=True):
        alpha = drawn["alpha"] if value.seeds == len(SEEDS) else 0.35
        axes.errorbar(x, value.mean, value.half, **{**drawn, "alpha": alpha, "linestyle": "none"})


def _handle(style: Style, title: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **style.drawn(), label=title)


def _axes(axes: Any, name: str) -> None:
    data = SETS[name]
    lengths = [steps for steps in LENGTHS if steps <= data.longest]
    axes.axhline(0, color="0.35", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{steps:,}" for steps in lengths])
    axes.minorticks_off()
    axes.set_xlim(lengths[0] / 1.45, lengths[-1] * 1.45)
    axes.set(title=data.title, xlabel="steps", ylabel=f"against static 8: {UNITS[data.metric][0]}")
    axes.title.set_fontsize("medium")
    axes.set_title("↑ better", loc="left", color="0.35", fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
