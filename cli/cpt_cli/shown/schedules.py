"""The data of `cpt schedules`: the bits of each schedule over a run, the saved BitOPs, and given losses."""

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.errors import DataError

if TYPE_CHECKING:
    from cpt_deploy.precision import PrecisionSchedule
    from cpt_deploy.recipe import Recipe


@dataclass(frozen=True)
class ShownSchedule:
    """One schedule over a run.

    Args:
        name: Name of the schedule, or of the part of a recipe that it belongs to.
        short: Short name by Wolfe & Kyrillidis, if it is one of theirs.
        group: Their group of saving, likewise.
        bits: Bits of every step.
        saving: BitOPs saved against static max_bits; `None` for gradients, which have no such reference.
        follows_loss: Whether its bits depend on losses that were not given.
        has_cycles: Whether the run consists of equal cycles, of which a few show all.
    """

    name: str
    short: str | None
    group: str | None
    bits: list[int]
    saving: float | None
    follows_loss: bool = False
    has_cycles: bool = True

    @property
    def shares(self) -> dict[int, float]:
        """Share of the steps at each number of bits, ascending by bits."""
        return {width: self.bits.count(width) / len(self.bits) for width in sorted(set(self.bits))}

    @property
    def mean_bits(self) -> float:
        """Mean bits over the steps."""
        return sum(self.bits) / len(self.bits)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except the bits of single steps, as JSON types."""
        return {
            "name": self.name,
            "short": self.short,
            "group": self.group,
            "mean_bits": self.mean_bits,
            "saving": self.saving,
            "shares": {str(width): share for width, share in self.shares.items()},
            "follows_loss": self.follows_loss,
        }


def show_schedule(
    name: str,
    schedule: "PrecisionSchedule",
    backward: "PrecisionSchedule",
    max_bits: int,
    steps: int,
    losses: list[float],
) -> ShownSchedule:
    """Describe a schedule.

    Args:
        name: Long name of the schedule.
        schedule: The schedule; it receives `losses` if it depends on the loss.
        backward: Schedule of the gradients, for the cost.
        max_bits: Bits of the static run to which the cost is compared.
        steps: Steps of the run.
        losses: Mean training loss of each period of a run; empty if unknown.
    """
    from cpt_deploy.precision import AdaptiveSchedule, DelayedSchedule, follow_losses, published_name, relative_cost

    follows = False
    for entry in (schedule, backward):
        if isinstance(entry, AdaptiveSchedule):
            follows = not losses
            follow_losses(entry, losses, max(1, steps // max(1, len(losses))))
    published = published_name(name)
    return ShownSchedule(
        name,
        published[0] if published else None,
        f"{published[1]} saving" if published else None,
        [schedule.bits_at(step, steps) for step in range(steps)],
        1 - relative_cost(schedule, backward, steps, reference_bits=max_bits),
        follows,
        not isinstance(schedule, AdaptiveSchedule | DelayedSchedule),
    )


def show_recipe(recipe: "Recipe", steps: int, losses: list[float]) -> list[ShownSchedule]:
    """Describe the schedules of a recipe: forward, of layer groups, and of the gradients."""
    # How many epochs given steps are depends on the data, which are not opened here.
    precision = recipe.precision.for_run(steps, recipe.train.epochs or math.inf)
    shown = [
        show_schedule(
            f"forward: {precision.schedule} {_range(*precision.bounds)}",
            precision.forward_schedule(),
            precision.backward_schedule(),
            precision.max_bits,
            steps,
            losses,
        )
    ]
    for group, schedule in zip(precision.groups, precision.group_schedules().values(), strict=True):
        min_bits, max_bits = precision.bounds_of(group)
        name = f"{group.match}: {group.schedule or precision.schedule} {_range(min_bits, max_bits)}"
        shown.append(show_schedule(name, schedule, precision.backward_schedule(), max_bits, steps, losses))
    grads = precision.backward_schedule()
    name = f"gradients: {precision.grad_schedule} {_range(precision.grad_min_bits, precision.grad_max_bits)}"
    # The cost of gradients is part of the cost of the forward schedules.
    alone = show_schedule(name, grads, precision.backward_schedule(), precision.grad_max_bits, steps, losses)
    shown.append(replace(alone, saving=None))
    return shown


def read_losses(path: Path) -> list[float]:
    """Return the mean training loss of each period from a file.

    Args:
        path: `metrics.csv` of a run, whose epochs are the periods, or a text file with one number per line and period.

    Raises:
        DataError: If the file cannot be read or has another form.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected a readable file of losses at {path}, but got: {error}") from error
    try:
        rows = csv.DictReader(text.splitlines())
        if {"loss", "epoch"} <= set(rows.fieldnames or ()):
            losses = _by_epoch([(float(row["epoch"]), float(row["loss"])) for row in rows if row["loss"]])
        else:
            losses = [float(line) for line in text.split()]
    except ValueError as error:
        raise DataError(
            f"Expected the losses of a run in {path}, but got: {error}",
            hint="metrics.csv of a run, or one number a line, the mean loss of each epoch",
        ) from error
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise DataError(f"Expected finite losses in {path}, but got {len(losses) or 'none'}")
    return losses


def _by_epoch(rows: list[tuple[float, float]]) -> list[float]:
    epochs: dict[int, list[float]] = {}
    for epoch, loss in rows:  # a row's epoch is the finished share: 1.0 still belongs to the first
        epochs.setdefault(max(math.ceil(epoch), 1), []).append(loss)
    return [sum(losses) / len(losses) for _, losses in sorted(epochs.items())]


def _range(min_bits: int, max_bits: int) -> str:
    return f"{min_bits}-{max_bits}" if min_bits < max_bits else f"{max_bits}"
