"""Plot groups of runs over their steps: the mean over seeds with a band of the standard deviation, and the bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_deploy.metric import ACCURACY, Metric
from cpt_deploy.report.figures import fit, grids, line_style, new_figure, picture, save, whole_numbers
from cpt_deploy.report.labels import legend_below, title_above


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


@picture
def plot_seed_curves(groups: Sequence[SeedCurves], destination: Path) -> Any:
    """Draw training loss, the metric on held-out samples, and bits over the steps.

    Args:
        groups: One or more groups.
        destination: The file to write, PNG or SVG by its suffix.
    """
    figure = new_figure(9, 8)
    metric = groups[0].metric
    loss, held_out, bits = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    losses: list[float] = []
    values: list[float] = []
    for index, group in enumerate(groups):
        losses += _band(loss, group.loss, 1.0, index, label=group.label)
        values += _band(held_out, group.held_out, metric.scale, index)
        bits.plot(group.bit_steps, group.bits, drawstyle="steps-post", linewidth=1.2, **line_style(index))
    fit(loss, losses)
    fit(held_out, values)
    loss.set_ylabel("training loss")
    held_out.set_ylabel(f"{groups[0].split} {metric.axis}")
    bits.set_ylabel("bits of weights\nand activations")
    whole_numbers(bits)
    whole_numbers(bits, "x")
    bits.set_ylim(0, 1.08 * max([1, *(value for group in groups for value in group.bits)]))
    bits.set_xlabel("step")
    grids(loss, held_out, bits)
    several = any(group.loss.deviations is not None for group in groups)
    title_above(figure, "Training curves" + (", mean ± standard deviation of the seeds" if several else ""))
    legend_below(figure, loss)
    return save(figure, destination)


def _band(axes: Any, band: SeedBand, scale: float, index: int, *, label: str = "") -> list[float]:
    """Draw the mean with its band, and return the values of the mean."""
    means = [scale * value for value in band.means]
    style = line_style(index, len(means))
    axes.plot(band.steps, means, linewidth=1.3, label=label or None, **style)
    if band.deviations is not None:
        spread = [scale * value for value in band.deviations]
        low = [mean - width for mean, width in zip(means, spread, strict=True)]
        high = [mean + width for mean, width in zip(means, spread, strict=True)]
        axes.fill_between(band.steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
    return means
