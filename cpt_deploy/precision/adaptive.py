"""Schedules that depend on the training loss: FracTrain's progressive schedule adds bits when the loss is flat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from cpt_deploy.errors import UsageError
from cpt_deploy.precision.schedules import Points, PrecisionSchedule, check_bounds, check_step, schedules

#: Positions of the default stages between min_bits and max_bits: 3, 4, 6, 8 bits between 3 and 8, as in FracTrain.
_STAGES = (0.0, 0.2, 0.6, 1.0)


@runtime_checkable
class AdaptiveSchedule(PrecisionSchedule, Protocol):
    """A schedule that depends on the training loss; its state is saved in checkpoints.

    For a past step, `bits_at` returns the bits that it ran at; for a future step, those that the losses so far imply.
    """

    def observe(self, loss: float, step: int) -> None:
        """Record the training loss of one period.

        Args:
            loss: Mean training loss of the period.
            step: Number of finished steps, hence the index of the first step whose bits can still change.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the losses so far led to, as JSON types."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        ...


@dataclass(frozen=True)
class PlateauRule:
    """The rule that decides when the loss is flat: Algorithm 1 of FracTrain (Fu et al., 2020), its code's constants.

    A turning point comes after a period whose loss differs from each of the `window - 1` before it by at most a
    threshold. Differences are relative to the mean loss of the first `scale_periods` periods. After each turning
    point the threshold is multiplied by `decay`, and a new window begins.

    Args:
        threshold: Initial threshold, epsilon in the paper.
        decay: Factor that the threshold is multiplied by after each turning point, alpha in the paper.
        window: Number of periods that are compared, at least 2.
        scale_periods: Number of periods whose mean loss is the scale.
    """

    threshold: float = 0.05
    decay: float = 0.3
    window: int = 5
    scale_periods: int = 10

    def __post_init__(self) -> None:
        if not (self.threshold > 0 and 0 < self.decay <= 1 and self.window >= 2 and self.scale_periods >= 1):
            raise UsageError(
                "Expected threshold > 0, 0 < decay <= 1, window >= 2 and scale_periods >= 1, "
                f"but got {self.threshold}, {self.decay}, {self.window} and {self.scale_periods}"
            )


@dataclass
class ProgressiveSchedule:
    """A schedule that moves to the next, higher number of bits each time the training loss becomes flat.

    Args:
        stages: Bits of each stage, rising.
        rule: Decides when the loss is flat.

    Attributes:
        turning_points: First step of each stage but the first.
        losses: Losses of the periods in the window.
        periods: Number of periods so far.
        scale: Mean loss of the first `scale_periods` periods.
        threshold: The current threshold.
    """

    stages: tuple[int, ...]
    rule: PlateauRule = PlateauRule()
    turning_points: list[int] = field(default_factory=list, init=False)
    losses: list[float] = field(default_factory=list, init=False)
    periods: int = field(default=0, init=False)
    scale: float = field(default=0.0, init=False)
    threshold: float = field(init=False)

    def __post_init__(self) -> None:
        if not self.stages or list(self.stages) != sorted(self.stages):
            raise UsageError(
                f"Expected the stages of a progressive schedule to rise, but got {list(self.stages)}",
                hint="FracTrain has 3, 4, 6, 8 bits forward and 6, 6, 8, 8 backward",
            )
        check_bounds(self.stages[0], self.stages[-1])
        self.threshold = self.rule.threshold

    def bits_at(self, step: int, total_steps: int) -> int:
        """Return the bits of the stage that `step` lies in; see `AdaptiveSchedule`."""
        check_step(step, total_steps)
        return self.stages[sum(turn <= step for turn in self.turning_points)]

    def observe(self, loss: float, step: int) -> None:
        """Record the mean loss of a period; see `AdaptiveSchedule.observe`."""
        self.periods += 1
        if self.periods <= self.rule.scale_periods:
            self.scale += (loss - self.scale) / self.periods
        if len(self.turning_points) + 1 == len(self.stages):
            return
        self.losses = [*self.losses, loss][-self.rule.window :]
        if len(self.losses) == self.rule.window and self._is_flat():
            self.turning_points.append(step)
            self.threshold *= self.rule.decay
            self.losses = []

    def _is_flat(self) -> bool:
        *before, last = self.losses
        return all(abs(loss - last) <= self.threshold * self.scale for loss in before)

    def state_dict(self) -> dict[str, Any]:
        """Return losses, turning points and threshold; see `AdaptiveSchedule.state_dict`."""
        return {
            "turning_points": list(self.turning_points),
            "losses": list(self.losses),
            "periods": self.periods,
            "scale": self.scale,
            "threshold": self.threshold,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.turning_points, self.losses = list(state["turning_points"]), list(state["losses"])
        self.periods, self.scale, self.threshold = state["periods"], state["scale"], state["threshold"]


def progressive_stages(min_bits: int, max_bits: int) -> tuple[int, ...]:
    """Return FracTrain's stages scaled to the given bounds; between 3 and 8 they are 3, 4, 6, 8."""
    return tuple(round(min_bits + (max_bits - min_bits) * share) for share in _STAGES)


@schedules.register("progressive")
def _progressive(min_bits: int, max_bits: int, _cycles: int, _points: Points | None) -> PrecisionSchedule:
    return ProgressiveSchedule(progressive_stages(min_bits, max_bits))


def follow_losses(schedule: AdaptiveSchedule, losses: Sequence[float], steps_per_period: int) -> None:
    """Feed a schedule the mean losses of a complete run, so that `bits_at` returns the bits under those losses."""
    for period, loss in enumerate(losses, start=1):
        schedule.observe(loss, period * steps_per_period)
