"""The picture of `cpt load-test`: latency at every percentile, a line for each number of clients."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cpt_deploy.report.figures import BLUE, ORANGE, PINK, figure_style, new_figure

_COLOURS = (BLUE, ORANGE, PINK, "#4d4d4d", "#009e73", "#b8b8b8")
_TICKS = (0.5, 0.9, 0.99, 0.999, 0.9999)
_POINTS = 400


def plot_load(latencies_s: Mapping[int, Sequence[float]], title: str, destination: Path) -> None:
    """Draw latencies over percentiles; each step to the right is a tenfold rarer answer.

    Args:
        latencies_s: Seconds of each answer, by the number of clients; levels without an answer are left out.
        title: What was measured.
        destination: The PNG, SVG or PDF file to write.

    Raises:
        MissingExtraError: If Matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    levels = {clients: np.sort(np.asarray(values)) for clients, values in latencies_s.items() if len(values)}
    rarest = max((1 - 1 / max(len(values), 2) for values in levels.values()), default=0.99)
    with figure_style():
        figure = new_figure(6.4, 3.8)
        axes = figure.subplots()
        for index, (clients, values) in enumerate(levels.items()):
            rarities = np.geomspace(1, len(values), min(_POINTS, len(values)))
            places = np.minimum(np.ceil((1 - 1 / rarities) * len(values)).astype(int), len(values) - 1)
            colour = _COLOURS[index % len(_COLOURS)]
            axes.plot(
                rarities, values[places] * 1e3, color=colour, label=f"{clients} client{'s' if clients > 1 else ''}"
            )
        ticks = [share for share in _TICKS if share <= max(rarest, 0.9)]
        axes.set_xscale("log")
        axes.set_xticks([1 / (1 - share) for share in ticks], [f"p{share * 100:g}" for share in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_ylabel("milliseconds")
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.grid(visible=True, color="#e0e0e0", linewidth=0.6)
        if levels:
            axes.legend(frameon=False)
        figure.savefig(destination, dpi=150)
