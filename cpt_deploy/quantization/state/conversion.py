"""Record whether a network was converted to integers from end to end, with float parts or for training, and why."""

from dataclasses import dataclass
from typing import Any, Literal

Path = Literal["integers", "float parts", "training only"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a prepared network was made.

    Attributes:
        path: "integers": every operation has an integer form; "float parts": layers run on integers, the operations
            between them in float; "training only": the quantizers have no integer form, so it cannot be exported.
        reason: Why it is not all integers: the first operation without an integer form and its module; `None` if all
            operations are integers.
        dropped_hooks: Hooks of the network that only observe; the prepared network does not have them.
        apart: Why rows of several requests cannot be computed together; `None` if they can.
    """

    path: Path
    reason: str | None = None
    dropped_hooks: tuple[str, ...] = ()
    apart: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {"path": self.path, "reason": self.reason, "dropped_hooks": list(self.dropped_hooks)}

    @property
    def in_words(self) -> str:
        """Describe the conversion in one line."""
        if self.path == "training only":
            return f"float, for training only: {self.reason}"
        return "integers from end to end" if self.reason is None else f"float between the layers: {self.reason}"
