"""Which way the training steps of a model run, and why."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ExecutionPath:
    """How a training step of a model runs.

    Attributes:
        compute: "float32" or "bf16": the fused training step on codes, with backward products of this type; "modules":
            each module by itself, as in evaluation.
        reason: Why, in words.
        hindered: Whether the settings ask for the fused step, and something in the model is in its way.
    """

    compute: Literal["float32", "bf16", "modules"]
    reason: str
    hindered: bool = False

    @property
    def fused(self) -> bool:
        """Whether it is the fused training step."""
        return self.compute != "modules"

    def __str__(self) -> str:
        """Return both in one line."""
        way = f"the fused step on codes, backward in {self.compute}" if self.fused else "module by module"
        return f"{way}: {self.reason}"
