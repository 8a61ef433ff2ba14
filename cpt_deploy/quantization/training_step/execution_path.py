"""Whether the training steps of a model run fused or module by module, and why."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ExecutionPath:
    """How a training step of a model runs.

    Attributes:
        compute: "float32" or "bf16": the fused training step on integers, with backward products of this type;
            "modules": module by module, as in evaluation.
        reason: The reason in words.
        hindered: Whether the settings ask for the fused step but something in the model prevents it.
    """

    compute: Literal["float32", "bf16", "modules"]
    reason: str
    hindered: bool = False

    @property
    def fused(self) -> bool:
        """Whether it is the fused training step."""
        return self.compute != "modules"

    def __str__(self) -> str:
        """Describe the path and its reason in one line."""
        way = f"the fused training step on integers, backward in {self.compute}" if self.fused else "module by module"
        return f"{way}: {self.reason}"
