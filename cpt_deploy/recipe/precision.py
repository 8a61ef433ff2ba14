"""The sections quantization and precision of a recipe: quantizers, and schedules of forward and backward bits."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cpt_deploy.errors import UsageError
from cpt_deploy.precision import (
    MIN_BITS_OF_LONG_RUNS,
    AdaptiveSchedule,
    DelayedSchedule,
    PlateauRule,
    PrecisionSchedule,
    ProgressiveSchedule,
    build_schedule,
    is_cyclic,
    progressive_stages,
    quantized_steps,
    recommended_min_bits,
)
from cpt_deploy.recipe.fields import Bits, Count, Fraction, Interval, Name, Settings

PROGRESSIVE = "progressive"
Points = tuple[tuple[Fraction, Bits], ...]


class ProgressiveSettings(Settings):
    """FracTrain's progressive quantization: settings of `schedule: progressive` and `grad_schedule: progressive`.

    Bits rise from stage to stage, from min_bits to max_bits; null selects FracTrain's stages: 3, 4, 6, 8 between 3 and
    8. A period is `every` long. A stage ends when the mean training losses of the last `window` periods differ from
    the latest one by at most `threshold` times the mean loss of the first `scale_periods` periods; the threshold is
    then multiplied by `decay`.
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
        """The rule that decides when the loss is flat."""
        return PlateauRule(self.threshold, self.decay, self.window, self.scale_periods)


class GroupSettings(Settings):
    """A separate schedule for the layers whose name matches the shell pattern `match`, such as "layer3.*".

    Settings that are null are those of the rest of the model. A layer belongs to the first group that matches; it is
    frozen at the group's max_bits, which is at most that of the model.
    """

    match: Annotated[str, Field(min_length=1)]
    schedule: Name | None = None
    min_bits: Bits | None = None
    max_bits: Bits | None = None
    cycles: Count | None = None
    points: Points | None = None


class QuantizationSettings(Settings):
    """The quantizers of weights, activations and gradients.

    `integers` are those of ONNX, which `cpt export` freezes. `sbm` are those of the CPT paper's published code, with
    real-valued zero points, to compare with: such a run trains only and cannot be exported. It quantizes weights and
    inputs of convolutions, all of them at scheduled precision (`precision.ends` does not apply), and leaves the rest in
    float.
    """

    scheme: Literal["integers", "sbm"] = "integers"


