"""Precision schedules (bits per training step) and their cost in BitOPs: pure functions of progress, without torch."""

from cpt_deploy.precision.adaptive import (
    AdaptiveSchedule,
    PlateauRule,
    ProgressiveSchedule,
    follow_losses,
    progressive_stages,
)
from cpt_deploy.precision.cost import BitOpsMeter, LayerCost, relative_cost, share_of_steps
from cpt_deploy.precision.recommended import (
    LOSSES,
    MIN_BITS_OF_LONG_RUNS,
    RECOMMENDED_LOSS,
    SHORT_SPAN,
    is_short,
    recommended_min_bits,
)
from cpt_deploy.precision.schedules import (
    CyclicSchedule,
    DelayedSchedule,
    PiecewiseSchedule,
    PrecisionSchedule,
    StaticSchedule,
    build_schedule,
    is_cyclic,
    published_name,
    quantized_steps,
    schedules,
)

__all__ = [
    "LOSSES",
    "MIN_BITS_OF_LONG_RUNS",
    "RECOMMENDED_LOSS",
    "SHORT_SPAN",
    "AdaptiveSchedule",
    "BitOpsMeter",
    "CyclicSchedule",
    "DelayedSchedule",
    "LayerCost",
    "PiecewiseSchedule",
    "PlateauRule",
    "PrecisionSchedule",
    "ProgressiveSchedule",
    "StaticSchedule",
    "build_schedule",
    "follow_losses",
    "is_cyclic",
    "is_short",
    "progressive_stages",
    "published_name",
    "quantized_steps",
    "recommended_min_bits",
    "relative_cost",
    "schedules",
    "share_of_steps",
]
