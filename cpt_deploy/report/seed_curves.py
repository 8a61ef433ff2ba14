"""Plot groups of runs over their steps: the mean over seeds with a band of the standard deviation, and the bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_deploy.metric import ACCURACY, Metric
from cpt_deploy.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, new_figure, plain

_STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (GREY, "-"), (YELLOW, "--"), (SKY, "-."))


@dataclass(frozen=True)
class SeedBand:
    """Mean and standard deviation of one logged column over the seeds of a group.

    Args:
        steps: Numbers of finished steps at which all seeds have a value.
        means: Mean over the seeds at each of these steps.
        deviations: Sample standard deviation over the seeds; `None` with one seed.
    """

    steps: Sequence[int]
    means: Sequence[float]
    deviations: Sequence[float] | None


@dataclass(frozen=True)
class SeedCurves:
    """The curves of one group of runs.

    Args:
        label: Its name in the legend.
        loss: Loss on training batches.
        figure: The metric on training batches; no steps if it is not measured there.
        held_out: The metric on held-out samples.
        bit_steps: Steps at which the bits are known.
        bits: The forward bits at these steps.
        metric: The metric; the same for all groups of a plot.
        split: Name of the held-out split.
    """

    label: str
    loss: SeedBand
    figure: SeedBand
    held_out: SeedBand
    bit_steps: Sequence[int]
    bits: Sequence[int]
    metric: Metric = ACCURACY
    split: str = "test"


def plot_seed_curves(groups: Sequence[SeedCurves], destination: Path) -> None:
    """Draw training loss, the metric on held-out samples, and bits over the steps.

    Args:
        groups: One or more groups.
        destination: The file to write, PNG or SVG by its suffix.
    """
    figure = new_figure(9, 8.5)
    metric = groups[0].metric
    loss, held_out, bits = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    for index, group in enumerate(groups):
        colour, style = _STYLES[index % len(_STYLES)]
        _band(loss, group.loss, 1.0, colour, style, label=group.label)
        _band(held_out, group.held_out, metric.scale, colour, style, marker="o")
        bits.plot(group.bit_steps, group.bits, style, color=colour, drawstyle="steps-post", linewidth=1.2)
    loss.set_ylabel("training loss")
    held_out.set_ylabel(f"{groups[0].split} {metric.axis}")
    bits.set_ylabel("bits, weights and activations")
    bits.yaxis.get_major_locator().set_params(integer=True)
    bits.set_ylim(bottom=0)
    bits.set_xlabel("step")
    plain(loss, held_out, bits)
    loss.legend(loc="best", frameon=False, title="mean ± standard deviation of the seeds")
    figure.savefig(destination, dpi=130)


def _band(
    axes: Any, band: SeedBand, scale: float, colour: str, style: str, *, label: str = "", marker: str = ""
) -> None:
    means = [scale * value for value in band.means]
    axes.plot(band.steps, means, style, color=colour, marker=marker, markersize=4, linewidth=1.3, label=label or None)
    if band.deviations is not None:
        spread = [scale * value for value in band.deviations]
        low = [mean - width for mean, width in zip(means, spread, strict=True)]
        high = [mean + width for mean, width in zip(means, spread, strict=True)]
        axes.fill_between(band.steps, low, high, color=colour, alpha=0.2, linewidth=0)
