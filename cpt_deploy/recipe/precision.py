"""The precision section of a recipe: the schedules of forward and backward bits, and those of groups of layers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cpt_deploy.errors import UsageError
from cpt_deploy.precision import PlateauRule, PrecisionSchedule, ProgressiveSchedule, build_schedule, progressive_stages
from cpt_deploy.recipe.fields import Bits, Count, Fraction, Interval, Settings

PROGRESSIVE = "progressive"
Points = tuple[tuple[Fraction, Bits], ...]


class ProgressiveSettings(Settings):
    """FracTrain's progressive quantization: `schedule: progressive`, and `grad_schedule: progressive` beside it.

    Bits rise from stage to stage, from the lower to the upper bound; null stands for its 3, 4, 6, 8 between 3 and 8. A
    stage ends when the mean training losses of `window` periods of `every` differ from the last by at most `threshold`
    times the mean loss of the first `scale_periods` periods; the threshold is then multiplied by `decay`.
    """

    stages: tuple[Bits, ...] | None = None
    grad_stages: tuple[Bits, ...] | None = None
    threshold: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.05
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    window: Annotated[int, Field(ge=2)] = 5
    scale_periods: Count = 10
    every: Interval = "1 epoch"

    @property
    def rule(self) -> PlateauRule:
        """When the loss counts as flat."""
        return PlateauRule(self.threshold, self.decay, self.window, self.scale_periods)


class GroupSettings(Settings):
    """Layers with a schedule of their own: those whose name matches the shell pattern `match`, such as "layer3.*".

    What is null is as in the rest of the model. A layer belongs to the first group that matches; it is frozen at the
    group's upper bound, which is at most that of the model.
    """

    match: Annotated[str, Field(min_length=1)]
    schedule: str | None = None
    lower: Bits | None = None
    upper: Bits | None = None
    cycles: Count | None = None
    points: Points | None = None


class PrecisionSettings(Settings):
    """Bits over the run: forward (weights and activations) and backward (gradients) have a schedule each.

    `lower` and `upper` bound the forward cycle, `cycles` is the number of cycles in the run, `points` are the
    (start fraction, bits) pairs of the piecewise schedule. `ends` says whether the first and the last layer hold the
    upper bound or cycle too. `range_momentum` is the weight of a new batch in the tracked activation ranges. Layers
    in `groups` have a schedule of their own; `progressive` belongs to the schedule of that name.
    """

    schedule: str = "cosine"
    lower: Bits = 3
    upper: Bits = 8
    cycles: Count = 32
    points: Points | None = None
    grad_schedule: str = "static"
    grad_lower: Bits = 8
    grad_upper: Bits = 8
    grad_cycles: Count | None = None
    grad_points: Points | None = None
    ends: Literal["hold", "cycle"] = "hold"
    range_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    groups: tuple[GroupSettings, ...] = ()
    progressive: ProgressiveSettings = ProgressiveSettings()

    @model_validator(mode="after")
    def _schedules_exist(self) -> Self:
        problems = []
        for group in self.groups:
            if group.upper is not None and group.upper > self.upper:
                problems.append(
                    f"Expected the upper bound of {group.match} to be at most upper={self.upper}, but got {group.upper}"
                )
        for name, build in self._builders():
            if ":" in name:  # a user's own code is imported when the run starts, not when a file is read
                continue
            try:
                build()
            except UsageError as error:
                problems.append("; ".join(filter(None, [error.message, error.hint])))
        if problems:
            raise ValueError(" | ".join(dict.fromkeys(problems)))
        return self

    def _builders(self) -> Iterator[tuple[str, Callable[[], PrecisionSchedule]]]:
        yield self.schedule, self.forward_schedule
        yield self.grad_schedule, self.backward_schedule
        for group in self.groups:
            yield group.schedule or self.schedule, partial(self._group_schedule, group)

    def forward_schedule(self) -> PrecisionSchedule:
        """Build the schedule of weights and activations.

        Raises:
            UsageError: If an import path leads nowhere.
        """
        if self.schedule == PROGRESSIVE:
            return self._progressive(self.progressive.stages, "stages", self.lower, self.upper)
        return build_schedule(self.schedule, lower=self.lower, upper=self.upper, cycles=self.cycles, points=self.points)

    def backward_schedule(self) -> PrecisionSchedule:
        """Build the schedule of gradients, which has as many cycles as the forward one unless said otherwise.

        Raises:
            UsageError: If an import path leads nowhere.
        """
        if self.grad_schedule == PROGRESSIVE:
            return self._progressive(self.progressive.grad_stages, "grad_stages", self.grad_lower, self.grad_upper)
        return build_schedule(
            self.grad_schedule,
            lower=self.grad_lower,
            upper=self.grad_upper,
            cycles=self.grad_cycles or self.cycles,
            points=self.grad_points,
        )

    def group_schedules(self) -> dict[str, PrecisionSchedule]:
        """Build the schedules of the groups, by the names that the groups have in the model: "group1", "group2", ….

        Raises:
            UsageError: If an import path leads nowhere.
        """
        return {f"group{number}": self._group_schedule(group) for number, group in enumerate(self.groups, start=1)}

    def _group_schedule(self, group: GroupSettings) -> PrecisionSchedule:
        lower, upper = self.bounds_of(group)
        name = group.schedule or self.schedule
        if name == PROGRESSIVE:
            return ProgressiveSchedule(progressive_stages(lower, upper), self.progressive.rule)
        points = group.points if group.schedule or group.points else self.points
        return build_schedule(name, lower=lower, upper=upper, cycles=group.cycles or self.cycles, points=points)

    def bounds_of(self, group: GroupSettings) -> tuple[int, int]:
        """Return the lower and the upper bound of a group."""
        upper = self.upper if group.upper is None else group.upper
        lower = min(self.lower, upper) if group.lower is None else group.lower
        return lower, upper

    def _progressive(self, stages: tuple[int, ...] | None, name: str, lower: int, upper: int) -> PrecisionSchedule:
        chosen = progressive_stages(lower, upper) if stages is None else stages
        if not chosen or (chosen[0], chosen[-1]) != (lower, upper):
            raise UsageError(
                f"Expected progressive.{name} to go from the lower bound {lower} to the upper bound {upper}, "
                f"but got {list(chosen)}"
            )
        return ProgressiveSchedule(chosen, self.progressive.rule)
