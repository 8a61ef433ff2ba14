"""How many bits at which step, and what that costs: pure functions of progress, without torch."""

from cpt_deploy.precision.cost import BitOpsMeter, BitOpsSummary, LayerCost, relative_cost, share_of_steps
from cpt_deploy.precision.schedules import (
    CyclicSchedule,
    PiecewiseSchedule,
    PrecisionSchedule,
    StaticSchedule,
    build_schedule,
    published_name,
    schedules,
)

__all__ = [
    "BitOpsMeter",
    "BitOpsSummary",
    "CyclicSchedule",
    "LayerCost",
    "PiecewiseSchedule",
    "PrecisionSchedule",
    "StaticSchedule",
    "build_schedule",
    "published_name",
    "relative_cost",
    "schedules",
    "share_of_steps",
]
