"""Passes the mean training loss of each period to adaptive precision schedules."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cpt_deploy.precision import AdaptiveSchedule, PrecisionSchedule


class LossFollowing:
    """Averages the training loss over each period and passes it to the schedules that depend on it.

    In a distributed run the losses are those of the whole batch, which every process has, so all processes agree.

    Args:
        schedules: All schedules of the run; non-adaptive ones are ignored.
        period: Steps of a period.
    """

    def __init__(self, schedules: Sequence[PrecisionSchedule], period: int) -> None:
        self.schedules = [schedule for schedule in schedules if isinstance(schedule, AdaptiveSchedule)]
        self.period = period
        self._sum: Tensor | float = 0.0
        self._samples = 0

    def add(self, loss: Tensor, samples: int) -> None:
        """Add a step's mean loss, 0-dim, without waiting for the device."""
        if self.schedules:
            self._sum = self._sum + loss.double() * samples
            self._samples += samples

    def finished(self, step: int) -> None:
        """Record the number of finished steps; at the end of a period, pass its mean loss to the schedules."""
        if not self.schedules or step % self.period != 0 or self._samples == 0:
            return
        mean = float(self._sum) / self._samples
        for schedule in self.schedules:
            schedule.observe(mean, step)
        self._sum, self._samples = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "sum": float(self._sum),
            "samples": self._samples,
            "schedules": [schedule.state_dict() for schedule in self.schedules],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._sum, self._samples = float(state["sum"]), int(state["samples"])
        for schedule, own in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(own)