class PrecisionSettings(Settings):
    """Bits over the run, with one schedule for forward (weights and activations) and one for backward (gradients).

    `min_bits` and `max_bits` bound the forward bits; min_bits of null are 3, but for a cyclic schedule at most 3 below
    max_bits in a run of fewer than 1,000 steps or 30 epochs. `cycles` is the number of cycles in the run, `points` are
    the (start fraction, bits) pairs of the piecewise schedule. `delay` is the part of the run in float32, before
    quantization and its schedules begin. `ends` selects fixed precision (at max_bits) or
    scheduled precision for the first and the last layer. `range_momentum` is the weight of a new batch in the tracked
    activation ranges. `include` (empty means all) and `exclude` are patterns of module names: excluded layers stay in
    float, with all that is between quantized layers. Layers in `groups` have a separate schedule; `progressive` has
    the settings of the schedule of that name.
    """

    schedule: Name = "cosine"
    min_bits: Bits | None = None
    max_bits: Bits = 8
    cycles: Count = 32
    points: Points | None = None
    delay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    grad_schedule: Name = "static"
    grad_min_bits: Bits = 8
    grad_max_bits: Bits = 8
    grad_cycles: Count | None = None
    grad_points: Points | None = None
    ends: Literal["fixed", "scheduled"] = "fixed"
    range_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    groups: tuple[GroupSettings, ...] = ()
    progressive: ProgressiveSettings = ProgressiveSettings()

    @model_validator(mode="after")
    def _schedules_exist(self) -> Self:
        problems = []
        for group in self.groups:
            if group.max_bits is not None and group.max_bits > self.max_bits:
                problems.append(
                    f"Expected max_bits of {group.match} to be at most the model's {self.max_bits}, "
                    f"but got {group.max_bits}"
                )
        for key, name, build in self._builders():
            if ":" in name:  # a user's own code is imported when the run starts, not when a file is read
                continue
            try:
                build()
            except UsageError as error:
                problems.append("; ".join(filter(None, [key + error.message, error.hint])))
        if problems:
            raise ValueError(" | ".join(dict.fromkeys(problems)))
        return self

    def for_run(self, total_steps: int, epochs: float) -> Self:
        """Return the settings with the min_bits that are recommended for a run of a cyclic schedule, if left to it.

        Args:
            total_steps: Steps of the run.
            epochs: Its passes over the training data.
        """
        if self.min_bits is not None or not is_cyclic(self.schedule):
            return self
        quantized = quantized_steps(self.delay, total_steps)
        min_bits = recommended_min_bits(self.max_bits, quantized, epochs * quantized / total_steps)
        # Groups with schedules without cycles keep the bounds that they were checked with.
        groups = tuple(
            group.model_copy(update={"min_bits": self.bounds_of(group)[0]})
            if group.schedule is not None and not is_cyclic(group.schedule)
            else group
            for group in self.groups
        )
        return self.model_copy(update={"min_bits": min_bits, "groups": groups})

    @property
    def bounds(self) -> tuple[int, int]:
        """min_bits and max_bits; those of a long run, if min_bits are left to the run."""
        given = min(MIN_BITS_OF_LONG_RUNS, self.max_bits) if self.min_bits is None else self.min_bits
        return given, self.max_bits

    def _builders(self) -> Iterator[tuple[str, str, Callable[[], PrecisionSchedule]]]:
        """Yield for each schedule how messages begin, its name, and what builds it."""
        yield "", self.schedule, self.forward_schedule
        yield "gradients (grad_min_bits, grad_max_bits): ", self.grad_schedule, self.backward_schedule
        for group in self.groups:
            yield f"layers {group.match}: ", group.schedule or self.schedule, partial(self._group_schedule, group)

    def forward_schedule(self) -> PrecisionSchedule:
        """Build the schedule of weights and activations.

        Raises:
            UsageError: If an import path cannot be resolved.
        """
        if self.schedule == PROGRESSIVE:
            return self._delayed(self._progressive(self.progressive.stages, "stages", *self.bounds))
        min_bits, max_bits = self.bounds
        return self._delayed(
            build_schedule(self.schedule, min_bits=min_bits, max_bits=max_bits, cycles=self.cycles, points=self.points)
        )

    def backward_schedule(self) -> PrecisionSchedule:
        """Build the schedule of gradients, with as many cycles as the forward schedule unless `grad_cycles` is set.

        Raises:
            UsageError: If an import path cannot be resolved.
        """
        if self.grad_schedule == PROGRESSIVE:
            stages = self.progressive.grad_stages
            return self._delayed(self._progressive(stages, "grad_stages", self.grad_min_bits, self.grad_max_bits))
        return self._delayed(
            build_schedule(
                self.grad_schedule,
                min_bits=self.grad_min_bits,
                max_bits=self.grad_max_bits,
                cycles=self.grad_cycles or self.cycles,
                points=self.grad_points,
            )
        )

    def group_schedules(self) -> dict[str, PrecisionSchedule]:
        """Build the schedules of the groups, keyed by the groups' names in the model: "group1", "group2", ….

        Raises:
            UsageError: If an import path cannot be resolved.
        """
        return {f"group{number}": self._group_schedule(group) for number, group in enumerate(self.groups, start=1)}

    def _group_schedule(self, group: GroupSettings) -> PrecisionSchedule:
        min_bits, max_bits = self.bounds_of(group)
        name = group.schedule or self.schedule
        if name == PROGRESSIVE:
            return self._delayed(ProgressiveSchedule(progressive_stages(min_bits, max_bits), self.progressive.rule))
        points = group.points if group.schedule or group.points else self.points
        cycles = group.cycles or self.cycles
        return self._delayed(build_schedule(name, min_bits=min_bits, max_bits=max_bits, cycles=cycles, points=points))

    def bounds_of(self, group: GroupSettings) -> tuple[int, int]:
        """Return min_bits and max_bits of a group."""
        max_bits = self.max_bits if group.max_bits is None else group.max_bits
        min_bits = min(self.bounds[0], max_bits) if group.min_bits is None else group.min_bits
        return min_bits, max_bits

    def _delayed(self, schedule: PrecisionSchedule) -> PrecisionSchedule:
        if not self.delay:
            return schedule
        if isinstance(schedule, AdaptiveSchedule):
            raise UsageError(
                f"Expected a schedule that does not follow the training loss with delay={self.delay}, but got one",
                hint="set delay=0, or another schedule such as cosine",
            )
        return DelayedSchedule(schedule, self.delay)

    def _progressive(
        self, stages: tuple[int, ...] | None, name: str, min_bits: int, max_bits: int
    ) -> PrecisionSchedule:
        chosen = progressive_stages(min_bits, max_bits) if stages is None else stages
        if not chosen or (chosen[0], chosen[-1]) != (min_bits, max_bits):
            raise UsageError(
                f"Expected progressive.{name} to go from min_bits {min_bits} to max_bits {max_bits}, "
                f"but got {list(chosen)}"
            )
        return ProgressiveSchedule(chosen, self.progressive.rule)
