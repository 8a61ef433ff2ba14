"""Field types of recipe sections: bounded numbers, intervals, and the base class of all sections."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from cpt_deploy.registry import located

Bits = Annotated[int, Field(ge=2, le=32)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, AfterValidator(located)]
"""A known name or an import path; that of a file becomes absolute, so that a run is read from any directory."""
Finite = Annotated[float, Field(allow_inf_nan=False)]

_EVERY = re.compile(r"(\d+)\s*(epoch|step)s?")


def interval_steps(text: str, steps_per_epoch: int) -> int:
    """Return the steps of an interval such as "1 epoch", "5 epochs" or "390 steps".

    Raises:
        ValueError: If the text is not an interval, or is an interval of 0.
    """
    match = _EVERY.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"Expected an interval such as '1 epoch' or '390 steps', but got {text!r}")
    return int(match[1]) * (steps_per_epoch if match[2] == "epoch" else 1)


def matching(pattern: str, meaning: str) -> AfterValidator:
    """Return a check that text matches a pattern; its error says in words what is expected."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"Expected {meaning}, but got {text!r}")
        return text

    return AfterValidator(check)


def _interval(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value} {'epoch' if value == 1 else 'epochs'}"
    if isinstance(value, str):
        interval_steps(value, 1)  # raises if it is none
    return value


Interval = Annotated[str, BeforeValidator(_interval)]


class Settings(BaseModel):
    """Base of all sections; immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
