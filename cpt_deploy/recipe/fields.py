"""Field types of recipe sections: bounded numbers, intervals, and the base class of all sections."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Bits = Annotated[int, Field(ge=2, le=32)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

_EVERY = re.compile(r"(\d+)\s*(epoch|step)s?")


@dataclass(frozen=True)
class Every:
    """An interval of a run: a number of epochs or of steps."""

    count: int
    unit: Literal["epoch", "step"]

    def steps(self, steps_per_epoch: int) -> int:
        """Return the interval in steps."""
        return self.count * (steps_per_epoch if self.unit == "epoch" else 1)


def parse_every(text: str) -> Every:
    """Parse an interval such as "1 epoch", "5 epochs" or "390 steps".

    Raises:
        ValueError: If the text is not an interval, or is an interval of 0.
    """
    match = _EVERY.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"Expected an interval such as '1 epoch' or '390 steps', but got {text!r}")
    return Every(int(match[1]), "epoch" if match[2] == "epoch" else "step")


def _interval(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value} {'epoch' if value == 1 else 'epochs'}"
    if isinstance(value, str):
        parse_every(value)
    return value


Interval = Annotated[str, BeforeValidator(_interval)]


class Settings(BaseModel):
    """Base of all sections; immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
