"""The learning rate as a function of progress; stateless, except that `plateau` takes the number of plateaus so far."""

import math

from cpt_deploy.recipe import LearningRateSettings, SwaSettings


def learning_rate_factor(settings: LearningRateSettings, step: int, total_steps: int) -> float:
    """Return the factor of the base rate at a step.

    Args:
        settings: Kind and parameters of the schedule.
        step: From 0.
        total_steps: Length of the run.

    Raises:
        ValueError: If `step` is not in [0, total_steps).
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"Expected step to be in [0, {total_steps}), but got {step}")
    progress = step / total_steps
    return _decay(settings, progress) * _warmup(settings, step)


def learning_rate_at(
    base: float, settings: LearningRateSettings, swa: SwaSettings, step: int, total_steps: int, plateaus: int = 0
) -> float:
    """Return the learning rate of a step; a rate of weight averaging overrides the schedule from its start on.

    Args:
        base: The recipe's learning rate.
        settings: Kind and parameters of the schedule.
        swa: Settings of weight averaging.
        step: From 0.
        total_steps: Length of the run.
        plateaus: Number of evaluations so far without a new best; used by `plateau` only.
    """
    if swa.enabled and swa.lr is not None and step >= swa.start * total_steps:
        return swa.lr
    annealed = settings.gamma**plateaus if settings.name == "plateau" else 1.0
    return base * annealed * learning_rate_factor(settings, step, total_steps)


def _decay(settings: LearningRateSettings, progress: float) -> float:
    if settings.name in ("constant", "plateau"):
        return 1.0
    if settings.name == "piecewise":
        return settings.gamma ** sum(progress >= milestone for milestone in settings.milestones)
    position = (progress - settings.decay_start) / (settings.decay_end - settings.decay_start)
    position = min(max(position, 0.0), 1.0) * settings.cycles
    # rounded, so that a restart is one in spite of the division
    position = round(position, 9) % 1.0 if position < settings.cycles else 1.0
    remaining = 1.0 - position if settings.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * position))
    return settings.final_factor + (1.0 - settings.final_factor) * remaining


def _warmup(settings: LearningRateSettings, step: int) -> float:
    if step >= settings.warmup_steps:
        return 1.0
    if settings.warmup == "constant":
        return settings.warmup_factor
    return settings.warmup_factor + (1.0 - settings.warmup_factor) * step / settings.warmup_steps
